"""Numbers of a recipe at the edges of floating point: right, or refused in one line, and never a traceback."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from merge.arithmetic import Slack, elected_sign
from merge.cli import main
from merge.methods import METHODS
from tests.merge.conftest import save

EDGES = (1e308, 3.3e38, 5e-324)
SETTINGS = (
    "slack",
    "lambda",
    "weight",
    "t",
    "density",
    "scale",
    "norm",
    "gamma",
    "epsilon",
    "select_topk",
    "slack_share",
)


def recipe_of(method: str, key: str, value: Any, folders: dict[str, Path], **more: Any) -> dict[str, Any]:
    row = METHODS[method]
    names = ["ct"] if row.counts[1] == 1 else ["ct", "sft"]
    entry = {key: value} if key in row.model_keys else {}
    data: dict[str, Any] = {"method": method, "models": {name: {"path": folders[name], **entry} for name in names}}
    if row.base_use != "unused":
        data["base"] = folders["base"]
    if key in row.recipe_keys:
        data |= {key: value} | ({"protect": ["sft"]} if key in ("slack", "slack_share", "norm") else {})
    return data | ({"slack": 0.5, "slack_scope": "top"} if key == "slack_share" else {}) | more


def cases() -> list[tuple[str, str, Any]]:
    """A few of every setting; SLACKMERGE_EDGES=1 tries all methods and signs, which takes minutes."""
    everything = bool(os.environ.get("SLACKMERGE_EDGES"))
    methods = list(METHODS) if everything else ["ties_sv", "della", "slerp", "multislerp", "sce", "passthrough"]
    return [
        (method, key, value)
        for method in methods
        for key in (*METHODS[method].model_keys, *METHODS[method].recipe_keys)
        if key in SETTINGS and (everything or key != "weight" or method == "multislerp")
        for edge in EDGES
        for value in ((edge, -edge, [edge, -edge]) if everything else (edge,))
        if not (isinstance(value, list) and key in ("slack", "norm", "slack_share"))
    ]


def test_one_line_or_numbers(folders: dict[str, Path]) -> None:
    from merge.auditing import audit_many

    counts = {True: 0, False: 0}
    for method, key, value in cases():
        try:
            one = merge.Recipe.from_dict(recipe_of(method, key, value, folders))
            report = audit_many([one])[0]
        except merge.BadInput as error:
            assert "\n" not in str(error)
            counts[False] += 1
            continue
        assert all(math.isfinite(model["norm_lost"] or 0) for model in report["models"].values())
        counts[True] += 1
    assert min(counts.values()) > 5


@pytest.mark.parametrize("form", ["ratio", "difference"])
def test_a_slack_beyond_float32_is_an_endless_one(form: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Written, not only computed: it was a traceback."""
    from safetensors.torch import load_file

    found = []
    for value in ("1e308", "3.5e38", "inf"):
        settings = {"slack": float(value), "protect": ["sft"], "slack_form": form, "density": 0.5}
        one = merge.Recipe.from_dict(recipe_of("ties_sv", "lambda", 1, folders, **settings))
        found.append(load_file(merge.write(one, tmp_path / value) / "model.safetensors"))
    for other in found[1:]:
        assert all(torch.equal(tensor, found[0][name]) for name, tensor in other.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["ratio", "difference"])
@pytest.mark.parametrize("xi", [1e37, 3.4e38, 3.5e38, 1e308, math.inf])
def test_elections_by_their_definition(xi: float, form: str, dtype: torch.dtype) -> None:
    shielded = torch.tensor([1e-4, -1e-4, 0.0, 1.0, -2.0], dtype=dtype)
    other = torch.tensor([-1.0, 1.0, -1.0, -3.0, 1.0], dtype=dtype)
    sign = elected_sign([shielded, other], Slack(xi, (True, False), form))
    assert sign.tolist() == [1, -1, -1, 1, -1]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("lambda", 1e308, "lambda: "),
        ("lambda", [0, -1e39], "lambda: "),
        ("weight", 1e308, "models.ct.weight: expected a number of at most 3.4e+38"),
        ("density", 1e-308, "models.ct.density: "),
        ("norm", 1e308, "norm: "),
        ("lambda", 1e38, "the merge overflows in float32; take smaller weights"),
    ],
)
def test_what_is_said(
    key: str, value: Any, words: str, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    data = recipe_of("ties", key, value, {name: str(folder) for name, folder in folders.items()})  # type: ignore[misc]
    if key == "lambda" and value == 1e38:
        data["models"]["ct"]["weight"] = data["models"]["sft"]["weight"] = 1e38
        data["normalize"] = False
    (tmp_path / "merge.yml").write_text(yaml.safe_dump(data))
    assert main([str(tmp_path / "merge.yml"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms_of_numbers_whose_squares_float32_does_not_hold(tmp_path: Path, dtype: str) -> None:
    """The squares of 1e-25 are zero in float32. TIES keeps the larger half, and one model alone loses nothing else."""
    from merge.auditing import audit_many

    tau = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 1e-25
    tau[0] = 0
    tensors = {"base": torch.zeros(6, 40), "sft": tau}
    for name, values in tensors.items():
        save(tmp_path / name, {"a.weight": values.to(getattr(torch, dtype))}, words=None)
    recipe = recipe_of("ties", "density", 0.5, {name: tmp_path / name for name in ("base", "sft", "ct")})
    recipe |= {"models": {"sft": {"path": tmp_path / "sft", "density": 0.5}}, "compute_dtype": dtype}
    report = audit_many([merge.Recipe.from_dict(recipe | {"tokenizer": "optional"})])[0]
    exact = tau.to(getattr(torch, dtype)).double().view(-1)
    kept = exact.abs().topk(120).values.norm()
    assert report["models"]["sft"]["norm"] == pytest.approx(float(exact.norm()), rel=1e-6)
    assert report["models"]["sft"]["norm_lost"] == pytest.approx(1 - float(kept / exact.norm()), rel=1e-5)
    assert report["merged"]["norm"] == pytest.approx(float(kept), rel=1e-6)
