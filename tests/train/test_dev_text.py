"""Bits per byte on dev while a training runs: what they are, when they are measured, and that they change nothing."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import BadInput
from common.files import read_jsonl, write_jsonl
from train import base_model, dev_text, trainer
from train.data.packing import IGNORED
from train.dev_text import DevEvaluation
from train.settings import BaseModelSettings, Compute, LoraSettings, TrainingSettings


@pytest.fixture(scope="module")
def prepared(corpus_dir: Path, recipe: BaseModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    base_model.prepare(corpus_dir, recipe, folder)
    return folder


def run(prepared: Path, training: TrainingSettings, out: Path, watched: DevEvaluation | None) -> list[dict[str, Any]]:
    trainer.train(
        prepared / "model",
        prepared / "blocks",
        training,
        out / "out",
        work=out / "work",
        save_every_tokens=512,
        compute=Compute(threads=1),
        watched=watched,
    )
    return read_jsonl(out / "out" / "log.jsonl")


def by_hand(model_dir: Path, documents: list[str], length: int) -> float:
    """Bits per byte of beginnings of documents, one document at a time, by the model's own loss."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    nats, size = 0.0, 0
    for text in documents:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"][: length - 1]
        ids = torch.tensor([[tokenizer.eos_token_id, *tokens]])
        with torch.no_grad():
            nats += model(input_ids=ids, labels=ids).loss.item() * len(tokens)
        size += len(tokenizer.decode(tokens).encode())
    return nats / log(2) / size


def test_a_watched_training_logs_dev_bits_and_gives_the_same_weights(
    prepared: Path, corpus_dir: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    """With LoRA, whose dropout draws random numbers at every step."""
    lora = training.replace(lora=LoraSettings(rank=2, alpha=4.0, dropout=0.5, targets="all-linear"))
    plain = run(prepared, lora, tmp_path / "plain", None)
    watched = run(prepared, lora, tmp_path / "watched", DevEvaluation(str(corpus_dir), ("xx", "en"), 768))
    first, second = (
        load_file(tmp_path / name / "out" / "model" / "model.safetensors") for name in ("plain", "watched")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)

    measured = [line for line in watched if "dev_bits_per_byte" in line]
    assert [line["tokens"] for line in measured] == [0, 768, 1536, 2048]
    assert all(line["dev_bits_per_byte"].keys() == {"xx", "en"} for line in measured)
    losses = [line["loss"] for line in watched if "loss" in line]
    assert losses == [line["loss"] for line in plain] and not any("dev_bits_per_byte" in line for line in plain)
    documents = [row["text"] for row in read_jsonl(corpus_dir / "text" / "xx.dev.jsonl")]
    assert len(documents) <= dev_text.DOCUMENTS
    for folder, line in ((prepared / "model", measured[0]), (tmp_path / "watched" / "out" / "model", measured[-1])):
        assert line["dev_bits_per_byte"]["xx"] == pytest.approx(by_hand(folder, documents, 32), abs=2e-5)
    assert measured[-1]["dev_bits_per_byte"]["xx"] < measured[0]["dev_bits_per_byte"]["xx"]


def test_a_resumed_training_measures_each_point_once(
    prepared: Path, corpus_dir: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    watched = DevEvaluation(str(corpus_dir), ("xx",), 256)
    whole = run(prepared, training, tmp_path / "whole", watched)
    calls = 0

    def dies(record: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if record["tokens"] == 768 and "dev_bits_per_byte" in record:
            raise RuntimeError("killed")

    cut = tmp_path / "cut"
    with pytest.raises(RuntimeError, match="killed"):
        trainer.train(
            prepared / "model", prepared / "blocks", training, cut / "out", work=cut / "work",
            save_every_tokens=512, compute=Compute(threads=1), on_log=dies, watched=watched,
        )  # fmt: skip
    resumed = run(prepared, training, cut, watched)
    dev = [[line for line in log if "dev_bits_per_byte" in line] for log in (whole, resumed)]
    assert calls and dev[0] == dev[1]


def test_beginnings_count_the_bytes_of_what_is_predicted(model_dir: Path, tmp_path: Path) -> None:
    """In Tibetan, three bytes a character, of which the toy tokenizer knows none as a whole."""
    text = "བོད་ཡིག་གི་ཚིག་གྲུབ་འདི་རིང་པོ་ཡིན།"
    (tmp_path / "text").mkdir()
    write_jsonl(tmp_path / "text" / "bod.dev.jsonl", [{"id": "1", "text": text}, {"id": "2", "text": "ཀ"}])
    read = dev_text.read_dev_text(DevEvaluation(str(tmp_path), ("bod",), 1), model_dir, 512)["bod"]
    assert read.bytes == len((text + "ཀ").encode())
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    kept = [row[row != IGNORED].tolist() for row in read.labels]
    assert [tokenizer.decode(tokens) for tokens in kept] == [text, "ཀ"]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_each_process_takes_as_many_rows_and_every_label_once(model_dir: Path, corpus_dir: Path, world: int) -> None:
    whole = dev_text.read_dev_text(DevEvaluation(str(corpus_dir), ("en",), 1), model_dir, 32)["en"]
    parts = [whole.part(rank, world) for rank in range(world)]
    assert len({len(part.ids) for part in parts}) == 1
    labels = sorted(tuple(row) for part in parts for row in part.labels if (row != IGNORED).any())
    assert labels == sorted(tuple(row) for row in whole.labels)


def test_a_language_without_dev_text_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^dev_every_tokens: .*xx\.dev\.jsonl has no text"):
        dev_text.read_dev_text(DevEvaluation(str(tmp_path), ("xx",), 1), model_dir, 32)
