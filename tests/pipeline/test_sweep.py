"""Cells: composed once for all that differ in plain values, and as Hydra composes each."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from common.errors import BadInput
from pipeline import sweep
from pipeline.config import validate

SWEEPS = (
    ("experiment=tiny", "seed=0,1"),
    ("experiment=paper", "language=tam,uig"),
    ("experiment=test", "train=full,lora", "seed=1,2", "ct.tokens=2048"),
    ("experiment=test", "merge.methods.ties_sv_1.recipe={method: ties_sv, slack: 2.0, protect: [sft]}", "seed=0,1"),
    ("experiment=test", "eval.families=[next],[next,genre]", "seed=0,1", "ct.tokens=2048,4096"),
    ("experiment=test", "ct.source=null", "sft.items=50,60", "seed=3"),
)


@pytest.mark.parametrize("overrides", SWEEPS, ids=lambda given: given[1])
def test_every_cell_is_as_hydra_composes_it(overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_check_budgets", lambda configs: None)  # cells here may differ in anything
    monkeypatch.setattr(sweep, "_with_cells_to_choose_on", tuple)  # which no cell alone can say
    expanded = sweep.expand(overrides, multirun=True)
    assert len(expanded.configs) > 1
    with initialize_config_dir(version_base="1.3", config_dir=str(sweep.CONF)):
        for cell, config in zip(expanded.overrides, expanded.configs, strict=True):
            composed: Any = OmegaConf.to_container(compose("config", list(cell)), resolve=True)
            assert config == validate(composed)


def test_a_choice_of_merges_begins_with_its_file() -> None:
    """Grids that experiment=tiny sets for merge=frontier do not count; arms and other overrides do."""

    def methods(*words: str) -> dict[str, Any]:
        config = sweep.expand([*words, "ct.tokens=50k", "seed=0"], multirun=True).configs[0]
        return dict(config.merge.methods)

    for merge in ("paper", "fixed"):
        assert methods("experiment=tiny", f"merge={merge}") == methods("experiment=base", f"merge={merge}")
    assert set(methods("experiment=tiny", "merge=none", "arm=[chat_vector]")) == {"chat_vector"}
    one = methods("experiment=tiny", "merge=test", "merge.methods.task_arithmetic.grid.lambda=[0.7,0.8]")
    assert set(one) == {"task_arithmetic", "ties_sv_1"} and one["task_arithmetic"].grid == {"lambda": [0.7, 0.8]}
    assert set(methods("experiment=optimer", "merge=none")) > {"task_arithmetic_data_sets"}  # which it adds itself


def test_values_alone_cost_no_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def counted(name: str, overrides: list[str], **more: Any) -> Any:
        calls.append(overrides)
        return compose(name, overrides, **more)

    monkeypatch.setattr(sweep, "compose", counted)
    cells = sweep.expand(("experiment=test", "seed=0,1,2,3", "ct.tokens=1024,2048,4096"), multirun=True).configs
    assert len(cells) == 12
    assert len(calls) == 2, "one for the axes, one for all cells"


def test_what_else_changes_is_told_apart_by_regimes() -> None:
    axes = ("experiment=test", "sft.tokens=2048,4096", "ct.tokens=2048,4096", "merge.choice={budgets: all, seeds: own}")
    with pytest.raises(BadInput, match="this run twice. .*regime="):
        sweep.expand(axes, multirun=True)
    cells = sweep.expand((*axes, "regime=sft_${sft.tokens}"), multirun=True).configs
    assert [cell.report for cell in cells] == [("sft_2048", "nya"), ("sft_4096", "nya")] * 2
    assert {cell.merge.choice.budgets for cell in cells} == {(2048, 4096)}


def test_the_shipped_map_has_its_regimes() -> None:
    cells = sweep.expand(("experiment=regimes",), multirun=True).configs
    assert len(cells) == 24 and len({cell.report for cell in cells}) == 12
