"""Compiled merges against those on tensors, bit for bit: the latter are the definition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from common.errors import BadInput
from merge.auditing import Audit
from merge.engine import fused, pieces
from merge.engine.outputs import Output
from merge.engine.passes import Workers, run, survey
from merge.engine.plan import make_plan
from merge.engine.tensor_recipe import TaskVectorMerge, TensorRecipe
from merge.loops.machine_code import OFF, compiled_loops
from merge.loops.tables import BFLOAT16, EXACT, FLOAT16, KINDS, MergeCall, Row, Scalar, Stored
from merge.recipe import Recipe

pytest.importorskip("numba")

DTYPES = ("float32", "bfloat16", "float16", "float64")
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 2.0**-149, -(2.0**-140), 2.0**-24, 2.0**-15, 6e4, -6e4, 1e-8]


@pytest.fixture(autouse=True, scope="module")
def small_models_too() -> Iterator[None]:
    """Compiled loops whatever the size, and slices of a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "WORTH", 0)
        patch.setattr(fused, "WORTH_COMPILING", 0)
        patch.setattr(fused, "WHERE_FASTER", False)
        patch.setattr(pieces, "SLICE", 64)
        patch.delenv(OFF, raising=False)
        assert compiled_loops([EXACT, BFLOAT16, FLOAT16], tell=False) is not None
        yield


