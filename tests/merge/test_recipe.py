"""Recipes: what is read, what is refused, and that the words name the key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge import BadInput, Recipe
from merge.checkpoints.tensor_names import kind_of
from merge.per_tensor import Rule, resolve
from tests.messages import assert_one_line, assert_wording

GOOD: dict[str, Any] = {
    "method": "ties_sv", "base": "base", "slack": 0.5, "protect": ["sft"], "lambda": 1.5, "normalize": False,
    "models": {"ct": {"path": "ct", "density": 0.5}, "sft": {"path": "sft", "weight": [0.5, 1.0]}},
}  # fmt: skip


def test_a_recipe_survives_yaml(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(GOOD, root=tmp_path)
    recipe.save(tmp_path / "merge.yml")
    assert Recipe.from_yaml(tmp_path / "merge.yml") == recipe
    assert recipe.models[0].path == tmp_path / "ct" and recipe.lambda_ == 1.5 and not recipe.normalize


def test_defaults_are_the_methods() -> None:
    models = {"a": {"path": "a"}}
    assert Recipe.from_dict({"method": "ties", "base": "b", "models": models}).normalize
    assert not Recipe.from_dict({"method": "task_arithmetic", "base": "b", "models": models}).normalize
    assert Recipe.from_dict({"method": "dare_ties", "base": "b", "models": models}).rescale == "expectation"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "tiess"}, "method: no such method"),
        ({"method": "task_arithmetic"}, "no key protect"),
        ({"base": None}, "base: missing"),
        ({"slack": -1}, "slack: must be 0 or larger"),
        ({"slack": "much"}, "slack: expected a number"),
        ({"protect": ["sfft"]}, "protect: no such model, got 'sfft'. Did you mean sft?"),
        ({"protect": []}, "protect: missing"),
        ({"models": {"ct": {"path": "ct", "density": 0}}}, "models.ct.density: "),
        ({"models": {"ct": {"path": "ct", "density": 1.5}}}, "models.ct.density"),
        (
            {"models": {"ct": {"path": "ct", "densty": 1}}},
            "models.ct: method ties_sv has no key densty. Did you mean density?",
        ),
        ({"densitty": 0.5}, "method ties_sv has no key densitty. Did you mean density?"),
        ({"protct": ["sft"]}, "no key protct. Did you mean protect?"),
        ({"models": {"ct": {}}}, "models.ct.path: missing"),
        ({"models": {}}, "models: expected a mapping"),
        ({"lambda": float("nan")}, "lambda: expected a finite number"),
        ({"lambda": [{"kind": "atention", "value": 1}]}, "lambda[0].kind: "),
        ({"lambda": [{"layers": "3-1", "value": 1}]}, "lambda[0].layers: "),
        ({"normalize": "yes please"}, "normalize: "),
        ({"election": "loud"}, "election: "),
        ({"out_dtype": "int8"}, "out_dtype: "),
        ({"t": 0.5}, "no key t"),
    ],
)
def test_refusals_name_the_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as refused:
        Recipe.from_dict(GOOD | change, where="merge.yml")
    assert_one_line(refused.value, "merge.yml: ")
    assert words in str(refused.value)
    assert_wording(f"recipe: {change}", refused.value)


def test_a_setting_of_models_at_the_top_is_the_default_of_all() -> None:
    models = {"ct": {"path": "ct", "density": 0.7}, "sft": {"path": "sft"}}
    short = {"method": "ties", "base": "base", "models": models, "density": 0.5, "weight": [0.2, 0.8]}
    recipe = Recipe.from_dict(short)
    assert [(model.density, model.weight) for model in recipe.models] == [(0.7, (0.2, 0.8)), (0.5, (0.2, 0.8))]
    assert Recipe.from_dict(recipe.to_dict()) == recipe and "density" not in recipe.to_dict()
    with pytest.raises(BadInput, match="method task_arithmetic has no key density. .* ties, "):
        Recipe.from_dict(short | {"method": "task_arithmetic"})
    with pytest.raises(BadInput, match="models.sft.density: "):
        Recipe.from_dict(short | {"density": 7})


def test_of_a_models_settings_in_slices_the_nearest_counts() -> None:
    models: dict[str, Any] = {"a": {"path": "a", "density": 0.2}, "b": {"path": "b"}}
    given: dict[str, Any] = {"a": {"layers": 0}, "b": {"layers": 0}}
    slices = [
        {"layers": 0, "models": given},
        {"layers": 0, "density": 0.3, "models": given},
        {"layers": 0, "density": 0.3, "models": {**given, "b": {"layers": 0, "density": 0.4}}},
    ]
    recipe = Recipe.from_dict({"method": "ties", "base": "c", "density": 0.1, "models": models, "slices": slices})
    found = [[model.density for model in part.models] for part in recipe.slices]
    assert found == [[0.2, 0.1], [0.3, 0.3], [0.3, 0.4]]


def test_della_needs_room_for_epsilon() -> None:
    with pytest.raises(BadInput, match="epsilon"):
        Recipe.from_dict(
            {"method": "della", "base": "b", "models": {"a": {"path": "a", "density": 0.9, "epsilon": 0.2}}}
        )


def test_rules_and_gradients() -> None:
    setting = (Rule(0.1, kind="mlp", layers=(1, 2)), Rule((0.0, 1.0), filter="q_proj"), Rule(0.5))
    assert resolve(setting, "model.layers.1.mlp.up_proj.weight", 0.25) == 0.1
    assert resolve(setting, "model.layers.3.mlp.up_proj.weight", 0.75) == 0.5
    assert resolve(setting, "model.layers.3.self_attn.q_proj.weight", 0.75) == 0.75
    assert resolve((0.2, 0.4, 1.0), "model.layers.3.self_attn.q_proj.weight", 0.75) == pytest.approx(0.7)
    with pytest.raises(BadInput, match="no rule matches"):
        resolve((Rule(0.1, kind="mlp"),), "model.norm.weight", 0.0, key="density")
    assert [kind_of(name) for name in ("model.layers.0.post_attention_layernorm.weight", "lm_head.weight")] == [
        "norms",
        "head",
    ]


def test_importing_is_light() -> None:
    code = "import sys, merge, merge.__main__; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_model_of_a_mergekit_config_has_a_name_of_its_own(tmp_path: Path) -> None:
    paths = ["a/m", "b/m-1", "c/m", "d/m-2", "e/m"]
    models = [{"model": path, "parameters": {"weight": 1}} for path in paths]
    (tmp_path / "mk.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    recipe = Recipe.from_yaml(tmp_path / "mk.yml")
    assert [model.path for model in recipe.models] == [Path(f"hub:{path}") for path in paths]


def test_mergekit_config_means_what_mergekit_means(tmp_path: Path) -> None:
    config = {
        "merge_method": "dare_ties", "base_model": "base", "dtype": "bfloat16",
        "models": [
            {"model": "base"},
            {"model": "a+x", "parameters": {"weight": 0.5, "density": [{"filter": "mlp", "value": 0.1}]}},
        ],
        "parameters": {"density": 0.7, "normalize": True},
    }  # fmt: skip
    path = tmp_path / "mk.yml"
    path.write_text(yaml.safe_dump(config))
    recipe = Recipe.from_yaml(path)
    assert (recipe.election, recipe.rescale, recipe.compute_dtype, recipe.out_dtype) == (
        "weighted",
        "l1",
        "bfloat16",
        "compute",
    )
    assert recipe.tokenizer == "optional" and not recipe.exact and recipe.normalize
    (model,) = recipe.models
    assert (model.path, model.adapter) == (Path("a"), Path("x"))
    assert model.density == (Rule(0.1, filter="mlp"), Rule(0.7))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chat_template": "llama3"}, "chat_template: "),
        ({"merge_method": "ram"}, "merge_method: "),
        ({"models": [{"model": "a", "parameters": {"density": 0.5}}]}, "parameter weight is missing"),
        ({"parameters": {"spice": 1}}, "no parameter spice"),
        (
            {"models": None, "slices": [{"sources": []}, {"sources": []}]},
            "slices[0].sources: expected a list",
        ),
        ({"base_model": None}, "base_model: missing"),
    ],
)
def test_what_mergekit_has_and_we_do_not_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    config = {"merge_method": "ties", "base_model": "base", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    path = tmp_path / "mk.yml"
    path.write_text(yaml.safe_dump(config | change))
    with pytest.raises(BadInput) as refused:
        Recipe.from_yaml(path)
    assert_one_line(refused.value, str(path))
    assert words in str(refused.value)
    assert_wording(f"mergekit: {change}", refused.value, TMP=tmp_path)
