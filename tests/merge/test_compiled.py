"""Whether compiled loops are there: their cache in all kinds of installations, and what stands in for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from merge import compiled
from merge.recipe import Recipe
from merge.stream import fused

ROOT = Path(__file__).parents[2]
# One small function in place of all: the same decorator, cache and line, in a tenth of the time.
ONE = """
import sys
sys.path[:0] = [{root!r}]
from merge import compiled, kernels
kernels.warm_up = lambda dtype: kernels.count_upper(numpy.zeros(1, numpy.int32), 16, numpy.zeros(1 << 15, numpy.int64))
import numpy
print(compiled.compiled_kernels(["float32"], tell=True) is kernels)
"""


def compile_one(environment: dict[str, str], root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in (compiled.OFF, "NUMBA_CACHE_DIR")}
    return subprocess.run(
        [sys.executable, "-c", ONE.format(root=str(root))],
        env=clean | environment, capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip


def test_machine_code_is_kept_and_its_compilation_is_told_once(tmp_path: Path) -> None:
    first, second = (compile_one({"NUMBA_CACHE_DIR": str(tmp_path / "cache")}) for _ in range(2))
    assert first.stdout == second.stdout == "True\n"
    assert first.stderr.strip() == compiled.LINE
    assert second.stderr == ""
    assert list((tmp_path / "cache").rglob("*.nbi"))


def test_a_damaged_cache_is_not_used(tmp_path: Path) -> None:
    compile_one({"NUMBA_CACHE_DIR": str(tmp_path)})
    for file in tmp_path.rglob("*.nb*"):
        file.write_bytes(b"not machine code")
    assert compile_one({"NUMBA_CACHE_DIR": str(tmp_path)}).stdout == "True\n"


def test_without_a_folder_for_the_cache_every_process_compiles(tmp_path: Path) -> None:
    """Neither beside the source, nor where the environment says, nor in the user's home: files stand in the way."""
    for package in ("common", "merge"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    blocked = tmp_path / "file"
    for path in (blocked, tmp_path / "merge" / "__pycache__"):
        path.write_text("where a folder would have to be")
    nowhere = dict.fromkeys(("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME"), str(blocked / "cache"))
    for _ in range(2):
        found = compile_one(nowhere, tmp_path)
        assert (found.stdout, found.stderr.strip()) == ("True\n", compiled.LINE)


def test_without_compilation_there_are_no_loops() -> None:
    assert compile_one({"NUMBA_DISABLE_JIT": "1"}).stdout == "False\n"
    assert compile_one({compiled.OFF: "1"}).stdout == "False\n"


def test_a_failure_leaves_merges_on_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_ready", {})
    monkeypatch.delenv(compiled.OFF, raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it fails
    assert compiled.compiled_kernels(["float32"], tell=False) is None


def test_small_models_and_other_devices_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> None:
        raise AssertionError("numba is imported")

    plan: Any = SimpleNamespace(outputs=(), parents={}, recipes=())

    monkeypatch.setattr(fused, "compiled_kernels", ask)
    assert fused.kernels_for(plan, "cpu", False) is None
    monkeypatch.setattr(fused, "WORTH", 0)
    assert fused.kernels_for(plan, "cuda", False) is None
    assert fused.kernels_for(plan, "cpu", False) is None, "no recipe gains by them"
    monkeypatch.setattr(fused, "WHERE_FASTER", False)
    with pytest.raises(AssertionError, match="numba is imported"):
        fused.kernels_for(plan, "cpu", False)


@pytest.mark.parametrize(
    ("method", "dtype", "gains"),
    [
        ("ties", torch.float32, True),
        ("dare_ties", torch.float32, True),
        ("ties", torch.bfloat16, False),
        ("task_arithmetic", torch.float32, False),
        ("linear", torch.float32, False),
    ],
)
def test_loops_take_what_they_merge_faster(method: str, dtype: torch.dtype, gains: bool) -> None:
    models = {"ct": {"path": "ct"}, "sft": {"path": "sft"}}
    base = {} if method == "linear" else {"base": "base"}
    recipe = Recipe.from_dict({"method": method, **base, "models": models}, where="recipe")
    assert fused.is_faster(recipe, dtype) == gains