class Kept:
    """A sink that keeps what is written."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        whole = self.found.setdefault(output.name, torch.zeros(output.numel, dtype=values.dtype))
        whole[start : start + len(values)] = values


def both_ways(recipes: list[Recipe], audited: bool) -> list[tuple[Any, Any]]:
    """(tensors by name, the audit's report) of each recipe, compiled and on tensors; or what was raised."""
    ways = []
    for off in ("", "1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(OFF, off)
            plan = make_plan(recipes)
            audits = [Audit(recipe) if audited else None for recipe in recipes]
            sinks = [Kept() for _ in recipes]
            try:
                surveyed = survey(plan, audits, Workers(threads=1))
                run(plan, sinks, audits, Workers(threads=1), surveyed)
                reports = [audit and (audit.report(), audit.rows()) for audit in audits]
                ways.append([(sink.found, report) for sink, report in zip(sinks, reports, strict=True)])
            except BadInput as error:
                ways.append([(str(error), None)] * len(recipes))
            finally:
                plan.close()
    return list(zip(*ways, strict=True))


def assert_same(recipes: list[Recipe], audited: bool = True) -> None:
    for (mine, my_report), (theirs, their_report) in both_ways(recipes, audited):
        if isinstance(theirs, str):
            assert mine == theirs
            continue
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            kind = BITS[tensor.dtype.itemsize]
            assert mine[name].dtype == tensor.dtype
            assert mine[name].view(kind).tolist() == tensor.view(kind).tolist(), (name, mine[name], tensor)
        assert_close(my_report, their_report)


def assert_close(mine: Any, theirs: Any) -> None:
    """Counts are the same; norms are sums of floats, in another order, and on tensors of squares that float32 holds."""
    assert type(mine) is type(theirs)
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for key in theirs:
            if key in ("norm", "norm_lost"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-5, abs=1e-6 if key == "norm_lost" else 0)
            else:
                assert_close(mine[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        for one, other in zip(mine, theirs, strict=True):
            assert_close(one, other)
    else:
        assert mine == theirs


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return folder


def drawn_values(draw: st.DrawFn, rows: int, columns: int, dtype: str, extra: list[float]) -> torch.Tensor:
    """Random values, many of them the same, some of them special."""
    seed = draw(st.integers(0, 2**32 - 1))
    generator = numpy.random.default_rng(seed)
    size = rows * columns
    values = generator.standard_normal(size) * draw(st.sampled_from([1.0, 1e-3, 1e-38, 1e-6]))
    if draw(st.booleans()):
        values = numpy.round(values * 4) / 4
    places = generator.random(size)
    specials = generator.choice(SPECIAL + extra, size)
    values = numpy.where(places < draw(st.sampled_from([0.0, 0.3, 0.9])), specials, values)
    return torch.from_numpy(values).to(getattr(torch, dtype)).view(rows, columns)


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("linear", {"normalize": False}),
    ("task_arithmetic", {}),
    ("task_arithmetic", {"normalize": True}),
    ("ties", {}),
    ("ties", {"normalize": False, "election": "weighted"}),
    ("ties", {"rescale": "expectation"}),
    ("ties", {"rescale": "l1"}),
    ("breadcrumbs", {}),
    ("breadcrumbs_ties", {}),
    ("dare_linear", {"seed": 1}),
    ("dare_ties", {"seed": 2, "rescale": "none"}),
    ("della", {"seed": 3}),
    ("della_linear", {"seed": 4, "rescale": "l1"}),
    ("ties_sv", {"slack": 0.5}),
    ("ties_sv", {"slack": 0.0}),
    ("ties_sv", {"slack": math.inf}),
    ("ties_sv", {"slack": 1.0, "on_slack": "both"}),
    ("ties_sv", {"slack": 1.0, "election": "weighted"}),
    ("ties_sv", {"slack": 0.7, "slack_form": "difference"}),
    ("ties_sv", {"slack": 0.7, "slack_form": "difference", "slack_scale": "rms"}),
    ("ties_sv", {"slack": 0.7, "slack_scope": "top", "slack_share": 0.3}),
    ("ties_sv", {"slack": math.inf, "slack_scope": "top", "slack_share": 0.2, "on_slack": "both"}),
    ("ties", {"norm": 1.0, "norm_of": "m0"}),
]


@st.composite
def merges(draw: st.DrawFn) -> dict[str, Any]:
    method, options = draw(st.sampled_from(METHODS))
    rows, columns, count = draw(st.integers(1, 9)), draw(st.integers(1, 41)), draw(st.integers(1, 4))
    alike = draw(st.sampled_from(DTYPES))
    stored = [draw(st.sampled_from((alike, alike, *DTYPES))) for _ in range(count + 1)]
    extra = draw(st.sampled_from([[], [], [3e38, -3e38], [math.inf], [math.nan]]))
    tensors = [drawn_values(draw, rows, columns, stored[m], extra if m else []) for m in range(count + 1)]
    weights = st.sampled_from([1.0, 0.5, 0.3, 2.0, -0.5, 0.0])
    return {
        "tensors": tensors,
        "method": method,
        "options": options
        | {"compute_dtype": draw(st.sampled_from((*DTYPES, "inputs")))}
        | {"out_dtype": draw(st.sampled_from((*DTYPES, "base", "compute")))},
        "lambda": draw(st.sampled_from([1.0, 0.7, 1.5, -1.0])),
        "weights": [draw(weights) for _ in range(count)],
        "densities": [draw(st.sampled_from([1.0, 0.5, 0.2, 0.01, 0.9])) for _ in range(count)],
        "audited": draw(st.booleans()),
    }


def recipe_of(folder: Path, made: dict[str, Any]) -> Recipe:
    from merge.methods import METHODS as ROWS

    spec = ROWS[made["method"]]
    base, *others = (
        checkpoint(folder / str(i), {"a.weight": tensor, "b.weight": tensor[0].clone()})
        for i, tensor in enumerate(made["tensors"])
    )
    models = {}
    for m, (path, weight, density) in enumerate(zip(others, made["weights"], made["densities"], strict=True)):
        entry: dict[str, Any] = {"path": str(path), "weight": weight}
        if "density" in spec.model_keys:
            entry["density"] = density
        if "epsilon" in spec.model_keys:
            entry["epsilon"] = min(density, 1 - density) / 2
        models[f"m{m}"] = entry
    data = {"method": made["method"], "models": models, "tokenizer": "optional"} | made["options"]
    if spec.base:
        data |= {"base": str(base), "lambda": made["lambda"]}
    if "norm" in data:
        data |= {"lambda": 1.0}
    if "slack" in data:
        data |= {"protect": ["m0"]}
    return Recipe.from_dict(data)


@given(merges())
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_compiled_merges_are_those_on_tensors(tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("merge")
    try:
        recipe = recipe_of(folder, made)
        make_plan([recipe]).close()
    except BadInput:
        return
    assert_same([recipe], made["audited"])


@pytest.mark.parametrize("certain", [True, False])
def test_norms_that_depend_on_the_order_of_additions_are_those_on_tensors(
    tmp_path: Path, certain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DELLA's l1 rescaling: sums of magnitudes by a loop, and again on tensors where rounding could tell them apart."""
    values = torch.randn(3, 9, 40, generator=torch.Generator().manual_seed(0))
    base, *models = (
        str(checkpoint(tmp_path / str(i), {"a.weight": value.bfloat16()})) for i, value in enumerate(values)
    )
    listed = {f"m{i}": {"path": path, "density": 0.5} for i, path in enumerate(models)}
    data = {"method": "della", "rescale": "l1", "base": base, "models": listed, "tokenizer": "optional"}
    passes: list[bool] = []

    def gather(self: TaskVectorMerge, piece: pieces.Piece, with_loop: bool) -> None:
        passes.append(with_loop)
        gathered(self, piece, with_loop)

    gathered = TaskVectorMerge._gather_magnitudes
    monkeypatch.setattr(TaskVectorMerge, "_gather_magnitudes", gather)
    monkeypatch.setattr(TaskVectorMerge, "_is_certain", lambda self, total: certain)
    assert_same([Recipe.from_dict(data)], audited=False)
    slices = 9
    assert passes == [True] * slices + ([] if certain else [False] * slices) + [False] * slices


def test_a_sum_between_two_numbers_of_a_dtype_is_not_certain(tmp_path: Path) -> None:
    (recipe,) = recipes_of_one(tmp_path, 2.0, torch.bfloat16, {"compute_dtype": "float32"})
    plan = make_plan([recipe])
    tensor = TensorRecipe.of(recipe, plan, plan.outputs[0])
    plan.close()
    assert isinstance(tensor, TaskVectorMerge)
    halfway = 1 + 2.0**-24
    assert [tensor._is_certain(total) for total in (1.0, halfway, halfway + 2.0**-50, halfway + 2.0**-30)] == [
        True, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("written", list(KINDS))
@pytest.mark.parametrize("stored", list(KINDS))
def test_every_number_is_read_and_written_as_torch_does(stored: torch.dtype, written: torch.dtype) -> None:
    """All finite numbers of 16 bits; of float32 many patterns, those half-way between numbers of 16 bits among them."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    if stored == torch.float32:
        low = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
        values = ((patterns[:, None] << 16) | low).view(-1).view(torch.float32)
    else:
        values = patterns.to(torch.int16).view(stored)
    values = values[values.isfinite() & values.to(written).isfinite()]
    loops = compiled_loops([EXACT], tell=False)
    assert loops is not None
    copy, out = MergeCall(loops[EXACT]["average"], 1), Stored(torch.empty(len(values), dtype=written))
    copy.settings[Row.WEIGHT], copy.scalars[Scalar.SHARE] = 1, 1
    weights = Stored.of(values, torch.float32)
    assert copy([weights, weights], [out]) == 0
    bits = BITS[written.itemsize]
    assert torch.equal(out.values.view(bits), (0 + values).to(written).view(bits))


@pytest.mark.parametrize(("value", "found"), [(1.0, 0), (3.4e38, 1), (math.inf, 3), (math.nan, 3)])
def test_results_that_are_not_finite_are_told(value: float, found: int) -> None:
    """1: only after they are rounded to 16 bits."""
    loops = compiled_loops([EXACT], tell=False)
    assert loops is not None
    copy, out = MergeCall(loops[EXACT]["average"], 1), Stored(torch.empty(600, dtype=torch.bfloat16))
    weights = Stored(torch.cat([torch.ones(599), torch.tensor([value])]))
    assert copy([weights, weights], [out]) == found


def recipes_of_one(folder: Path, value: float, stored: torch.dtype, *settings_: dict[str, Any]) -> list[Recipe]:
    """Recipes of the whole task vector of one model, in which every weight is `value`."""
    base, model = (
        str(checkpoint(folder / name, {"a.weight": torch.full((3, 40), number, dtype=stored)}))
        for name, number in (("base", 1.0), ("model", value))
    )
    data = {"method": "ties", "base": base, "models": {"m": {"path": model, "density": 1.0}}, "tokenizer": "optional"}
    return [Recipe.from_dict(data | each) for each in settings_]


@pytest.mark.parametrize(("compute", "written"), [("float32", "float16"), ("float16", "bfloat16")])
def test_a_model_that_is_taken_as_it_is_must_be_finite_too(tmp_path: Path, compute: str, written: str) -> None:
    """The whole of one model on its base is copied, without a loop."""
    recipes = recipes_of_one(tmp_path, 1e5, torch.bfloat16, {"compute_dtype": compute, "out_dtype": written})
    (((mine, _), (theirs, _)),) = both_ways(recipes, audited=False)
    assert isinstance(theirs, str)
    assert mine == theirs


def test_the_dtype_that_overflows_is_named_whichever_recipe_has_it(tmp_path: Path) -> None:
    recipes = recipes_of_one(
        tmp_path, 1e5, torch.bfloat16, *({"lambda": 0.9, "out_dtype": dtype} for dtype in ("float32", "float16"))
    )
    (mine, _), (theirs, _) = both_ways(recipes, audited=False)[1]
    assert mine == theirs
    assert "overflows in float16" in mine


@pytest.mark.filterwarnings("error")
def test_slack_beyond_float32_in_the_unit_of_a_tensor_is_infinite(tmp_path: Path) -> None:
    """Protected values of about 2, a few of them zero: there 3e38 · 2 · 0 must not decide."""
    signs = torch.tensor([1.0, -1.0]).repeat(60).view(3, 40)
    parents = {"base": torch.zeros(3, 40), "kept": 2 * signs * (torch.arange(40) % 3 != 0), "other": 3 * signs}
    paths = {name: str(checkpoint(tmp_path / name, {"a.weight": values})) for name, values in parents.items()}
    data = {"method": "ties_sv", "base": paths["base"], "tokenizer": "optional", "slack": 3e38, "protect": ["kept"]}
    data["models"] = {name: {"path": paths[name], "density": 1.0} for name in ("kept", "other")}
    assert_same([Recipe.from_dict(data | {"slack_form": "difference", "slack_scale": "rms"})])
