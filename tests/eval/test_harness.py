"""From a checkpoint to the two files, with lm-eval's own numbers as the oracle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from eval import harness, task_set
from eval.harness import Scores
from tests.eval.conftest import make_items, tiny_model, write_jsonl

Folders = tuple[Path, Path]


def by_task(scores: Scores, **wanted: Any) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in scores.records if all(row[key] == value for key, value in wanted.items())}


def test_records_are_lm_evals_numbers(folders: Folders, model: Any, tokenizer: Any) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    tasks = task_set.prepare(*folders)
    scores = harness.evaluate(model, tokenizer, tasks)
    stock = lm_eval.evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer),
        {"tasks": {name: entry.task for name, entry in tasks.entries.items()}},
        bootstrap_iters=0,
    )["results"]
    compared = 0
    for row in scores.records:
        if row["family"] != "mean" and row["metric"] != "answer_bits_per_byte":
            assert row["value"] == pytest.approx(stock[row["task"]][f"{row['metric']},none"], abs=1e-5)
            assert row["low"] <= row["value"] <= row["high"]
            compared += 1
    assert compared == 7


def test_record_fields_are_those_of_the_contract(folders: Folders, model: Any, tokenizer: Any) -> None:
    scores = harness.evaluate(model, tokenizer, task_set.prepare(*folders))
    fields = ["task", "family", "language", "metric", "primary", "value", "low", "high", "n", "chance", "trivial"]
    fields.append("predictions")
    assert all(list(row) == fields for row in scores.records)
    items = [json.loads(line) for line in (folders[0] / "next_nya.test.jsonl").read_text().splitlines()]
    row = by_task(scores, primary=True)["next_nya"]
    assert (row["family"], row["language"], row["metric"], row["n"], row["chance"]) == (
        "next",
        "nya",
        "acc",
        12,
        0.25,
    )
    assert row["trivial"] == sum(item["trivial"] == item["answer"] for item in items) / 12
    assert by_task(scores, primary=True)["about_nya"]["metric"] == "acc"
    bits = by_task(scores, metric="bits_per_byte")["bits_per_byte_nya"]
    assert (bits["language"], bits["n"], bits["chance"], bits["trivial"]) == ("nya", 5, None, None)


def test_samples_add_up_to_the_records(folders: Folders, model: Any, tokenizer: Any) -> None:
    scores = harness.evaluate(model, tokenizer, task_set.prepare(*folders))
    for name, row in by_task(scores, primary=True).items():
        own = [sample for sample in scores.samples if sample["task"] == name]
        if row["metric"] == "bits_per_byte":
            assert row["value"] == pytest.approx(
                sum(sample["bits"] for sample in own) / sum(sample["bytes"] for sample in own)
            )
        elif row["family"] != "mean":
            assert {sample["metric"] for sample in own} == {row["metric"]}
            assert row["value"] == pytest.approx(sum(sample["score"] for sample in own) / 12)
            assert all(sample["score"] == (sample["prediction"] == sample["target"]) for sample in own)
            assert [sample["id"] for sample in own] == [f"{row['family']}.{k}" for k in range(12)]
    texts = [json.loads(line) for line in (folders[1] / "nya.test.jsonl").read_text().splitlines()]
    assert [sample["bytes"] for sample in scores.samples if "bytes" in sample] == [
        len(row["text"].encode()) for row in texts
    ]


def test_bits_are_minus_log2_of_the_documents_probability(folders: Folders, model: Any, tokenizer: Any) -> None:
    import torch

    scores = harness.evaluate(model, tokenizer, task_set.prepare(text=folders[1]))
    text = json.loads((folders[1] / "nya.test.jsonl").read_text().splitlines()[0])["text"]
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text)]])
    with torch.no_grad():
        loss = model(tokens, labels=tokens).loss
    assert scores.samples[0]["bits"] == pytest.approx(float(loss) * (tokens.shape[1] - 1) / math.log(2), rel=1e-4)


def test_the_mean_of_a_language_is_unweighted(folders: Folders, model: Any, tokenizer: Any) -> None:
    scores = harness.evaluate(model, tokenizer, task_set.prepare(*folders))
    primary = by_task(scores, primary=True)
    mean, parts = primary["mean_nya"], [primary["about_nya"], primary["next_nya"]]
    assert (mean["family"], mean["metric"], mean["n"]) == ("mean", "acc", 24)
    for column in ("value", "chance", "trivial"):
        assert mean[column] == pytest.approx(sum(part[column] for part in parts) / 2)
    assert mean["low"] <= mean["value"] <= mean["high"]
    assert primary["mean_en"]["value"] == primary["next_en"]["value"]


def test_one_task_set_serves_many_models(folders: Folders, model: Any, tokenizer: Any) -> None:
    other, tasks = tiny_model(1), task_set.prepare(*folders)
    first, second = harness.evaluate(model, tokenizer, tasks), harness.evaluate(other, tokenizer, tasks)
    assert second.samples != first.samples
    assert harness.evaluate(model, tokenizer, tasks) == first
    assert harness.evaluate(other, tokenizer, task_set.prepare(*folders)) == second
    assert len(tasks.encodings) == 1


def test_limit_takes_the_first_items(folders: Folders, model: Any, tokenizer: Any) -> None:
    whole = harness.evaluate(model, tokenizer, task_set.prepare(folders[0]))
    part = harness.evaluate(model, tokenizer, task_set.prepare(folders[0], limit=5))
    firsts = [sample for sample in whole.samples if int(sample["id"].split(".")[1]) < 5]
    for sample, first in zip(part.samples, firsts, strict=True):  # another batch may move the last digits
        bits = {name: sample[name] for name in ("answer_bits", "bits") if name in sample}
        assert sample == {**first, **{name: pytest.approx(first[name], rel=1e-5) for name in bits}}
    assert by_task(part, primary=True)["next_nya"]["n"] == 5


def test_files_are_the_same_bytes_again_and_nothing_else_is_left(
    folders: Folders, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name in ("a", "b"):
        harness.write_scores(harness.evaluate_folder(tmp_path / "model", task_set.prepare(*folders)), tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["samples.jsonl", "scores.jsonl"]
    for name in ("scores.jsonl", "samples.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "scores.jsonl").read_text().splitlines()[0])["task"] == "about_nya"


def test_a_folder_that_is_no_checkpoint_is_refused(folders: Folders, tmp_path: Path) -> None:
    tasks = task_set.prepare(*folders)
    with pytest.raises(BadInput, match=r"no config\.json"):
        harness.evaluate_folder(tmp_path / "none", tasks)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadInput, match="half cannot be loaded"):
        harness.evaluate_folder(tmp_path / "half", tasks)


def test_a_tokenizer_that_cannot_start_a_document_is_refused(folders: Folders, model: Any, tokenizer: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(BadInput, match="neither a BOS nor an EOS"):
        harness.evaluate(model, bare, task_set.prepare(*folders))


@pytest.mark.parametrize("option", [{"batch_tokens": 0}, {"trained_length": 1}])
def test_lengths_that_nothing_can_be_scored_with_are_refused(
    folders: Folders, model: Any, tokenizer: Any, option: dict[str, int]
) -> None:
    with pytest.raises(BadInput, match=r"\w+: [01] must be [12] or more"):
        harness.evaluate(model, tokenizer, task_set.prepare(*folders), **option)


def test_control_tokens_written_in_what_is_scored_are_counted(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    """Once a document, however many choices its prompt is repeated for; what lm-eval puts before a text is not."""
    rows = make_items("plain", "tel", 4, 0)
    rows[0]["prompt"] = f"</s> {rows[0]['prompt']} </s>"
    write_jsonl(tmp_path / "items" / "plain_tel.test.jsonl", rows)
    write_jsonl(tmp_path / "text" / "tel.test.jsonl", [{"id": "a", "text": "one <s> two"}])
    scores = harness.evaluate(model, tokenizer, task_set.prepare(tmp_path / "items", tmp_path / "text"))
    assert scores.control == {"</s>": 2, "<s>": 1}
    assert scores.note.endswith(", 3 control tokens written in the text (</s> 2, <s> 1)")
