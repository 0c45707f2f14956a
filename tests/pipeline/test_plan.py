"""Keys: what changes the result changes the key, and nothing else does."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.units import format_tokens, parse_tokens
from pipeline import sweep
from pipeline.config import Config, validate
from pipeline.stages.cell import Cell, merged, plan_cell
from pipeline.stages.stage import Inputs
from tests.pipeline.toy_stage import toy_stage


@cache
def composed() -> Config:
    return sweep.expand(("experiment=test",), multirun=False).configs[0]


def planned(inputs: Inputs | None = None, **changes: Any) -> Cell:
    """The plan of the test experiment with some keys changed; `ct__tokens=5` stands for ct.tokens=5."""
    values = composed().model_dump()
    for key, value in changes.items():
        *folders, last = key.split("__")
        place = values
        for folder in folders:
            place = place[folder]
        place[last] = value
    return plan_cell(validate(values), inputs or Inputs())


def changed(one: Cell, other: Cell) -> set[str]:
    """Kinds of which the other plan has stages that the first does not have."""
    known = {stage.key for stage in one.stages}
    return {stage.kind for stage in other.stages if stage.key not in known}


@pytest.mark.parametrize(
    "changes",
    [
        {"store": "elsewhere"},
        {"outputs": "elsewhere"},
        {"name": "other"},
        {"compute__threads": 7},
        {"compute__device": "cuda"},
        {"compute__micro_batch": 1},
        {"compute__stage_seconds": {"ct": 1.0}},
        {"tracking__wandb": "offline"},
        {"ct__save_every_tokens": 4096},
        {"ct__dev_every_tokens": 512, "sft__dev_every_tokens": 512},
        {"sft__save_every_tokens": 4096},
        {"eval__batch_tokens": 512},
        {"language__name": "Nyanja"},
        {"model__name": "renamed"},
    ],
)
def test_what_changes_no_result_changes_no_key(changes: dict[str, Any]) -> None:
    assert [stage.key for stage in planned().stages] == [stage.key for stage in planned(**changes).stages]


LATER = {"tune", "merge", "eval"}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"merge__methods__ties_sv_1__recipe": {"method": "ties_sv", "slack": 2.0, "protect": ["sft"]}}, LATER),
        ({"merge__metric": "bits_per_byte"}, LATER),
        ({"eval__tune_limit": 3}, LATER),
        ({"eval__limit": 3}, {"eval"}),
        ({"eval__dtype": "bfloat16"}, LATER),
        ({"ct__learning_rate": 1e-5}, {"ct", "sft"} | LATER),
        ({"ct__english_fraction": 0.5}, {"ct_blocks", "ct", "sft"} | LATER),
        ({"sft__learning_rate": 1e-5}, {"sft"} | LATER),
        ({"sft__questions": 2}, {"items", "sft_blocks", "sft"} | LATER),
        ({"sft__replay_fraction": 0.5}, {"sft_blocks", "sft"} | LATER),
        ({"seed": 1}, {"ct_blocks", "sft_blocks", "ct", "sft"} | LATER),
        ({"model__recipe__layers": 3}, {"base", "ct_blocks", "sft_blocks", "ct", "sft"} | LATER),
        ({"corpus__dev": 0.07}, {"corpus", "items", "base", "ct_blocks", "sft_blocks", "ct", "sft"} | LATER),
    ],
)
def test_a_change_reaches_what_depends_on_it_and_no_more(changes: dict[str, Any], kinds: set[str]) -> None:
    assert changed(planned(), planned(**changes)) == kinds


def test_a_new_budget_adds_its_own_stages_only() -> None:
    small, large = planned(ct__tokens=2048), planned(ct__tokens=4096)
    new = [str(stage) for stage in merged([small, large]) if stage.key not in {known.key for known in small.stages}]
    assert all("4096" in name for name in new)
    assert changed(small, large) == {"ct", "sft"} | LATER
    trajectories = {stage.trajectory for cell in (small, large) for stage in cell.stages if stage.kind == "ct"}
    assert len(trajectories) == 1


def test_annealed_budgets_share_a_trunk_and_end_with_a_decay_each() -> None:
    annealed = {"ct__schedule": "wsd", "ct__decay_fraction": 0.25}
    cells = [planned(ct__tokens=tokens, **annealed) for tokens in (4096, 8192)]
    ct = [stage for stage in merged(cells) if stage.kind == "ct"]
    trunks = [stage for stage in ct if "trunk" not in stage.parents]
    decays = [stage for stage in ct if "trunk" in stage.parents]
    assert [(stage.settings.tokens, stage.settings.decay_tokens) for stage in decays] == [
        (4096, 1024),
        (8192, 2048),
    ]
    assert [stage.parents["trunk"].key for stage in decays] == [stage.key for stage in trunks]
    assert [stage.settings.tokens for stage in trunks] == [3072, 6144]
    assert len({stage.trajectory for stage in trunks}) == 1
    assert [cell.checkpoints["ct_then_sft"].parents["model"].key for cell in cells] == [stage.key for stage in decays]
    reshaped = planned(ct__tokens=4096, ct__decay_shape="1-sqrt", **annealed)
    assert {stage.key for stage in trunks} & {stage.key for stage in reshaped.stages} == {trunks[0].key}


def test_averaging_shares_the_trunks_of_decays_and_counts_its_checkpoints_in_the_key() -> None:
    annealed = {"ct__schedule": "wsd", "ct__decay_fraction": 0.25}
    falling, averaged = planned(**annealed), planned(ct__decay_shape="average", **annealed)
    (ct,) = (stage for stage in averaged.stages if "trunk" in stage.parents)
    assert {stage.key for stage in falling.stages} & {ct.parents["trunk"].key}
    assert ct.key_content["averaged_checkpoints"] == 10 and ct.trajectory is None
    assert "averaged_checkpoints" not in ct.parents["trunk"].key_content
    assert changed(averaged, planned(ct__decay_shape="average", ct__averaged_checkpoints=5, **annealed)) >= {"ct"}
    for shape in ("linear", "1-sqrt"):
        one = planned(ct__decay_shape=shape, **annealed)
        assert not changed(one, planned(ct__decay_shape=shape, ct__averaged_checkpoints=5, **annealed))
    cosine = planned(ct__decay_shape="average", ct__averaged_checkpoints=5)
    assert not changed(planned(), cosine), "one cosine for all budgets averages nothing"


def test_a_budget_that_is_all_decay_has_no_trunk() -> None:
    cell = planned(ct__tokens=2048, ct__schedule="wsd", ct__decay_fraction=1.0)
    (ct,) = (stage for stage in cell.stages if stage.kind == "ct")
    assert ct.settings.decay_tokens == ct.settings.tokens == 2048 and "trunk" not in ct.parents


def test_base_and_sft_scores_are_shared_by_budgets() -> None:
    small, large = planned(ct__tokens=2048), planned(ct__tokens=4096)
    assert {small.evals[name].key == large.evals[name].key for name in ("base", "sft")} == {True}
    assert {small.evals[name].key == large.evals[name].key for name in ("ct", "ct_then_sft", "ties_sv_1")} == {False}


def test_inputs_are_known_by_their_content() -> None:
    folder = {"model__path": "models/a"}
    one, other = planned(Inputs(model="abc"), **folder), planned(Inputs(model="abc"), model__path="models/b")
    assert [stage.key for stage in one.stages] == [stage.key for stage in other.stages]
    assert "ct" in changed(one, planned(Inputs(model="abd"), **folder))


def test_parents_come_first_and_nothing_comes_twice() -> None:
    cell = planned()
    seen: set[str] = set()
    for stage in cell.stages:
        assert {parent.key for parent in stage.parents.values() if not parent.given} <= seen
        assert stage.key not in seen
        seen.add(stage.key)


def test_only_what_is_scored_is_planned() -> None:
    cell = planned(eval__baselines=["base"], merge__methods={})
    assert [stage.kind for stage in cell.stages] == ["corpus", "base", "items", "eval"]


def test_no_option_has_the_name_of_a_setting() -> None:
    with pytest.raises(ValueError, match="^corpus nya: text is a setting and an option$"):
        toy_stage("corpus", "nya", {"text": {}, "seed": 0}, options={"text": {}, "path": "a"})


def test_float32_is_not_said_so_that_keys_stay() -> None:
    assert "dtype" not in planned().evals["base"].settings
    assert planned(eval__dtype="bfloat16").evals["base"].settings.dtype == "bfloat16"


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text() | st.none(), max_size=5))
def test_keys_do_not_depend_on_the_order_of_settings(settings: dict[str, Any]) -> None:
    turned = dict(reversed(settings.items()))
    assert toy_stage("eval", "a", settings).key == toy_stage("eval", "b", turned).key
    assert toy_stage("eval", "a", settings).key != toy_stage("tune", "a", settings).key
    assert toy_stage("eval", "a", {**settings, "x\0": 1}).key != toy_stage("eval", "a", settings).key


@given(st.integers(min_value=1, max_value=10**13))
def test_tokens_read_as_they_are_written(count: int) -> None:
    assert parse_tokens(format_tokens(count)) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("32k", 32_000), ("1.5M", 1_500_000), ("2B", 2 * 10**9), (4096, 4096), ("1_000", 1000), ("0.5k", 500)],
)
def test_token_budgets(text: object, count: int) -> None:
    assert parse_tokens(text) == count


def test_text_is_scored_within_the_shortest_blocks_trained_on() -> None:
    """Of continual pre-training, SFT and a base made here; the choice on dev reads as far as the test does."""
    for sizes in ((128, 256), (256, 128), (64, 256)):
        ct, sft = sizes
        cell = planned(ct__block_size=ct, sft__block_size=sft, model__recipe__block_size=128)
        lengths = {stage.settings.trained_length for stage in cell.stages if stage.kind in ("eval", "tune")}
        assert lengths == {min(ct, sft, 128)}
    other = planned(ct__block_size=64, model__recipe__block_size=128)
    assert {"eval", "tune"} <= changed(planned(), other)


def test_a_method_without_a_grid_is_stated_beside_the_tuned_ones() -> None:
    """So that two recipes can differ in their slack alone."""
    values = composed().model_dump()
    for name, slack in (("ties_fixed", 0.0), ("ties_sv_fixed", 1.0)):
        recipe = {"method": "ties_sv", "slack": slack, "protect": ["sft"], "density": 0.5, "lambda": 1.5}
        values["merge"]["methods"][name] = {"recipe": recipe, "grid": {}}
    cell = plan_cell(validate(values), Inputs())
    tries = [stage.settings.tries for stage in cell.stages if stage.kind == "tune"]
    assert sum(len(recipes) == 1 for recipes in tries) == 2
