"""What a plan says of costs, held against DeepSpeed's estimators, measured runs, and what must fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from pipeline import sweep
from pipeline.config import Compute, Config, ModelShape
from pipeline.cost import estimate, hardware, memory
from pipeline.cost.estimate import Work, stage_work
from pipeline.cost.shape import forward_flops, from_config_json, model_shape, training_flops
from pipeline.stages.cell import Cell, merged, plan_cell
from pipeline.stages.stage import Inputs

ROOT = Path(__file__).parents[2]
LLAMA = ModelShape(vocabulary=32000, hidden=4096, layers=32, heads=32, kv_heads=32, feed_forward=11008, tied=False)
SMOLLM2 = ModelShape(vocabulary=49152, hidden=576, layers=30, heads=9, kv_heads=3, feed_forward=1536, tied=True)
MEASURED = json.loads((Path(__file__).parent / "measured_stages.json").read_text())["stages"]
WITHIN = 0.3


@cache
def paper(*overrides: str) -> Config:
    return sweep.expand(("experiment=paper", *overrides), multirun=False).configs[0]


# the default experiment as it was when measured_stages.json was measured: sizes and counts of tries
TUNED = ("task_arithmetic", "ties", "dare_ties", "ties_sv_1")
AS_MEASURED = (
    *["experiment=cosine", "seed=0", "ct.tokens=10k,40k,200k,1M", "ct.schedule_tokens=1M", "ct.batch_tokens=2000"],
    *["sft.tokens=400k", "sft.batch_tokens=1000", "sft.questions=1", "sft.replay_fraction=0.0", "sft.grid=null"],
    *["eval.families=[next,blank,lookup,genre,about]", "eval.items=250", "eval.limit=200", "eval.tune_limit=60"],
    *("eval.max_chars=600", "merge.choice={budgets: own, seeds: own}"),
    "merge.methods.linear.grid={models.sft.weight:[0.5,1.0,2.0,4.0]}",
    *(f"merge.methods.{name}.grid.lambda=[0.75,1.0,1.25,1.5]" for name in TUNED),
    "+merge.methods.ties_sv_4={recipe:{method:ties_sv,slack:4.0,protect:[sft]},grid:{lambda:[0.75,1.0,1.25,1.5]}}",
)


@cache
def tiny() -> tuple[Cell, ...]:
    return tuple(plan_cell(config, Inputs()) for config in sweep.expand(AS_MEASURED, multirun=True).configs)


def test_parameters_of_known_models() -> None:
    assert LLAMA.parameters == 6_738_415_616
    assert SMOLLM2.parameters == 134_515_008
    assert from_config_json(ROOT / "models" / "tiny-base" / "config.json").parameters == 1_568_160


@pytest.mark.parametrize("shape", [LLAMA, SMOLLM2])
def test_flops_are_those_of_the_matrix_products(shape: ModelShape) -> None:
    """Counted product by product: each matrix of a layer, scores and mixtures of attention, the head."""
    context = 2048
    matrices = (
        [(shape.hidden, shape.hidden)] * 2
        + [(shape.hidden, shape.kv_width)] * 2
        + [(shape.hidden, shape.feed_forward)] * 3
    )
    layer = sum(2 * rows * columns for rows, columns in matrices) + 2 * 2 * context * shape.hidden
    by_hand = shape.layers * layer + 2 * shape.hidden * shape.vocabulary
    assert forward_flops(shape, context) == pytest.approx(by_hand, rel=1e-3)  # ours has the norms too
    assert training_flops(shape, context) == 3 * forward_flops(shape, context)


@pytest.mark.parametrize(("processes", "nodes"), [(1, 1), (8, 1), (8, 4)])
@pytest.mark.parametrize("shape", [LLAMA, SMOLLM2])
def test_model_states_are_what_deepspeed_estimates(
    shape: ModelShape, processes: int, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

    where = {"num_gpus_per_node": processes, "num_nodes": nodes}

    def ours(strategy: str) -> memory.Memory:
        return memory.states(shape, strategy, "bf16", processes, nodes)

    assert ours("zero2").states == pytest.approx(zero2(shape.parameters, cpu_offload=False, **where)[1], abs=2)
    assert ours("zero3").states == pytest.approx(
        zero3(shape.parameters, shape.embedding_parameters, cpu_offload=False, **where)[1], abs=2
    )
    host, gpu, _ = zero3(
        shape.parameters, shape.embedding_parameters, cpu_offload=True, cpu_offload_params=True, zero_init=True, **where
    )
    assert (ours("zero3_offload").states, ours("zero3_offload").host) == pytest.approx((gpu, host), abs=2)


def test_more_gpus_hold_less_each_and_zero3_less_than_zero2() -> None:
    def states(strategy: str, gpus: int) -> float:
        return memory.states(LLAMA, strategy, "bf16", gpus, 1).states

    for strategy in ("zero2", "zero3", "fsdp"):
        assert states(strategy, 16) < states(strategy, 8) < states(strategy, 1)
    assert states("zero3", 8) < states("zero2", 8) < states("ddp", 8)
    assert memory.states(LLAMA, "none", "fp32", 1, 1).states == 16 * LLAMA.parameters


def test_recomputation_and_small_passes_save_activations() -> None:
    def held(**options: Any) -> float:
        return memory.training_memory(LLAMA, Compute(precision="bf16", **options), 8 * 2048, 2048).activations

    assert held(gradient_checkpointing=True) < held() / 3
    assert held(micro_batch=1) == pytest.approx(held() / 8)
    assert held(micro_batch=3) == held(micro_batch=2), "passes are of one size: the largest divisor of 8 up to 3"


def trainings(kinds: tuple[str, ...]) -> list[tuple[Any, Work, float]]:
    """(stage, its work, measured seconds) of the default run; of a training those of its loop, without imports."""
    owners = {stage.key: cell.config for cell in tiny() for stage in cell.stages}
    found = []
    for row in MEASURED:
        stage = next(stage for stage in merged(tiny()) if (stage.kind, stage.slug) == (row["kind"], row["slug"]))
        if stage.kind in kinds:
            config = owners[stage.key]
            work = stage_work(stage, config, model_shape(config), row.get("resumed_tokens", 0))
            seconds = work.tokens / row["tokens_per_second"] if "tokens_per_second" in row else row["seconds"]
            found.append((stage, work, seconds))
    return found


@pytest.mark.parametrize(("kinds", "one"), [(("ct", "sft"), "nya-1M-s0"), (("eval", "tune"), "nya-ct-200k-s0")])
def test_calibrated_on_one_stage_the_others_take_what_is_predicted(kinds: tuple[str, ...], one: str) -> None:
    stages = trainings(kinds)
    rates = estimate.calibrate([stage for stage in stages if stage[0].slug == one and stage[0].kind == kinds[0]])
    others = [
        (stage.slug, rates.seconds(stage, work) / seconds) for stage, work, seconds in stages if stage.slug != one
    ]
    assert len(others) == {"ct": 8, "eval": 57}[kinds[0]]
    assert {slug: ratio for slug, ratio in others if abs(ratio - 1) > WITHIN} == {}


@pytest.mark.parametrize(
    ("name", "cluster"),
    [("8xH100", (1, 8, "H100")), ("4x8xa100-40gb", (4, 8, "A100-40GB")), ("1xL40S", (1, 1, "L40S"))],
)
def test_clusters_by_name(name: str, cluster: tuple[int, int, str]) -> None:
    found = hardware.parse_cluster(name)
    assert (found.nodes, found.per_node, found.gpu.name) == cluster


@pytest.mark.parametrize("name", ["8H100", "0xH100", "8xH1000", "x8xH100", "8x", "8xH100;ls"])
def test_other_clusters_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=f"CLUSTER={re.escape(name)}: "):
        hardware.parse_cluster(name)


@pytest.mark.parametrize("name", ["8xRTX4090", "1xH100", "2xH100", "4x8xRTX3090"])
def test_what_cannot_fit_is_refused_and_what_is_named_instead_fits(name: str) -> None:
    cluster = hardware.parse_cluster(name)
    config = memory.on_cluster(paper("compute=zero2"), cluster)
    with pytest.raises(BadInput, match=r"needs [\d.]+ GiB per GPU, got [\d.]+ GiB usable\. ") as refusal:
        memory.check_fit(config, cluster)
    larger = re.search(r"Set CLUSTER=(\S+)", str(refusal.value))
    changes = re.findall(r"(compute\.\S+=\S+)", str(refusal.value).rpartition("Set ")[2])
    wider = hardware.parse_cluster(larger[1]) if larger else cluster
    memory.check_fit(memory.on_cluster(paper("compute=zero2", *changes), wider), wider)


def test_a_batch_that_the_gpus_cannot_share_is_refused() -> None:
    cluster = hardware.parse_cluster("3xH100")
    with pytest.raises(BadInput, match=r"CLUSTER=3xH100: .*batch_tokens=1048576.* cannot be divided by 3 processes"):
        memory.check_fit(memory.on_cluster(paper(), cluster), cluster)


def test_a_budget_costs_what_is_new_in_it() -> None:
    rows = {
        row.stage.slug: row for row in estimate.rows(tiny(), set(), estimate.NoRates(), {}) if row.stage.kind == "ct"
    }
    assert [rows[f"nya-{budget}-s0"].work.tokens for budget in ("10k", "40k", "200k", "1M")] == [
        10_000,
        30_000,
        160_000,
        800_000,
    ]


class Hourly:
    """Every stage takes an hour."""

    def seconds(self, stage: object, does: object) -> float:
        return 3600.0

    def gpus(self, stage: object) -> int:
        return 1


def test_the_critical_path_goes_through_the_budgets() -> None:
    length, chain = estimate.critical_path(estimate.rows(tiny(), set(), Hourly(), {}))
    kinds = [stage.kind for stage in chain]
    assert kinds == ["corpus", "ct_blocks", "ct", "ct", "ct", "ct", "tune", "merge", "eval"] or kinds[:6] == [
        "corpus",
        "ct_blocks",
        *["ct"] * 4,
    ]
    assert length == 3600 * len(chain)
    done = {stage.key for stage in chain[:5]}
    assert estimate.critical_path(estimate.rows(tiny(), done, Hourly(), {}))[0] < length


def test_disk_at_its_peak_is_what_stays_and_the_largest_work_beside_it() -> None:
    rows = estimate.rows(tiny(), set(), estimate.NoRates(), {})
    stays = sum(row.work.written for row in rows)
    assert estimate.disk_peak(rows, 7.0) == 7.0 + stays + max(row.work.scratch for row in rows)
    ct = {row.stage.slug: row.work for row in rows if row.stage.kind == "ct"}
    model = 4 * 1_568_160
    assert ct["nya-1M-s0"].written == pytest.approx(4 * model, rel=0.05), (
        "weights, and the state that a later sweep continues from: 25.4 MB"
    )
    assert ct["nya-200k-s0"].written == pytest.approx(model, abs=2e6), "its state is dropped"


def test_the_plan_of_the_paper_needs_no_torch_and_says_what_it_costs() -> None:
    code = (
        "import sys; from pipeline.cli import pipeline_main as main; code = main(sys.argv[1:]);"
        " assert 'torch' not in sys.modules; sys.exit(code)"
    )
    arguments = ["plan", "-m", "experiment=paper", "language=tam,uig", "ct.tokens=250M,1B", "cluster=8xH100"]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "6,738,415,616 parameters" in run.stdout
    assert "3 cells" in run.stdout, "Uyghur has no text for 1B"
    row = next(line for line in run.stdout.splitlines() if line.startswith("ct ") and "tam-1B" in line)
    assert "750M" in row
    for part in ("GPU-hours", "critical path", "disk at its peak", "memory of a GPU in ct"):
        assert part in run.stdout


def test_a_plan_that_cannot_fit_ends_with_two_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import pipeline_main as main

    assert main(["plan", "experiment=paper", "cluster=1xRTX3090"]) == 2
    assert re.fullmatch(r"CLUSTER=1xRTX3090: .* Set compute.*\n", capsys.readouterr().err)
    assert main(["plan", "experiment=paper", "cluster=8xH100", "mfu=2"]) == 2
    assert "mfu=2" in capsys.readouterr().err


def test_one_process_uses_one_gpu_at_a_time_and_all_other_launchers_share_them(capsys: Any) -> None:
    from pipeline.cli import pipeline_main as main

    hours = {}
    for launcher in ("local", "gpus", ""):
        words = ["plan", "-m", "experiment=paper", "language=uig", "ct.tokens=250M", "cluster=8xH100"]
        assert main([*words, *([f"launcher={launcher}"] if launcher else [])]) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert ("launcher=local" in last) == (launcher == "local")
        hours[launcher] = int(re.search(r"at least ([\d,]+) h$", last)[1].replace(",", ""))  # type: ignore[index]
    assert hours["gpus"] == hours[""] < hours["local"]


def test_a_shape_that_is_not_the_folder_s_is_refused() -> None:
    said = (
        "model.shape={vocabulary: 2048, hidden: 160, layers: 5, heads: 5, kv_heads: 5, feed_forward: 432, tied: true}"
    )
    config = sweep.expand(("experiment=tiny", said), multirun=False).configs[0]
    with pytest.raises(BadInput, match=r"model\.shape\.layers=5: .*config\.json states 4"):
        model_shape(config)


def test_calibrated_on_one_training_the_others_hold_what_is_predicted() -> None:
    """What a process holds before it trains is taken from the first; the growth of the others is predicted."""
    shapes = {"tiny": from_config_json(ROOT / "models" / "tiny-base" / "config.json"), "smollm2": SMOLLM2}
    cases = json.loads((Path(__file__).parent / "measured_memory.json").read_text())["cases"]
    says = [
        memory.training_memory(
            shapes[one["model"]], Compute(**one["options"]), one["blocks"] * one["block_size"], one["block_size"]
        ).total
        for one in cases
    ]
    before = cases[0]["peak"] - says[0]
    ratios = {
        one["case"]: (before + predicted) / one["peak"] for one, predicted in zip(cases[1:], says[1:], strict=True)
    }
    assert len(ratios) == 7
    # ru_maxrss counts freed tensors below 32 MB that the C library keeps, and recomputing frees the most of them;
    # test_memory.py measures without, and within half of this
    del ratios["tiny, 64 blocks, recomputed"]
    assert {case: ratio for case, ratio in ratios.items() if abs(ratio - 1) > WITHIN} == {}


def test_lora_trains_what_peft_says_and_holds_less() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
    )
    shape = ModelShape(vocabulary=64, hidden=32, layers=2, heads=4, kv_heads=2, feed_forward=48, tied=False)
    for targets in ("all-linear", ["q_proj", "v_proj", "down_proj"]):
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=targets))
        added = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert shape.lora_parameters(4, targets) == added
    whole, low = (memory.on_cluster(paper(*more), hardware.parse_cluster("8xH100")) for more in ((), ("train=lora",)))
    assert memory.memory_of_trainings(low)["ct"].states < memory.memory_of_trainings(whole)["ct"].states
