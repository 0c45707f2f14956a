"""The slack's switches, random signs and fixed norms in whole merges, against the same counted by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge import select
from merge.engine import pieces
from merge.engine.passes import Workers, run
from merge.engine.plan import make_plan
from merge.recipe import Recipe
from tests.merge.conftest import Keep, make_folders, recipe

HALF = {"ct": {"density": 0.5, "weight": 0.6}, "sft": {"density": 0.3}}
SWITCHES: list[dict[str, Any]] = [
    {"slack_form": "difference", "slack": 0.01},
    {"slack_form": "difference", "slack_scale": "rms"},
    {"on_slack": "both"},
    {"slack_scope": "top", "slack_share": 0.2},
    {"slack_form": "difference", "slack_scale": "rms", "on_slack": "both", "slack_scope": "top"},
]


def merged(*recipes: Recipe, workers: Workers | None = None) -> list[dict[str, torch.Tensor]]:
    plan, sinks = make_plan(recipes), [Keep() for _ in recipes]
    run(plan, sinks, workers=workers or Workers())
    plan.close()
    return [sink.tensors for sink in sinks]


def taus(folders: dict[str, Path]) -> dict[str, dict[str, torch.Tensor]]:
    base, *rest = (load_file(folders[name] / "model.safetensors") for name in ("base", "ct", "sft"))
    return {
        key: {name: (side[name] - base[name]).flatten() for name in base}
        for key, side in zip(("ct", "sft"), rest, strict=True)
    }


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def test_every_switch_is_ties_without_slack(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        folders = make_folders(tmp_path / str(dtype), dtype)
        settings = {"protect": ["sft"], "compute_dtype": "inputs"}
        plain, *others = merged(
            recipe(folders, "ties", HALF, **settings),
            *(recipe(folders, "ties", HALF, **settings | switch | {"slack": 0}) for switch in SWITCHES),
        )
        for other in others:
            assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_switches_by_hand(folders: dict[str, Path], switch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"slack": 0.5, "protect": ["sft"], **switch}
    whole = {"ct": {}, "sft": {}}
    one = recipe(folders, "ties_sv", whole, **settings)
    monkeypatch.setattr(pieces, "SLICE", 100)
    monkeypatch.setattr("merge.engine.passes.SMALL", 0)
    (found,) = merged(one, workers=Workers(threads=2))
    base, changed = load_file(folders["base"] / "model.safetensors"), taus(folders)
    lifted = 0
    for name, ct in changed["ct"].items():
        sft = changed["sft"][name]
        unit = float(sft.square().mean().sqrt()) if switch.get("slack_scale") == "rms" else 1.0
        room = settings["slack"] * (sft.abs() if settings.get("slack_form") != "difference" else unit)
        saved = (ct * sft < 0) & (ct.abs() > sft.abs()) & (ct.abs() <= sft.abs() + room)
        if "slack_scope" in switch:
            k = select.count_kept(settings.get("slack_share", 0.1), sft.numel())
            saved &= sft.abs() >= sft.abs().sort(descending=True).values[k - 1]
        lifted += int(saved.sum())
        mean, larger = (ct + sft) / 2, torch.where(ct.abs() > sft.abs(), ct, sft)
        step = torch.where(ct * sft < 0, torch.where(saved, mean if "on_slack" in switch else sft, larger), mean)
        apart = (found[name] - (base[name].flatten() + step)).abs() > 1e-6
        assert int(apart.sum()) <= 1, name  # one whose conflict is decided by the last bit of the rms
    n = sum(tensor.numel() for tensor in base.values())
    report = merge.audit(one)
    assert report["models"]["sft"]["slack_regained"] == pytest.approx(lifted / n, abs=2 / n) and lifted > 20
    given_up = report["models"]["ct"]["slack_given_up"]
    assert given_up == (0 if "on_slack" in switch else report["models"]["sft"]["slack_regained"])


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "dare_ties"])
def test_a_fixed_norm_is_met_by_the_whole_model(folders: dict[str, Path], method: str) -> None:
    settings = {"norm": 0.7, "norm_of": "sft"}
    rules = [{"kind": "mlp", "value": 2.0}, {"value": 1.0}]
    models = HALF if method != "task_arithmetic" else {"ct": {}, "sft": {}}
    one, free = recipe(folders, method, models, **settings, **{"lambda": rules}), recipe(folders, method, models)
    found, plain = merged(one, free)
    base, changed = load_file(folders["base"] / "model.safetensors"), taus(folders)
    step = {name: tensor - base[name].flatten() for name, tensor in found.items()}
    assert norm(step) == pytest.approx(0.7 * norm(changed["sft"]), rel=1e-4)
    report = merge.audit(one)["merged"]
    assert report["norm"] == pytest.approx(norm(step), rel=1e-4)
    mlp, other = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    for name, factor in ((mlp, 2.0), (other, 1.0)):  # λ keeps its proportions
        expected = report["lambda_factor"] * factor * (plain[name] - base[name].flatten())
        torch.testing.assert_close(step[name], expected, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(tensor, merged(free)[0][name]) for name, tensor in plain.items())  # nothing changes


def test_equal_norms_with_and_without_slack(folders: dict[str, Path]) -> None:
    settings = {"protect": ["sft"], "norm": 1.0}
    recipes = [recipe(folders, "ties_sv", HALF, slack=slack, **settings) for slack in (0, 2)]
    norms = [merge.audit(one)["merged"]["norm"] for one in recipes]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) == pytest.approx(norm(taus(folders)["sft"]), rel=1e-5)


def test_random_signs_keep_magnitudes(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        return merged(recipe(folders, "task_arithmetic", {"ct": {"random_signs": True}}, seed=seed))[0]

    first, other = drawn(1), drawn(2)
    monkeypatch.setattr(pieces, "SLICE", 100)
    again = drawn(1)
    base, changed = load_file(folders["base"] / "model.safetensors"), taus(folders)["ct"]
    kept = n = differing = 0
    for name, tau in changed.items():
        assert torch.equal(first[name], again[name])
        step = first[name] - base[name].flatten()
        torch.testing.assert_close(step.abs(), tau.abs(), rtol=0, atol=1e-6)
        kept += int((step * tau > 0).sum())
        n += len(tau)
        differing += int((first[name] != other[name]).sum())
    assert abs(kept - n / 2) < 5 * math.sqrt(n) / 2 and abs(differing - n / 2) < 5 * math.sqrt(n) / 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slack_scale": "rms"}, "slack_scale: "),
        ({"slack_share": 0}, "slack_share: "),
        ({"on_slack": "all"}, "on_slack: "),
        ({"norm": 1}, "norm_of: missing"),
        ({"norm": 1, "norm_of": "x"}, "norm_of: no such model"),
        ({"norm": 0, "norm_of": "ct"}, "norm: "),
    ],
)
def test_refusals(folders: dict[str, Path], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(merge.BadInput, match=words):
        recipe(folders, "ties_sv", **settings)


def test_a_recipe_with_every_key_reads_back(folders: dict[str, Path]) -> None:
    one = recipe(folders, "ties_sv", {"ct": {"random_signs": True}, "sft": {}}, **SWITCHES[-1], norm=2, norm_of="ct")
    assert Recipe.from_dict(one.to_dict()) == one
