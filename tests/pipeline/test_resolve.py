"""CT on all of the text, and LoRA where memory asks for it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from common.errors import BadInput
from pipeline import resolve, run_plan, sweep
from pipeline.config import Config
from pipeline.journal import Journal
from pipeline.run.cells import run_executor
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs, Stage

TINY = ["ct.save_every_tokens=1M", "ct.batch_tokens=512", "ct.block_size=64", "tracking=none"]
HELD_OUT = ["corpus.dev=0.1", "corpus.test=0.1"]
TAMIL = ["வணக்கம்", "இது", "ஒரு", "சிறிய", "உரை", "நூல்", "மழை", "காலை", "மாலை", "வீடு", "மரம்", "ஆறு", "கடல்", "மலை"]


def one(*words: str) -> Config:
    return sweep.expand(["experiment=test", *words], multirun=False).configs[0]


def tamil(folder: Path) -> str:
    """A hundred and fifty short documents in Tamil."""
    rng = random.Random(0)
    documents = ("\n".join(" ".join(rng.choices(TAMIL, k=8)) for _ in range(1)) for _ in range(150))
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return f"corpus.path={folder / 'text.txt'}"


def small_model(folder: Path) -> str:
    """A model of one narrow layer with the tokenizer of the shipped base."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained("models/tiny-base")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    return f"model.path={folder / 'model'}"


def stage_of(config: Config, kind: str) -> Stage:
    return next(stage for stage in plan_cell(config, Inputs()).stages if stage.kind == kind)


def test_ct_on_all_of_the_text(tmp_path: Path) -> None:
    words = ["language=mine", "language.code=tam", tamil(tmp_path), "ct.tokens=null", "ct.epochs=2"]
    words += [*TINY, *HELD_OUT]
    words += ["model=folder", small_model(tmp_path)]
    words += [f"store={tmp_path / 'store'}", f"outputs={tmp_path}", "eval.baselines=[ct]", "merge=none"]
    config = one("experiment=test", *words)
    plan = run_plan.plan_configs([config], network=False)
    ct = next(stage for stage in plan.stages if stage.kind == "ct")
    assert ct.slug == "tam-all-s0" and ct.key_content["tokens"] is None and ct.trajectory is None
    assert ct.tokens == config.ct.tokens
    work = run_executor(plan, Journal(tmp_path / "runs" / "now" / "journal.jsonl"))
    blocks = json.loads((work.materialize(ct.parents["blocks"]) / "counts.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (work.materialize(ct) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = blocks["tokens"] // 512 * 512
    assert log[-1]["of_tokens"] == log[-1]["tokens"] == trained
    assert abs(blocks["tokens"] * 0.8 - 2 * blocks["text_tokens"]["tam"]) < 2 * 64  # both passes
    assert abs(config.ct.tokens / trained - 1) < 0.1  # the estimate of the plan
    assert not (work.materialize(ct) / "state").exists()


def test_a_stated_budget_is_read_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "expected_tokens", lambda config: pytest.fail("the text was read"))
    assert one("ct.tokens=4096").ct.tokens == 4096


def test_the_estimate_changes_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    for tokens in (5120, 51200):
        monkeypatch.setattr(resolve, "expected_tokens", lambda config, tokens=tokens: tokens)
        plans.append(plan_cell(one("ct.tokens=null"), Inputs()))
    assert [stage.key for stage in plans[0].stages] == [stage.key for stage in plans[1].stages]
    assert plans[0].ct_tokens != plans[1].ct_tokens


def test_passes_and_ends_are_said_where_they_differ() -> None:
    plain, twice = (stage_of(one(*words), "ct_blocks").key_content for words in ((), ("ct.epochs=2",)))
    assert "epochs" not in plain and "document_end" not in plain and twice == {**plain, "epochs": 2}
    ended = stage_of(one("ct.document_end='<|end|>'"), "ct_blocks").key_content
    assert ended == {**plain, "document_end": "<|end|>"}


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["ct.tokens=null", "ct.schedule=wsd"], "ct.schedule=cosine"),
        (["ct.tokens=null", "eval.baselines=[ct,mixed]", "sft.block_size=128"], "ct.tokens=null: mixed"),
        (["ct.epochs=9"], "ct.epochs"),
        (["train.lora_above=10"], "train.lora_above"),
    ],
)
def test_what_does_not_fit_together(words: list[str], key: str) -> None:
    with pytest.raises(BadInput, match=key) as refused:
        one(*words)
    assert "\n" not in str(refused.value)


def test_lora_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    full, lora = one(), one("train=lora")
    for gib, same in ((1000, full), (0.001, lora)):
        assert one("train=auto", f"train.lora_above={gib}").train == same.train
    for memory, same in ((2**45, full), (2**20, lora)):
        monkeypatch.setattr(resolve, "device_memory", lambda device, memory=memory: memory)
        automatic = one("train=auto")
        assert automatic.train == same.train
        assert stage_of(automatic, "ct").key == stage_of(same, "ct").key


def test_what_lora_cannot_train_is_rejected_where_memory_decides_for_it() -> None:
    """The baseline with frozen columns, and a base in bfloat16 with passes in float32."""
    for words in (["eval.baselines=[sft_then_ct_frozen]"], ["train.base_dtype=bfloat16"]):
        assert one("train=auto", "train.lora_above=1000", *words).train.lora is None
        with pytest.raises(BadInput, match=r"^train\.lora_above=0\.001: .* so LoRA is used\. train\."):
            one("train=auto", "train.lora_above=0.001", *words)
        with pytest.raises(BadInput, match=r"^train\."):
            one("train=lora", *words)


def test_no_gpu_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    resolve.device_memory.cache_clear()
    with pytest.raises(BadInput, match=r"train\.lora_above=auto: no GPU"):
        resolve.device_memory("cuda")
