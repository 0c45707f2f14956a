"""Restacked layers against real mergekit: every tensor, and the number of layers that the config states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import merge
from merge.engine.plan import make_plan
from tests.merge.conftest import make_folders
from tests.merge.oracle import at_threshold, load, needs_mergekit, run_mergekit, stored

pytestmark = needs_mergekit

Config = dict[str, Any]


def source(model: Path, first: int, end: int, **parameters: Any) -> Config:
    return {"model": str(model), "layer_range": [first, end], **({"parameters": parameters} if parameters else {})}


def stacked(*slices: Config | list[Config], **config: Any) -> Config:
    listed = [part if isinstance(part, dict) else {"sources": part} for part in slices]
    return {"merge_method": "passthrough", "slices": listed, **config}


def frankenmerge(f: dict[str, Path]) -> Config:
    return stacked([source(f["ct"], 0, 2)], [source(f["sft"], 1, 3)])


def scaled(f: dict[str, Path]) -> Config:
    rules = [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": [0.3, 0.7]}, {"value": 1.0}]
    return stacked([source(f["ct"], 0, 3)], [source(f["ct"], 1, 3, scale=rules)])


def scaled_by_scopes(f: dict[str, Path]) -> Config:
    own = [{"filter": "layers.1", "value": 0.5}]  # by the names in the model, not in the result
    third = {"sources": [source(f["ct"], 1, 3, scale=own)], "parameters": {"scale": [0.25, 2.0]}}
    return stacked([source(f["sft"], 1, 2)], third, parameters={"scale": 1.5})


def whole_model(f: dict[str, Path]) -> Config:
    entry = {"model": str(f["sft"]), "parameters": {"scale": 1.1}}
    return {"merge_method": "passthrough", "models": [entry]}


def linear(f: dict[str, Path]) -> Config:
    return stacked(
        [source(f["ct"], 0, 2, weight=0.3), source(f["sft"], 1, 3, weight=[0.9, 0.1])],
        [source(f["sft"], 2, 3, weight=1.0)],
        [source(f["base"], 0, 2, weight=0.4), source(f["ct"], 0, 2, weight=0.7)],
        merge_method="linear",
    )


def slerp(f: dict[str, Path]) -> Config:
    t = [{"filter": "self_attn", "value": [0.0, 0.5, 1.0]}, {"filter": "mlp", "value": [1.0, 0.2]}, {"value": 0.5}]
    sources = [source(f["base"], 0, 3), source(f["sft"], 0, 3)]
    return stacked(sources, merge_method="slerp", base_model=str(f["base"]), parameters={"t": t})


def ties(f: dict[str, Path]) -> Config:
    first = {
        "sources": [
            source(f["base"], 0, 2),
            source(f["ct"], 0, 2, weight=0.5, density=[0.3, 0.9]),
            source(f["sft"], 1, 3, weight=0.3, density=0.4),
        ],
        "parameters": {"lambda": [0.5, 1.5]},
    }
    second = [source(f["ct"], 2, 3, weight=0.8), source(f["base"], 2, 3)]
    shared = {"density": 0.6, "lambda": 1.2}
    return stacked(first, second, merge_method="ties", base_model=str(f["base"]), parameters=shared)


def bases_of_their_own(f: dict[str, Path]) -> Config:
    first = [source(f["base"], 0, 2), source(f["ct"], 0, 2, weight=0.5)]
    second = {"sources": [source(f["sft"], 1, 2), source(f["ct"], 1, 2, weight=0.7)], "base_model": str(f["sft"])}
    return stacked(first, second, merge_method="task_arithmetic", base_model=str(f["base"]))


CASES: tuple[Callable[[dict[str, Path]], Config], ...] = (
    frankenmerge, scaled, scaled_by_scopes, whole_model, linear, slerp, ties, bases_of_their_own,
)  # fmt: skip
DTYPES = ("fp32", "bf16", "untied")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configs, and what mergekit makes of them."""
    root = tmp_path_factory.mktemp("oracle-slices")
    jobs = []
    for dtype in DTYPES:
        folders = make_folders(root / dtype, torch.bfloat16 if dtype == "bf16" else torch.float32, dtype != "untied")
        for case in CASES:
            config = root / f"{case.__name__}-{dtype}.yml"
            config.write_text(yaml.safe_dump(case(folders)))
            jobs.append((config, root / f"theirs-{config.stem}"))
    run_mergekit(jobs)
    return root


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_restacked_layers_are_mergekits(case: str, dtype: str, root: Path) -> None:
    name = f"{case}-{dtype}"
    out = merge.write(merge.Recipe.from_yaml(root / f"{name}.yml"), root / f"ours-{name}")
    ours, theirs = load(out), load(root / f"theirs-{name}")
    assert ours.keys() == theirs.keys()
    assert _layers(out) == _layers(root / f"theirs-{name}")
    again = merge.Recipe.from_yaml(out / "merge.yml")
    plan = make_plan([again])
    for output in plan.outputs:
        mine, other = ours[output.name], theirs[output.name]
        assert mine.dtype == other.dtype and mine.shape == other.shape
        differs = (mine != other) & ~at_threshold(again, plan, output)
        if case == "slerp":  # float64 sums here, float32 there: the factors' last bits
            size = sum(stored(plan, parent, output).float().abs() for parent in output.sources)
            differs &= (mine.float() - other.float()).abs() > 4 * size * torch.finfo(mine.dtype).eps
        assert not differs.any(), output.name
    plan.close()
    repeated = load(merge.write(again, root / f"again-{name}"))
    assert repeated.keys() == ours.keys() and all(torch.equal(repeated[key], ours[key]) for key in ours)


def _layers(folder: Path) -> int:
    layers: int = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    return layers
