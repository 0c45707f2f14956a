"""The paper's experiment: Llama-2-7B's real shape on the meta device, its batch, steps and rates, and what each
language is judged by.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from pipeline import sweep
from pipeline.config import Config
from pipeline.cost.shape import model_shape
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs
from train.distributed import batch_sizes

LANGUAGES = ("tam", "tel", "ory", "ben", "bod", "uig", "mon")


@cache
def cells(experiment: str = "paper", *overrides: str) -> tuple[Config, ...]:
    return sweep.expand((f"experiment={experiment}", *overrides), multirun=True).configs


def test_llama_2_7b_has_the_parameters_that_are_planned_with_and_shards_evenly() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = cells()[0]
    stated = model_shape(config)
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=stated.vocabulary,
                hidden_size=stated.hidden,
                num_hidden_layers=stated.layers,
                num_attention_heads=stated.heads,
                num_key_value_heads=stated.kv_heads,
                intermediate_size=stated.feed_forward,
                tie_word_embeddings=stated.tied,
            )
        )
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == stated.parameters == 6_738_415_616
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    assert largest == stated.embedding_parameters
    processes = config.compute.processes * config.compute.nodes
    shards = [
        sum(parameter.chunk(processes)[rank].numel() for parameter in model.parameters()) for rank in range(processes)
    ]
    assert processes == 8
    assert shards == [6_738_415_616 // 8] * 8


def test_batches_steps_and_rates_are_the_paper_s() -> None:
    config = cells()[-1]
    compute = config.compute
    for part, blocks, horizon, last in ((config.ct, 512, 10_240, 1e-6), (config.sft, 128, 2_048, 1e-5)):
        micro, passes = batch_sizes(
            part.batch_tokens, part.block_size, compute.processes * compute.nodes, compute.micro_batch
        )
        assert part.block_size == 2048
        assert micro * passes * compute.processes * compute.nodes == blocks
        assert part.schedule_tokens == horizon * blocks * 2048
        assert part.learning_rate == 3e-5
        assert part.learning_rate * part.min_lr_ratio == pytest.approx(last, rel=1e-3)
    assert config.ct.batch_tokens == 2**20
    assert config.sft.tokens // config.sft.batch_tokens == 884
    assert config.ct.english_fraction == 1 / 5


def test_seven_languages_each_with_budgets_that_its_text_can_fill() -> None:
    by_language = {code: [config.ct.tokens for config in cells() if config.language.code == code] for code in LANGUAGES}
    assert {config.language.code for config in cells()} == set(LANGUAGES)
    assert by_language["tam"] == [250 * 10**6, 10**9, 2 * 10**9, 5 * 10**9, 10**10]
    assert by_language["uig"] == [250 * 10**6]
    assert all(config.corpus.source == "hub" for config in cells())


def test_tasks_stand_with_their_language_and_lm_eval_has_them() -> None:
    from eval.task_set import task_manager

    known = task_manager(None, True).all_tasks
    for config in cells():
        assert list(config.eval.tasks) == list(config.language.tasks)
        assert set(config.eval.tasks) <= set(known)
    assert [config.language.code for config in cells() if not config.eval.tasks] == ["mon"] * 2


def test_one_schedule_for_all_budgets_of_a_language() -> None:
    stages = [
        stage
        for config in cells()
        if config.language.code == "tam"
        for stage in plan_cell(config, Inputs()).stages
        if stage.kind == "ct"
    ]
    assert len({stage.trajectory for stage in stages}) == 1


def test_published_checkpoints_leave_nothing_to_train() -> None:
    configs = cells("paper-published")
    assert len(configs) == len(LANGUAGES)
    for config in configs:
        cell = plan_cell(config, replace(Inputs(), model="m", ct=config.ct_source, sft_model="s"))
        assert {stage.kind for stage in cell.stages} == {
            "corpus",
            "items",
            "instructions",
            "leaks",
            "tune",
            "merge",
            "eval",
        }
        assert cell.checkpoints["ct"].options.path == f"hub:pkupie/Llama-2-7b-{config.language.iso639_1}"


def test_a_given_checkpoint_has_one_budget() -> None:
    with pytest.raises(sweep.BadInput, match=r"ct\.source: a given checkpoint has one budget"):
        cells("paper-published", "ct.tokens=1B,2B")


def test_the_middle_rung_is_planned_on_one_gpu() -> None:
    for config in cells("smollm2"):
        assert model_shape(config).parameters == 134_515_008
        assert (config.compute.device, config.compute.processes) == ("cuda", 1)
