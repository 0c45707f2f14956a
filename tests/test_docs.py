"""What the documentation shows does what it says: the tutorial's commands, the notebook."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from tests.merge.conftest import LAYERS, save, shapes

ROOT = Path(__file__).parents[1]


def test_the_notebook_merges_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in shapes().items()}
    for number, model in enumerate(("base", "ct", "sft")):
        save(
            tmp_path / model, {name: tensor + 0.1 * number * torch.randn_like(tensor) for name, tensor in base.items()}
        )
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs/tutorials/merge-and-audit.ipynb").read_text())["cells"]
    scope: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)  # noqa: S102, our own cells
    audits: dict[float, Any] = scope["audits"]
    lost = [audit["models"]["sft"]["share_lost_in_conflict"] for audit in audits.values()]
    assert lost == sorted(lost, reverse=True) and lost[0] > lost[-1]  # slack keeps SFT's
    assert str(scope["svg"]).count('aria-roledescription="rect mark"') == (LAYERS + 1) * 4
    assert (tmp_path / "merged" / "model.safetensors").exists()
