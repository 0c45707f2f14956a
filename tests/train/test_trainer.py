import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import BadInput
from merge.checkpoints.adapter import adapted as open_adapted
from merge.checkpoints.folder import open_checkpoint
from tests.pipeline.tiny_pair import make_pair
from train import base_model, lora, trainer
from train.column_freezing import choose_columns, score_columns
from train.data.blocks import Blocks
from train.resume import COMPLETE
from train.settings import BaseModelSettings, Compute, FrozenColumns, LoraSettings, TrainingSettings


@pytest.fixture(scope="module")
def prepared(corpus_dir: Path, recipe: BaseModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    base_model.prepare(corpus_dir, recipe, folder)
    return folder


def run(
    prepared: Path, training: TrainingSettings, out: Path, tokens: int, state: Path | None = None, **options: Any
) -> dict[str, torch.Tensor]:
    trainer.train(
        prepared / "model",
        prepared / "blocks",
        training.replace(tokens=tokens),
        out / "out",
        work=out / "work",
        save_every_tokens=512,
        resume_state=state,
        compute=Compute(threads=1, **options),
        calibration_dir=prepared / "blocks",
    )
    return load_file(out / "out" / "model" / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_chain_of_budgets_equals_one_run_bit_for_bit(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    whole = run(prepared, training, tmp_path / "whole", 2048)
    half = run(prepared, training, tmp_path / "half", 1024)
    chained = run(prepared, training, tmp_path / "rest", 2048, tmp_path / "half" / "out" / "state")
    assert same(chained, whole) and not same(half, whole)
    log = [json.loads(line) for line in (tmp_path / "rest" / "out" / "log.jsonl").read_text().splitlines()]
    assert log[0]["tokens"] > 1024 and log[-1]["tokens"] == log[-1]["of_tokens"] == 2048
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "rest" / "out" / "model")
    assert (
        model.config.hidden_size == 16
        and AutoTokenizer.from_pretrained(tmp_path / "rest" / "out" / "model").eos_token == base_model.END
    )


def test_a_decay_from_the_trunk_equals_one_run_bit_for_bit(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    trunk = training.replace(schedule="wsd")
    branch = trunk.replace(decay_tokens=512, decay_shape="1-sqrt")
    whole = run(prepared, branch, tmp_path / "whole", 1536)
    run(prepared, trunk, tmp_path / "trunk", 1024)
    state = tmp_path / "trunk" / "out" / "state"
    assert same(run(prepared, branch, tmp_path / "decay", 1536, state), whole)
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "whole" / "work" / "log.jsonl").open()]
    # 12 steps: 2 of warm-up from a tenth of the peak, 6 at the peak, 4 of decay to a tenth of it
    factors = [0.1, 0.55, *[1.0] * 7, *(0.1 + 0.9 * (1 - (step / 4) ** 0.5) for step in (1, 2, 3))]
    assert rates == pytest.approx([1e-2 * factor for factor in factors])


def test_frozen_columns_stay_as_they_were_and_a_chain_of_budgets_chooses_the_same(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    """The columns are those of the model that training starts from, not of the state that it resumes from."""
    frozen = training.replace(schedule="wsd", frozen_columns=FrozenColumns(fraction=0.25, blocks=3))
    decay = frozen.replace(decay_tokens=512, decay_shape="linear")
    whole = run(prepared, decay, tmp_path / "whole", 1536)
    run(prepared, frozen, tmp_path / "trunk", 1024)
    assert same(run(prepared, decay, tmp_path / "decay", 1536, tmp_path / "trunk" / "out" / "state"), whole)
    assert not same(run(prepared, decay.replace(frozen_columns=None), tmp_path / "free", 1536), whole)
    model = AutoModelForCausalLM.from_pretrained(prepared / "model")
    blocks = Blocks(prepared / "blocks")
    chosen = choose_columns(score_columns(model, [blocks[number] for number in range(3)]), 0.25)
    assert len(chosen) == 2 * 7
    for name, index in chosen.items():
        before, after = model.state_dict()[f"{name}.weight"], whole[f"{name}.weight"]
        same_columns = (before == after).all(0)
        assert same_columns[index].all() and same_columns.sum() == len(index) == before.shape[1] // 4


def test_a_killed_run_goes_on_and_ends_the_same(prepared: Path, training: TrainingSettings, tmp_path: Path) -> None:
    whole = run(prepared, training, tmp_path / "whole", 2048)
    work, out = tmp_path / "cut" / "work", tmp_path / "cut" / "out"
    script = (
        "import time; from pathlib import Path; from train import trainer;"
        " from train.settings import TrainingSettings;"
        f"trainer.train(Path({str(prepared / 'model')!r}), Path({str(prepared / 'blocks')!r}), {training!r},"
        f" Path({str(out)!r}), work=Path({str(work)!r}), save_every_tokens=512,"
        " on_log=lambda record: record['tokens'] > 1024 and time.sleep(600))"  # after step 8, until it is killed
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    while not (work / "checkpoint-8" / COMPLETE).exists():
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "model").exists()
    (work / "checkpoint-12").mkdir(exist_ok=True)  # as a kill in the middle of a save leaves it
    (work / "checkpoint-12" / COMPLETE).unlink(missing_ok=True)
    assert same(run(prepared, training, tmp_path / "cut", 2048), whole)


def test_a_bare_loop_gives_the_same_weights(prepared: Path, training: TrainingSettings, tmp_path: Path) -> None:
    """The oracle: AdamW, clipping and the cosine written out, on the same blocks."""
    ours = run(prepared, training, tmp_path, 2048)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(prepared / "model")
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    blocks = Blocks(prepared / "blocks")
    for step in range(16):
        warm = min(1.0, step / 2)
        decay = 0.1 + 0.9 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * max(0, step - 2) / 14)).item())
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (warm if step < 2 else decay)
        ids = torch.stack([blocks[index]["input_ids"] for index in range(step * 4, step * 4 + 4)])
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in model.state_dict().items():
        if name in ours:
            torch.testing.assert_close(ours[name], tensor, atol=2e-5, rtol=1e-4)


