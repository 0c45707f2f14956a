"""Settings that differ between tensors: depth is known by names, rules match something; and numbers of float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import merge
from merge.cli import main
from tests.merge.conftest import recipe, save
from tests.merge.test_engine import merged

GRADIENT = {"ct": {"weight": [0.0, 1.0]}}


def stacked(tmp_path: Path, names: list[str], **config: Any) -> dict[str, Path]:
    """base of zeros and ct of ones, with tensors of these names."""
    folders = {}
    for label, value in (("base", 0.0), ("ct", 1.0)):
        folders[label] = save(tmp_path / label, {name: torch.full((2, 2), value) for name in names})
        (folders[label] / "config.json").write_text(json.dumps({"model_type": "gemma3"} | config))
    return folders


def test_nested_configs_and_stacks_of_their_own(tmp_path: Path) -> None:
    text = [f"language_model.model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    vision = [f"vision_tower.encoder.layers.{i}.mlp.fc1.weight" for i in range(5)]
    folders = stacked(tmp_path, text + vision, text_config={"num_hidden_layers": 3})
    found = merged(recipe(folders, "task_arithmetic", GRADIENT))
    assert [float(found[name][0]) for name in text] == [0, 0.5, 1]
    assert [float(found[name][0]) for name in vision] == [0, 0.25, 0.5, 0.75, 1]


def test_an_unknown_depth_is_refused_where_a_gradient_asks_for_it(tmp_path: Path) -> None:
    folders = stacked(tmp_path, [f"transformer.resblocks.{i}.weight" for i in range(3)])
    merge.check(recipe(folders, "task_arithmetic", {"ct": {"weight": 0.5}}))
    with pytest.raises(merge.BadInput, match=r"models\.ct\.weight: a gradient over depth"):
        merge.check(recipe(folders, "task_arithmetic", GRADIENT))


def test_an_unknown_stack_beside_a_known_one_is_refused_where_a_gradient_asks_for_it(tmp_path: Path) -> None:
    known, unknown = ([f"{stack}.{i}.attn.weight" for i in range(3)] for stack in ("text.layers", "vision.resblocks"))
    folders = stacked(tmp_path, [*known, *unknown, "projector.mlp.0.weight"])
    with pytest.raises(merge.BadInput, match=r"of tensor vision\.resblocks\.0\.attn\.weight does not tell its layer"):
        merge.check(recipe(folders, "task_arithmetic", GRADIENT))
    rules = [{"filter": "resblocks", "value": 0.5}, {"value": [0.0, 1.0]}]
    merge.check(recipe(folders, "task_arithmetic", {"ct": {"weight": rules}}))


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([{"filter": "q_porj", "value": 0.1}, {"value": 1}], "weight[0]: filter 'q_porj': matches no tensor"),
        (
            [{"layers": "30-40", "value": 0.1}, {"value": 1}],
            "layers 30-40: matches no tensor; the layers are model.layers.0-2",
        ),
        ([{"kind": "mlp", "value": 0.1}], "no rule matches tensor model.embed_tokens.weight"),
    ],
)
def test_rules_that_do_not_fit_are_refused_by_the_plan(
    rules: list[Any], words: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(folders, "ties", {"ct": {"weight": rules}}).save(tmp_path / "merge.yml")
    assert main([str(tmp_path / "merge.yml"), "--plan"]) == 2
    assert words in capsys.readouterr().err


def test_a_rule_for_heads_may_find_none_where_the_head_is_the_embedding(folders: dict[str, Path]) -> None:
    merge.check(recipe(folders, "ties", {"ct": {"weight": [{"kind": "head", "value": 0.1}, {"value": 1}]}}))


def test_only_whole_numbers_is_nothing_to_merge(tmp_path: Path) -> None:
    folders = {name: save(tmp_path / name, {"model.steps": torch.tensor([1])}) for name in ("base", "ct")}
    with pytest.raises(merge.BadInput, match="no floating point tensors"):
        merge.check(recipe(folders, "task_arithmetic", {"ct": {}}))


def test_an_average_over_nothing_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(merge.BadInput, match="sum to 0"):
        merge.check(recipe(folders, "linear", {"ct": {"weight": 1}, "sft": {"weight": -1}}))
    merge.check(recipe(folders, "linear", {"ct": {"weight": 1}, "sft": {"weight": -1}}, normalize=False))


def test_what_is_written_is_finite(folders: dict[str, Path], tmp_path: Path) -> None:
    one = recipe(folders, "task_arithmetic", {"ct": {"weight": 1e7}}, out_dtype="float16")
    with pytest.raises(merge.BadInput, match=r"the merge overflows in float16; take a wider dtype"):
        merge.write(one, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "ct", "sft"]


def test_in_float32_only_smaller_weights_help(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(merge.BadInput, match="the merge overflows in float32; take smaller weights"):
        merge.write(recipe(folders, "task_arithmetic", {"ct": {"weight": 1e38}}, **{"lambda": 1e38}), tmp_path / "out")


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_float64_is_ranked_in_float64(tmp_path: Path, memory: int) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    step = 1 + torch.arange(64, dtype=torch.float64).flip(0).view(8, 8) * 2.0**-40  # all one number in float32
    folders = {
        "base": save(tmp_path / "base", {name: torch.zeros(8, 8, dtype=torch.float64)}),
        "ct": save(tmp_path / "ct", {name: step.flip(0)}),
    }
    one = recipe(folders, "ties", {"ct": {"density": 0.25}}, compute_dtype="float64")
    kept = merged(one, memory=memory)[name] != 0
    assert kept.nonzero().flatten().tolist() == step.flip(0).flatten().topk(16).indices.sort().values.tolist()


@pytest.mark.parametrize(("value", "dtype"), [(1e25, torch.float32), (1e200, torch.float64)])
def test_the_audit_of_huge_values_is_json(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folders = {
        key: save(tmp_path / key, {name: torch.full((8, 8), number, dtype=dtype)})
        for key, number in (("base", 0.0), ("ct", value), ("sft", -value))
    }
    models = {"ct": {"density": 0.5}, "sft": {"density": 0.5}}
    out = merge.write(recipe(folders, "ties", models, compute_dtype="float64"), tmp_path / "out")
    report = json.loads((out / "audit.json").read_text(), parse_constant=pytest.fail)
    norm = report["models"]["ct"]["norm"]
    assert norm == pytest.approx(8 * value) if dtype == torch.float32 else norm is None
    assert torch.isfinite(load_file(out / "model.safetensors")[name]).all()
    if dtype == torch.float32:
        report = merge.audit(recipe(folders, "ties", models))
        assert report["models"]["ct"]["norm"] == pytest.approx(8 * value)
