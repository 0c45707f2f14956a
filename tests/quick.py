"""The tests nearest to a change, in less than a minute: `python -m tests.quick [PYTEST'S ARGUMENTS]`.

Changed is what differs from the merge base with main, or from BASE in the environment, and what is not committed. Each
file of tests has a distance: how many imports are between it and a changed file. Those that are nearest run, as many
as take BUDGET_S by `durations.json`, and ALWAYS. Tests of SLOW_S and more never run here. What is left out is printed.

`make test ARGS=--write-durations` measures the durations again (tests/conftest.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from tests.import_graph import PACKAGES, ROOT, imports, modules, strings

DURATIONS = Path(__file__).with_name("durations.json")
SLOW_S, BUDGET_S, UNKNOWN_S = 4.0, 40.0, 2.0
# What reads the repository's files, and what every change of a configuration or a stage shows in
ALWAYS = (
    *("tests/test_house.py", "tests/test_imports.py", "tests/test_words.py", "tests/test_docs_text.py"),
    *("tests/pipeline/test_keys.py", "tests/pipeline/test_plan.py"),
)
# For files that no test imports
OF_FOLDER = {
    "conf/": ("tests/pipeline/test_reference.py", "tests/pipeline/test_old_names.py", "tests/pipeline/test_cli.py"),
    "docs/": ("tests/test_docs.py", "tests/pipeline/test_reference.py"),
    "eval/tasks/": ("tests/eval/test_task_set.py", "tests/eval/test_task_checks.py"),
    "pipeline/report/web/": ("tests/pipeline/report/test_page.py",),
    "requirements.lock": ("tests/test_supply_chain.py",),
}


def durations() -> dict[str, float]:
    """Seconds by file of tests, and by test for those that are slow."""
    return json.loads(DURATIONS.read_text(encoding="utf-8"))


def write_durations(calls: Mapping[str, float], fixtures: Mapping[str, float]) -> None:
    """calls, fixtures: seconds by test. Fixtures are those of a file: without the slow test another one makes them."""
    found: Counter[str] = Counter()
    for test, each in [*calls.items(), *fixtures.items()]:
        found[test.partition("::")[0]] += each
    found.update({test: each for test, each in calls.items() if each >= SLOW_S})
    rounded = {name: round(each, 1) for name, each in sorted(found.items())}
    DURATIONS.write_text(json.dumps(rounded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def changed_files() -> list[str]:
    """The paths of what differs from the base, deleted files too, and of new files."""

    def git(*words: str) -> list[str]:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    base = os.environ.get("BASE") or git("merge-base", "HEAD", "main")[0]
    return sorted({*git("diff", "--name-only", base), *git("ls-files", "--others", "--exclude-standard")})


@cache
def module_importers() -> tuple[dict[str, str], dict[str, set[str]]]:
    """Our modules by their files, and by each module those that import it, or that start it as a program."""
    known = modules(*PACKAGES, "tests")
    importers: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        named = strings(path, known) if name.startswith("tests.") else ()
        for other in {*imports(path, known), *named} - {name}:
            importers[other].add(name)
    return {str(path.relative_to(ROOT)): name for name, path in known.items()}, importers


def distances(changed: Iterable[str]) -> dict[str, int]:
    """How many imports are between each file of tests and a changed file; none: it reaches none."""
    name_of, importers = module_importers()
    found = {name_of[file]: 0 for file in changed if file in name_of}
    at = list(found)
    while at:
        at = [name for name in {name for each in at for name in importers[each]} if name not in found]
        found |= dict.fromkeys(at, max(found.values()) + 1)
    tests = {file: found[name] for file, name in name_of.items() if is_test(file) and name in found}
    for folder, files in OF_FOLDER.items():
        if any(file.startswith(folder) for file in changed):
            tests |= {file: min(1, tests.get(file, 1)) for file in files}
    return tests


def is_test(file: str) -> bool:
    """Whether this is the path of a file of tests."""
    return file.startswith("tests/") and Path(file).name.startswith("test_")


def choose(near: Mapping[str, int], seconds: Mapping[str, float]) -> tuple[list[str], list[str], list[str]]:
    """The files that run, the slow tests within them that do not, and the files for which there is no time."""
    slow = {name: each for name, each in seconds.items() if "::" in name and each >= SLOW_S}

    def takes(file: str) -> float:
        left_out = sum(each for name, each in slow.items() if name.startswith(f"{file}::"))
        return max(0.0, seconds.get(file, UNKNOWN_S + left_out) - left_out)

    files, total = list(ALWAYS), sum(map(takes, ALWAYS))
    for file in sorted(near.keys() - {*ALWAYS}, key=lambda file: (near[file], takes(file), file)):
        if total + takes(file) <= BUDGET_S:
            files.append(file)
            total += takes(file)
    deselected = [name for name in slow if name.partition("::")[0] in files]
    return files, deselected, sorted(near.keys() - {*files})


def main(arguments: list[str]) -> int:
    """Choose, print what is left out, and run."""
    changed = changed_files()
    files, slow, others = choose(distances(changed), durations())
    print(f"{len(changed)} changed files, {len(files)} files of tests")
    for what, names in (("slow", slow), ("for lack of time", others)):
        if names:
            print(f"left out, {what} (make test runs them):", *names, sep="\n  ")
    left_out = [f"--deselect={name}" for name in slow]
    command = [sys.executable, "-m", "pytest", *left_out, *arguments, *files]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
