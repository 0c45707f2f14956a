"""Our merges of mergekit configs against real mergekit, tensor by tensor.

Needs an environment with mergekit: see tests/merge/oracle.py. All configs run in one process of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import merge
from merge.engine.plan import make_plan
from tests.merge.conftest import make_folders
from tests.merge.oracle import Tensors, at_threshold, load, needs_mergekit, run_mergekit, stored

pytestmark = needs_mergekit

DTYPES: dict[str, dict[str, str]] = {
    "fp32": {},
    "bf16": {},
    "bf16_in_fp32": {"dtype": "float32", "out_dtype": "bfloat16"},
}
PARTS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "linear": ([{"weight": 0.3}, {"weight": 0.9}], {}),
    "linear_sum": ([{"weight": 0.3}, {"weight": 0.9}], {"normalize": False}),
    "task_arithmetic": ([{"weight": 0.7}, {"weight": 0.4}], {"lambda": 1.3}),
    "task_arithmetic_mean": ([{"weight": 0.7}, {"weight": 0.4}], {"normalize": True}),
    "ties": ([{"weight": 0.5, "density": 0.5}, {"weight": 0.3, "density": 0.2}], {"lambda": 1.5}),
    "ties_sum": (
        [{"weight": 1.0, "density": 0.37}, {"weight": 1.0, "density": 1.0}],
        {"normalize": False, "int8_mask": True},
    ),
    "ties_negative": ([{"weight": -0.5, "density": 0.5}, {"weight": 1.0, "density": 0.5}], {}),
    "ties_rules": (
        [{"weight": [0.2, 0.8], "density": [{"filter": "mlp", "value": [0.3, 0.9]}, {"value": 0.6}]}, {"weight": 0.3}],
        {"density": 0.5, "lambda": [{"filter": "self_attn", "value": 0.5}, {"value": 1.1}]},
    ),
    "ties_rescaled": ([{"weight": 0.5, "density": 0.5}, {"weight": 0.3, "density": 0.2}], {"rescale": True}),
    "breadcrumbs": ([{"weight": 0.5, "density": 0.5, "gamma": 0.1}, {"weight": 0.3, "density": 0.7}], {}),
    "breadcrumbs_ties": (
        [{"weight": 0.5, "density": 0.95, "gamma": 0.1}, {"weight": 0.3, "density": 0.7}],
        {"normalize": True},
    ),
    "slerp": ([{}], {"t": [0.2, 0.9]}),
    "nearswap": ([{}], {"t": 0.01}),
    "model_stock": ([{}, {}], {}),
    "nuslerp": ([{"weight": 0.7}, {"weight": 0.2}], {}),
    "multislerp": ([{"weight": 0.7}, {"weight": 0.2}], {}),
    "karcher": ([{}, {}], {}),
    "sce": ([{}, {}], {}),
    "sce_select": ([{}, {}], {"select_topk": [{"filter": "mlp", "value": 0.2}, {"value": [0.7, 0.4]}]}),
    "arcee_fusion": ([{}], {}),
    "dare_linear_whole": ([{"weight": 0.5, "density": 1.0}, {"weight": 0.3, "density": 1.0}], {}),
    "della_whole": ([{"weight": 0.5, "density": 1.0}, {"weight": 0.3, "density": 1.0}], {}),
}
RANDOM: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "dare_linear": ([{"weight": 0.5, "density": 0.5}, {"weight": 0.3, "density": 0.2}], {}),
    "dare_ties": ([{"weight": 0.5, "density": 0.5}, {"weight": 0.3, "density": 0.2}], {}),
    "della": ([{"weight": 0.5, "density": 0.5}, {"weight": 0.3, "density": 0.4}], {}),
    "della_linear": ([{"weight": 0.5, "density": 0.5, "epsilon": 0.3}, {"weight": 0.3, "density": 0.4}], {}),
}
METHODS = (
    "linear", "task_arithmetic", "ties", "breadcrumbs_ties", "breadcrumbs", "slerp",
    "dare_linear", "dare_ties", "della_linear", "della", "nearswap", "model_stock", "nuslerp", "multislerp", "karcher",
    "sce", "arcee_fusion",
)  # fmt: skip
# Whole-tensor angles: mergekit sums them in the compute dtype, in bfloat16 too coarsely to hold anything against.
SPAN = ("model_stock", "nuslerp", "multislerp", "karcher")
DETERMINISTIC = [f"{name}-{dtype}" for dtype in DTYPES for name in PARTS if not (name in SPAN and dtype == "bf16")]
CASES = DETERMINISTIC + [f"{name}-fp32" for name in RANDOM]
# Sums over the tensor are float64 here and float32 in mergekit: the factor may differ by its last bits.
SUMS = ("slerp", "ties_rescaled", "sce", *SPAN)


@dataclass
class Case:
    """Both results, and our recipe."""

    ours: Tensors
    theirs: Tensors
    recipe: merge.Recipe


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("oracle")
    parents = {
        dtype: make_folders(root / dtype, torch.float32 if dtype == "fp32" else torch.bfloat16) for dtype in DTYPES
    }
    jobs = []
    for case in CASES:
        name, dtype = case.rsplit("-", 1)
        method = next(method for method in sorted(METHODS, key=len, reverse=True) if name.startswith(method))
        models, shared = (PARTS | RANDOM)[name]
        folders = parents[dtype]
        listed = [
            {"model": str(folders[key]), "parameters": own} for key, own in zip(("ct", "sft"), models, strict=False)
        ]
        data: dict[str, Any] = {"merge_method": method, "models": listed, "parameters": shared, **DTYPES[dtype]}
        if method not in ("linear", "karcher"):
            data["base_model"] = str(folders["base"])
        path = root / f"{case}.yml"
        path.write_text(yaml.safe_dump(data))
        jobs.append((path, root / f"theirs-{case}"))
    run_mergekit(jobs)
    result = {}
    for case in CASES:
        recipe = merge.Recipe.from_yaml(root / f"{case}.yml")
        result[case] = Case(load(merge.write(recipe, root / f"ours-{case}")), load(root / f"theirs-{case}"), recipe)
    return result


@pytest.mark.parametrize("case", DETERMINISTIC)
def test_deterministic_methods_agree(case: str, merged: dict[str, Case]) -> None:
    """Equal, but for ties at a trimming threshold, of which mergekit's unstable sort keeps any and we the first."""
    found, loose = merged[case], case.startswith(SUMS)
    plan = make_plan([found.recipe])
    assert found.ours.keys() == found.theirs.keys()
    apart = tied = total = 0
    for output in plan.outputs:
        mine, other = found.ours[output.name], found.theirs[output.name]
        if case == "arcee_fusion-bf16":  # theirs is written in float32: the sum before it is rounded
            other = other.to(mine.dtype)
        assert mine.dtype == other.dtype and mine.shape == other.shape
        explained = at_threshold(found.recipe, plan, output)
        differs = (mine != other) & ~explained
        if loose:  # one rounding of the result, and a few of the step, whose factor comes from the sums
            size = mine.float().abs() + 4 * (mine.float() - stored(plan, plan.leader, output).float()).abs()
            if case.startswith(SPAN):  # several factors, and terms that cancel each other
                size = size + 8 * sum(stored(plan, parent, output).float().abs() for parent in plan.parents)
            differs &= (mine.float() - other.float()).abs() > size * torch.finfo(mine.dtype).eps
        apart, tied, total = apart + int(differs.sum()), tied + int((mine != other).sum()), total + mine.numel()
    plan.close()
    print(f"{case}: {tied} of {total} elements differ, {apart} of them unexplained")
    assert apart == 0


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_agree_on_average(name: str, merged: dict[str, Case], tmp_path: Path) -> None:
    """The step taken has the same mean, size and number of untouched parameters, within five standard errors."""
    ours, theirs = merged[f"{name}-fp32"].ours, merged[f"{name}-fp32"].theirs
    base = load_file(make_folders(tmp_path)["base"] / "model.safetensors")
    steps = [torch.cat([(side[key] - base[key]).flatten() for key in base]) for side in (ours, theirs)]
    n = len(steps[0])
    untouched = [float((step == 0).float().mean()) for step in steps]
    error = (untouched[0] * (1 - untouched[0]) * 2 / n) ** 0.5
    assert abs(untouched[0] - untouched[1]) < 5 * error
    squares = [step.square() for step in steps]
    error = float((squares[0].var() + squares[1].var()) / n) ** 0.5
    assert abs(float(squares[0].mean() - squares[1].mean())) < 5 * error
