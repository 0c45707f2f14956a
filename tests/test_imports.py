"""The arrows of the house: which room may import which, no circles, and no two files of one name."""

from __future__ import annotations

import ast

from tests.import_graph import PACKAGES, ROOT, imports, modules

MAY_IMPORT = {  # a room may always import itself
    "common": set(),
    "train": {"common"},
    "merge": {"common"},
    "eval": {"common"},
    "pipeline": {"common", "train", "merge", "eval"},
}
SOURCES = modules(*PACKAGES)
GRAPH = {module: set(imports(path, SOURCES)) - {module} for module, path in SOURCES.items()}


def circles() -> list[list[str]]:
    """Groups of files that import each other, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(GRAPH[module]):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in GRAPH:
        if module not in order:
            visit(module)
    return groups


def test_rooms_import_one_way() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in sorted(others)
        if (room := module.partition(".")[0]) != (its := other.partition(".")[0]) and its not in MAY_IMPORT[room]
    ]
    assert not wrong


def test_no_circles() -> None:
    assert not circles()


def test_every_room_says_what_goes_in_and_out() -> None:
    packages = [path for path in SOURCES.values() if path.name == "__init__.py"]
    assert not [str(path.relative_to(ROOT)) for path in packages if not ast.get_docstring(ast.parse(path.read_text()))]