def test_weights_are_published_in_float32_whatever_the_passes(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    """What bfloat16 would round away is there: merges take differences of these weights."""
    weights = run(prepared, training.replace(precision="bf16"), tmp_path, 512)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    rounded = [torch.equal(tensor.bfloat16().float(), tensor) for name, tensor in weights.items() if "proj" in name]
    assert rounded and not any(rounded)
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["dtype"] == "float32"


def test_gradient_accumulation_changes_nothing_but_rounding(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    whole = run(prepared, training, tmp_path / "whole", 1024)
    parts = run(prepared, training, tmp_path / "parts", 1024, micro_batch=1)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": 10**6}, "must be at most the corpus, 2,048 tokens"),
        ({"batch_tokens": 100}, "batch_tokens=100: must be a multiple of block_size=32"),
    ],
)
def test_what_cannot_work_is_refused(
    prepared: Path, training: TrainingSettings, tmp_path: Path, change: dict[str, int], says: str
) -> None:
    settings = training.replace(**change)
    with pytest.raises(BadInput, match=says):
        trainer.train(prepared / "model", prepared / "blocks", settings, tmp_path / "out", work=tmp_path / "work")


LORA = LoraSettings(rank=4, alpha=8, dropout=0.0, targets="all-linear")


def test_lora_leaves_an_adapter_and_the_weights_that_it_makes(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    tuned = run(prepared, training.replace(lora=LORA), tmp_path / "tuned", 1024)
    before = load_file(prepared / "model" / "model.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(tuned[name], tensor)}
    assert tuned.keys() == before.keys() and changed == {name for name in before if "_proj" in name}
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(prepared / "model"), str(tmp_path / "tuned" / "out" / "adapter")
    )
    for name, tensor in adapted.merge_and_unload().state_dict().items():
        if name in tuned:
            torch.testing.assert_close(tuned[name], tensor)
    streamed = open_adapted(open_checkpoint(prepared / "model"), tmp_path / "tuned" / "out" / "adapter")
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(streamed.read(name, 0, tuned[name].numel()).view_as(tuned[name]), tuned[name])


def test_a_chain_of_budgets_equals_one_run_with_lora_too(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    adapting = training.replace(lora=LORA.replace(dropout=0.1))
    whole = run(prepared, adapting, tmp_path / "whole", 2048)
    run(prepared, adapting, tmp_path / "half", 1024)
    assert same(run(prepared, adapting, tmp_path / "rest", 2048, tmp_path / "half" / "out" / "state"), whole)
    with pytest.raises(BadInput, match=r"train.lora.targets=\['q_prof'\]"):
        run(prepared, training.replace(lora=LORA.replace(targets=("q_prof",))), tmp_path / "wrong", 1024)


def test_lora_with_embeddings_in_full_publishes_and_resumes_them(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    adapting = training.replace(lora=LORA.replace(dropout=0.1), train_embeddings=True)
    whole = run(prepared, adapting, tmp_path / "whole", 2048)
    before = load_file(prepared / "model" / "model.safetensors")
    changed = {name for name, tensor in before.items() if not torch.equal(whole[name], tensor)}
    assert changed == {name for name in before if "_proj" in name or "embed_tokens" in name}
    assert whole.keys() == before.keys()
    run(prepared, adapting, tmp_path / "half", 1024)
    assert same(run(prepared, adapting, tmp_path / "rest", 2048, tmp_path / "half" / "out" / "state"), whole)


@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_with_embeddings_in_full_are_the_model_that_was_trained(tied: bool, tmp_path: Path) -> None:
    base, _ = make_pair(tmp_path, tied=tied)
    model = lora.add_adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LORA, embeddings=True)
    ids = torch.arange(20)[None]
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain.load_state_dict(lora.merge_adapter(model.state_dict(), LORA))
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(input_ids=ids).logits)


def test_a_run_that_was_killed_after_its_last_step_only_publishes(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    whole = run(prepared, training, tmp_path, 1024)
    for folder in ("model", "state"):
        shutil.rmtree(tmp_path / "out" / folder)
    assert same(run(prepared, training, tmp_path, 1024), whole)
