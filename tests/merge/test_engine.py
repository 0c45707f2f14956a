"""Whole merges of tiny checkpoints.

To disk, to memory, in a grid, in slices; and the audit against counting by hand.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge import select
from merge.auditing import Audit, audit_many
from merge.engine import passes, pieces
from merge.engine.in_memory import load_many
from merge.engine.passes import Workers, run
from merge.engine.plan import make_plan
from merge.methods import METHODS, SLERP, SPAN
from merge.output.writer import write_many
from merge.recipe import Recipe
from tests.merge.conftest import Keep, make_folders, recipe

HALF = {"ct": {"density": 0.5, "weight": 0.6}, "sft": {"density": 0.3}}


def merged(one: Recipe, **options: Any) -> dict[str, torch.Tensor]:
    plan, sink = make_plan([one]), Keep()
    run(plan, [sink], workers=Workers(**options))
    plan.close()
    return sink.tensors


def every_method(folders: dict[str, Path]) -> list[Recipe]:
    found = []
    for method, spec in METHODS.items():
        given = HALF if spec.sparsify else {"ct": {"weight": 0.6}, "sft": {}}
        models = {
            name: {key: value for key, value in own.items() if key in spec.model_keys} for name, own in given.items()
        }
        extra: dict[str, Any] = {"slack": 0.5, "protect": ["sft"]} if spec.elect else {}
        found.append(recipe(folders, method, {"ct": {}} if spec.counts[1] == 1 else models, **extra))
    return found


def test_slices_threads_and_memory_change_nothing(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = every_method(folders)
    whole = [merged(one) for one in recipes]
    monkeypatch.setattr(pieces, "SLICE", 100)
    monkeypatch.setattr("merge.engine.passes.SMALL", 0)
    for one, expected in zip(recipes, whole, strict=True):
        sliced = merged(one, threads=3, memory=0)
        for name, tensor in expected.items():
            if one.spec.combine in (SLERP, SPAN) or one.method == "sce":  # whose factors are sums over slices
                torch.testing.assert_close(sliced[name], tensor, msg=f"{one.method} {name}")
            else:
                assert torch.equal(sliced[name], tensor), (one.method, name)


def test_grid_gives_what_single_merges_give(folders: dict[str, Path]) -> None:
    recipes = every_method(folders)[1:]
    recipes += [recipe(folders, method, HALF, rescale="l1") for method in ("dare_linear", "della_linear")]
    plan, sinks = make_plan(recipes), [Keep() for _ in recipes]
    run(plan, sinks)
    for one, sink in zip(recipes, sinks, strict=True):
        alone = merged(one)
        assert all(torch.equal(alone[name], tensor) for name, tensor in sink.tensors.items()), one.method


def test_ties_by_hand(folders: dict[str, Path]) -> None:
    found = merged(recipe(folders, "ties", HALF, **{"lambda": 1.5}))
    base, ct, sft = (load_file(folders[name] / "model.safetensors") for name in ("base", "ct", "sft"))
    for name, theta in base.items():
        taus = []
        for side, density in ((ct, 0.5), (sft, 0.3)):
            tau = (side[name] - theta).flatten()
            order = tau.abs().argsort(descending=True, stable=True)[: select.count_kept(density, tau.numel())]
            taus.append(torch.zeros_like(tau).index_copy(0, order, tau[order]))
        sign = torch.where(taus[0] + taus[1] >= 0, 1.0, -1.0)
        alive = [tau * sign > 0 for tau in taus]
        top = 0.6 * taus[0] * alive[0] + taus[1] * alive[1]
        step = top / (0.6 * alive[0] + 1.0 * alive[1]).clamp_min(0.1)
        torch.testing.assert_close(found[name], theta.flatten() + 1.5 * step, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "ties_sv", "dare_ties", "linear", "breadcrumbs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_whole_model_comes_back_bit_for_bit(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folders = make_folders(tmp_path, dtype)
    out = merge.write(recipe(folders, method, {"ct": {}}), tmp_path / "out")
    found, expected = load_file(out / "model.safetensors"), load_file(folders["ct"] / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == dtype for name, tensor in expected.items())


def test_dare_drops_its_share_and_the_seed_decides_which(folders: dict[str, Path]) -> None:
    base = load_file(folders["base"] / "model.safetensors")
    first, again, other = (
        merged(recipe(folders, "dare_linear", {"ct": {"density": 0.25}}, seed=seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    tau = torch.cat([first[name] - base[name].flatten() for name in base])
    n = len(tau)
    assert abs(float((tau != 0).float().mean()) - 0.25) < 5 * (0.25 * 0.75 / n) ** 0.5


def test_rules_reach_the_tensors_they_name(folders: dict[str, Path]) -> None:
    rules = [{"kind": "mlp", "layers": "1-2", "value": 1.0}, {"value": 0.0}]
    found = merged(recipe(folders, "task_arithmetic", {"ct": {"weight": rules}}))
    base, ct = (load_file(folders[name] / "model.safetensors") for name in ("base", "ct"))
    for name, tensor in found.items():
        expected = ct if ".mlp." in name and "layers.0" not in name else base
        torch.testing.assert_close(tensor, expected[name].flatten())


def test_load_and_write_agree_and_the_model_runs(folders: dict[str, Path], tmp_path: Path) -> None:
    recipes = [recipe(folders, "ties_sv", HALF, slack=slack, protect=["sft"]) for slack in (0, 1)]
    outs = write_many(recipes, [tmp_path / "a", tmp_path / "b"], shard_bytes=20_000)
    for (one, model), out in zip(load_many(recipes, at_once=1), outs, strict=True):
        index = json.loads((out / "model.safetensors.index.json").read_text())
        stored = {
            name: tensor for file in set(index["weight_map"].values()) for name, tensor in load_file(out / file).items()
        }
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
        assert not model.training and model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
        assert Recipe.from_yaml(out / "merge.yml") == one
        again = type(model).from_pretrained(out)
        assert torch.equal(again.model.embed_tokens.weight, model.model.embed_tokens.weight)


def test_a_written_merge_is_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    (folders["base"] / "generation_config.json").write_text('{"eos_token_id": 2}')
    out = merge.write(recipe(folders, "ties", HALF), tmp_path / "out")
    assert {path.name for path in out.iterdir()} >= {
        "model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "README.md", "merge.yml",
        "audit.json",
    }  # fmt: skip
    card = (out / "README.md").read_text()
    assert "--from-card README.md OUT_DIR" in card and "ct (`ct`), sft (`sft`)" in card and "sha256" in card
    assert str(tmp_path) not in card
    assert {path.name for path in tmp_path.iterdir()} == {"base", "ct", "sft", "out"}
    with pytest.raises(merge.BadInput, match="exists already"):
        merge.write(recipe(folders, "ties", HALF), out)


@pytest.mark.parametrize("done", [1, 40])  # in the survey, and while weights are written
def test_an_interrupted_merge_leaves_nothing(folders: dict[str, Path], tmp_path: Path, done: int) -> None:
    one = recipe(folders, "ties", HALF)
    plan = make_plan([one])
    tensors = len(plan.outputs)
    plan.close()
    assert 1 < tensors < 40 < 2 * tensors
    passed = itertools.count(1)

    def stop(*_: object) -> None:
        if next(passed) == done:
            assert any("part" in path.name for path in tmp_path.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge.write(one, tmp_path / "out", workers=Workers(progress=stop))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "ct", "sft"]


def test_audit_counts_what_counting_by_hand_counts(folders: dict[str, Path]) -> None:
    slack = 1.0
    report = merge.audit(recipe(folders, "ties_sv", HALF, slack=slack, protect=["sft"]))
    base, ct, sft = (load_file(folders[name] / "model.safetensors") for name in ("base", "ct", "sft"))
    count = dict.fromkeys(("trimmed", "conflict", "lost", "lost_plain", "top", "top_trimmed"), 0)
    energy = used = 0.0
    for name, theta in base.items():
        tau = {"ct": (ct[name] - theta).flatten(), "sft": (sft[name] - theta).flatten()}
        thin = {}
        for key, density in (("ct", 0.5), ("sft", 0.3)):
            order = tau[key].abs().argsort(descending=True, stable=True)[: select.count_kept(density, tau[key].numel())]
            thin[key] = torch.zeros_like(tau[key]).index_copy(0, order, tau[key][order])
        mine, other = thin["sft"], thin["ct"]
        conflict = mine * other < 0
        loses = conflict & ((1 + slack) * mine.abs() < other.abs())
        count["trimmed"] += int((mine == 0).sum())
        count["conflict"] += int(conflict.sum())
        count["lost"] += int(loses.sum())
        count["lost_plain"] += int((conflict & (mine.abs() < other.abs())).sum())
        top = tau["sft"].abs().argsort(descending=True)[: select.count_kept(0.05, mine.numel())]
        count["top"] += len(top)
        count["top_trimmed"] += int((mine[top] == 0).sum())
        energy += float(tau["sft"].double().square().sum())
        used += float((mine * ~loses).double().square().sum())
    n = sum(tensor.numel() for tensor in base.values())
    seen = report["models"]["sft"]
    assert seen["parameters"] == n
    for key, name in (
        ("trimmed", "share_trimmed"),
        ("conflict", "share_in_conflict"),
        ("lost", "share_lost_in_conflict"),
    ):
        assert seen[name] == count[key] / n
    assert seen["slack_regained"] == (count["lost_plain"] - count["lost"]) / n > 0
    assert report["models"]["ct"]["slack_given_up"] == seen["slack_regained"]
    assert seen["norm_lost"] == pytest.approx(1 - math.sqrt(used / energy), rel=1e-4)
    assert seen["top"]["5%"]["share_of_parameters"] == count["top"] / n
    assert seen["top"]["5%"]["share_trimmed"] == count["top_trimmed"] / n
    assert set(report["by_kind"]) == {"attention", "embeddings", "mlp", "norms"} and list(report["by_layer"]) == [
        "0",
        "1",
        "2",
        "outside",
    ]
    json.dumps(report, allow_nan=False)


def test_audit_is_the_same_whatever_thread_ends_first(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "SMALL", 0)  # else a model this small is one thread's
    asked = recipe(folders, "ties", HALF)
    reports = [json.dumps(audit_many([asked], Workers(threads=2))[0]) for _ in range(8)]
    assert len(set(reports)) == 1 and list(json.loads(reports[0])["models"]) == [model.name for model in asked.models]


def test_audit_does_not_depend_on_slices(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipes = every_method(folders)[1:]
    whole = audit_many(recipes)
    monkeypatch.setattr(pieces, "SLICE", 100)
    for one, two in zip(whole, audit_many(recipes, Workers(memory=0)), strict=True):
        for name, row in one["models"].items():
            other = two["models"][name]
            assert row.pop("top") == other.pop("top")
            assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    audit = Audit(recipes[-1])
    plan = make_plan(recipes[-1:])
    run(plan, [None], [audit])
    assert len(audit.rows()) == 2 * len(plan.outputs)
    audit.save(tmp_path)
    import pandas

    assert len(pandas.read_parquet(tmp_path / "audit.parquet")) == 2 * len(plan.outputs)
