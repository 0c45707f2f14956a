"""Whether the loops' machine code is there: its file in all kinds of installations, and what stands in for loops."""

from __future__ import annotations

import math
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from merge.engine import fused
from merge.loops import machine_code
from merge.loops.tables import BFLOAT16
from merge.recipe import Recipe

ROOT = Path(__file__).parents[2]
# One loop in place of all: the same file, line and loading, in a tenth of the time.
ONE = """
import sys
sys.path[:0] = [{root!r}]
from merge.loops import machine_code
machine_code.NAMES = {{1: ("count",)}}
if {first}:
    from merge.loops import entries
    entries.entries = lambda kind: {{"count": entries.counting(kind)}}
print(machine_code.compiled_loops([1], tell=True) is not None, "numba" in sys.modules)
"""


def load_one(environment: dict[str, str], root: Path = ROOT, first: bool = True) -> subprocess.CompletedProcess[str]:
    """Load the loop in a process of its own. first: it may have to be compiled, for which numba is imported."""
    clean = {key: value for key, value in os.environ.items() if key not in (machine_code.OFF, "NUMBA_CACHE_DIR")}
    return subprocess.run(
        [sys.executable, "-c", ONE.format(root=str(root), first=first)],
        env=clean | environment, capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of the cache after a process compiled, and what it printed."""
    folder = tmp_path_factory.mktemp("compiled") / "cache"
    return folder, load_one({"NUMBA_CACHE_DIR": str(folder)})


def test_machine_code_is_kept_and_loaded_without_numba(
    compiled: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, first = compiled
    second = load_one({"NUMBA_CACHE_DIR": str(folder)}, first=False)
    assert (first.stdout, first.stderr.strip()) == ("True True\n", machine_code.LINE)
    assert (second.stdout, second.stderr) == ("True False\n", "")
    assert len(list(folder.glob("loops-1-*.o"))) == 1


def test_a_damaged_file_is_not_used(compiled: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    where = {"NUMBA_CACHE_DIR": str(shutil.copytree(compiled[0], tmp_path / "cache"))}
    (file,) = (tmp_path / "cache").glob("loops-1-*.o")
    whole = file.read_bytes()
    file.write_bytes(whole[:-100] + bytes(100))
    again = load_one(where)
    assert (again.stdout, again.stderr.strip()) == ("True True\n", machine_code.LINE)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("changed", sorted(path.name for path in machine_code.HERE.glob("*.py")))
def test_machine_code_belongs_to_every_file_that_makes_it(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one too: how the loops are compiled."""
    shutil.copytree(machine_code.HERE, tmp_path / "loops", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(machine_code, "HERE", tmp_path / "loops")
    before = machine_code._key.__wrapped__()
    with (tmp_path / "loops" / changed).open("a") as file:
        file.write("# changed")
    assert machine_code._key.__wrapped__() != before


def test_without_a_folder_for_the_cache_every_process_compiles(tmp_path: Path) -> None:
    """Neither beside the source, nor where the environment says, nor in the user's home: files stand in the way."""
    for package in ("common", "merge"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    blocked = tmp_path / "file"
    for path in (blocked, tmp_path / "merge" / "loops" / "__pycache__"):
        path.write_text("where a folder would have to be")
    nowhere = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), str(blocked / "cache"))
    for _ in range(2):
        found = load_one(nowhere, tmp_path)
        assert (found.stdout, found.stderr.strip()) == ("True True\n", machine_code.LINE)


def test_models_of_medium_size_load_loops_but_do_not_compile_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(fused, "compiled_loops", lambda found, tell, may_compile: asked.append(may_compile))
    for numel in (fused.WORTH, fused.WORTH_COMPILING - 1, fused.WORTH_COMPILING):
        fused.loops_for(plan_of("ties", numel), "cpu", False)
    assert asked == [False, False, True]
    monkeypatch.setattr(machine_code, "_ready", {})
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv(machine_code.OFF, raising=False)
    assert machine_code.compiled_loops([BFLOAT16], tell=True, may_compile=False) is None
    assert not list(tmp_path.iterdir())


def test_loops_can_be_switched_off() -> None:
    assert load_one({machine_code.OFF: "1"}, first=False).stdout == "False False\n"


def test_a_failure_leaves_merges_on_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "_ready", {})
    monkeypatch.delenv(machine_code.OFF, raising=False)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)  # importing it fails
    assert machine_code.compiled_loops([BFLOAT16], tell=False) is None


def plan_of(method: str, numel: int, compute_dtype: str = "float32") -> Any:
    models = {"ct": {"path": "ct"}, "sft": {"path": "sft"}}
    base = {} if method == "linear" else {"base": "base"}
    recipe = Recipe.from_dict({"method": method, **base, "models": models, "compute_dtype": compute_dtype})
    output = SimpleNamespace(floating=True, numel=numel, slice=None)
    return SimpleNamespace(outputs=[output], parents={}, recipes=(recipe,))


@pytest.mark.parametrize(
    ("method", "dtype", "numel", "device", "asked"),
    [
        ("ties", "float32", fused.WORTH, "cpu", True),
        ("ties", "bfloat16", fused.WORTH, "cpu", True),
        ("dare_ties", "float16", fused.WORTH, "cpu", True),
        ("linear", "bfloat16", fused.WORTH, "cpu", False),
        ("ties", "bfloat16", fused.WORTH - 1, "cpu", False),
        ("ties", "bfloat16", fused.WORTH, "cuda", False),
        ("ties", "float64", fused.WORTH, "cpu", False),
        ("sce", "float32", fused.WORTH, "cpu", False),
    ],
)
def test_loops_are_loaded_where_they_pay(
    method: str, dtype: str, numel: int, device: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[Any] = []
    monkeypatch.setattr(fused, "compiled_loops", lambda found, *_: kinds.extend(found))
    fused.loops_for(plan_of(method, numel, dtype), device, False)
    assert kinds == ([fused.KINDS[getattr(torch, dtype)]] if asked else [])


@pytest.mark.parametrize(("owner", "mode"), [(0, 0o664), (0, 0o646), (12345, 0o644)])
def test_a_file_that_another_user_may_have_written_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, mode: int
) -> None:
    """owner: this user's number, and what is added to it."""
    path = tmp_path / "loops.o"
    before = os.umask(0)
    try:
        machine_code._write(path, b"code")
    finally:
        os.umask(before)
    assert machine_code._read(path) == b"code"
    found = list(path.stat())
    found[stat.ST_UID] += owner
    found[stat.ST_MODE] = stat.S_IFREG | mode
    status = os.stat_result(found)
    monkeypatch.setattr(os, "fstat", lambda _: status)
    assert machine_code._read(path) is None


def test_a_user_without_a_home_has_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert machine_code._folders() == [machine_code.HERE / "__pycache__"]


def test_a_loop_that_calls_what_may_not_be_there_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what numba calls where a loop fails is cut off."""
    from merge.loops import entries

    def loop(pointer: Any) -> int:
        return int(math.erf(pointer[0]))

    monkeypatch.setattr(entries, "entries", lambda kind: {"count": loop})
    with pytest.raises(ValueError, match="the loops call erf"):
        machine_code._compiled(BFLOAT16)
