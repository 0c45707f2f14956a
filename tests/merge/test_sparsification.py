"""SCE and Arcee Fusion against their definitions on whole tensors; slices, threads and memory change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge.engine import pieces
from merge.engine.passes import DEFAULT, Workers, run
from merge.engine.plan import make_plan
from tests.merge.conftest import Keep, make_folders, recipe

CASES: dict[str, dict[str, Any]] = {
    "sce": {"method": "sce", "select_topk": 0.3},
    "arcee": {"method": "arcee_fusion", "models": {"ct": {}}},
}


def merged(stated: merge.Recipe, workers: Workers = DEFAULT) -> dict[str, torch.Tensor]:
    plan, sink = make_plan([stated]), Keep()
    run(plan, [sink], workers=workers)
    plan.close()
    return sink.tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_slices_and_memory_change_nothing(
    case: str, dtype: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = recipe(folders, **CASES[case], compute_dtype=dtype)
    whole = merged(stated)
    monkeypatch.setattr(pieces, "SLICE", 64)
    for memory in (2**29, 1):
        parts = merged(stated, Workers(threads=2, memory=memory))
        for name, tensor in whole.items():
            # SCE's weights are sums over slices: their last bits may differ
            assert torch.allclose(parts[name], tensor, rtol=1e-6 if dtype == "float32" else 1e-2, atol=0), name


def test_sce_keeps_where_models_differ_most(folders: dict[str, Path]) -> None:
    stated = recipe(folders, "sce", select_topk=0.25)
    base, ct, sft = (load_file(folders[name] / "model.safetensors") for name in ("base", "ct", "sft"))
    name = "model.layers.1.mlp.up_proj.weight"
    taus = torch.stack([ct[name] - base[name], sft[name] - base[name]])
    variance = taus.var(dim=0, unbiased=False).flatten()
    kept = torch.zeros_like(variance)
    kept[variance.argsort(descending=True)[: variance.numel() // 4]] = 1
    taus = taus * kept.view_as(base[name])
    weights = taus.square().mean(dim=(1, 2))
    votes = (taus.sign() == taus.sum(dim=0).sign()) * (weights / weights.sum())[:, None, None]
    expected = base[name] + (taus * votes).sum(dim=0) / votes.sum(dim=0).clamp(min=1e-6)
    assert torch.allclose(merged(stated)[name].view_as(expected), expected, rtol=1e-6)
    report = merge.audit(stated)
    assert report["models"]["ct"]["share_trimmed"] == pytest.approx(0.75, abs=0.01)


def test_arcee_fusion_counts_what_it_drops(folders: dict[str, Path]) -> None:
    stated = recipe(folders, "arcee_fusion", {"ct": {}})
    base = load_file(folders["base"] / "model.safetensors")
    same = [merged(stated)[name] == tensor.flatten() for name, tensor in base.items()]
    dropped = float(torch.cat(same).float().mean())
    assert merge.audit(stated)["models"]["ct"]["share_trimmed"] == pytest.approx(dropped, abs=1e-3) and dropped > 0.5


@pytest.mark.parametrize("method", ["sce", "arcee_fusion"])
def test_models_that_are_the_base_change_nothing(method: str, tmp_path: Path) -> None:
    folders = make_folders(tmp_path)
    models = {"same": {}} if method == "arcee_fusion" else {"same": {}, "other": {}}
    out = merged(recipe({"base": folders["base"], "same": folders["base"], "other": folders["base"]}, method, models))
    base = load_file(folders["base"] / "model.safetensors")
    assert all(torch.equal(out[name], tensor.flatten()) for name, tensor in base.items())
