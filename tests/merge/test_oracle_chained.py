"""Several merges in a file against mergekit-multi, which keeps what is between: the published one has the same bits."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merge.cli import main
from tests.merge.oracle import PYTHON, load, needs_mergekit

pytestmark = needs_mergekit


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_last_merge_is_that_of_mergekit_multi(dtype: str, folders: dict[str, Path], tmp_path: Path) -> None:
    base = str(folders["base"])
    listed: list[dict[str, Any]] = [
        {
            "name": "first", "merge_method": "linear", "dtype": dtype,
            "models": [{"model": str(folders[name]), "parameters": {"weight": 0.5}} for name in ("ct", "sft")],
        },
        {
            "name": "mitte", "merge_method": "task_arithmetic", "base_model": base, "dtype": dtype,
            "models": [
                {"model": "first", "parameters": {"weight": 0.7}},
                {"model": str(folders["sft"]), "parameters": {"weight": 0.4}},
            ],
        },
        {
            "merge_method": "nearswap", "base_model": "first", "models": [{"model": "mitte"}], "dtype": dtype,
            "parameters": {"t": 0.001},
        },
    ]  # fmt: skip
    config = tmp_path / "merges.yml"
    config.write_text(yaml.safe_dump_all(listed))
    assert main([str(config), str(tmp_path / "ours"), "--quiet"]) == 0
    theirs = [PYTHON.with_name("mergekit-multi"), config, "--out-path", tmp_path / "theirs", "-I", tmp_path / "between"]
    ran = subprocess.run(theirs, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    ours, other = load(tmp_path / "ours"), load(tmp_path / "theirs")
    assert ours.keys() == other.keys() and ours
    assert all(torch.equal(ours[name], other[name]) for name in ours)
