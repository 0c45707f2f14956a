"""Tasks that a model would be scored on in vain are rejected before; error rates are no accuracies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from eval import __main__, harness, task_set
from eval.language_model import PackedLM
from tests.eval.conftest import make_items, tiny_model, write_jsonl

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: rows.jsonl}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{prompt}}}}"
doc_to_target: {target}
num_fewshot: 0
{more}
"""
EXACT = "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"
ERRORS = "metric_list: [{metric: !function errors.rate, aggregation: mean, higher_is_better: false}"


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def prepared(folder: Path, kind: str, more: str, target: str = '"{{choices[0]}}"') -> task_set.TaskSet:
    write_jsonl(folder / "rows.jsonl", make_items("mine", "tel", 4, 0))
    (folder / "errors.py").write_text(
        "def rate(references, predictions): return 1.5\ndef none(data): return data.select([])\n"
    )
    (folder / "mine.yaml").write_text(TASK.format(kind=kind, more=more, target=target))
    return task_set.prepare(include_path=folder)


@pytest.mark.parametrize("settings", ["", "generation_kwargs: {until: [x], max_new_tokens: 64}"])
def test_a_task_that_generates_more_than_the_model_reads_is_rejected(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    tasks = prepared(tmp_path, "generate_until", f"{EXACT}\n{settings}")
    monkeypatch.setattr(PackedLM, "generate_until", lambda *_: pytest.fail("generated"))
    with pytest.raises(BadInput, match=r"^tasks: mine generates up to (256|64) tokens, but the model reads 64, .* Set"):
        harness.evaluate(tiny_model(0), tokenizer, tasks)


def test_the_command_line_rejects_it_before_weights_are_read(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, model = tmp_path / "own", tmp_path / "model"
    own.mkdir()
    prepared(own, "generate_until", EXACT)
    tiny_model(0).save_pretrained(model)
    tokenizer.save_pretrained(model)
    (model / "model.safetensors").unlink()
    assert __main__.main([str(model), "--include-path", str(own), "--out", str(tmp_path / "out")]) == 2
    assert "mine generates up to 256 tokens, but the model reads 64" in capsys.readouterr().err


def test_a_task_with_room_is_generated_from(tmp_path: Path, tokenizer: Any) -> None:
    tasks = prepared(tmp_path, "generate_until", f"{EXACT}\ngeneration_kwargs: {{until: ['a'], max_gen_toks: 5}}")
    scores = harness.evaluate(tiny_model(0), tokenizer, tasks)
    assert [row["metric"] for row in scores.records] == ["exact_match", "acc"]
    assert scores.packed is None and scores.note == ""


def test_choices_left_in_a_task_that_generates_are_a_line(tmp_path: Path) -> None:
    more = f"{EXACT}\ndoc_to_choice: choices\ngeneration_kwargs: {{until: ['a'], max_gen_toks: 5}}"
    with pytest.raises(BadInput, match=r"^tasks: mine has doc_to_choice .*, got '.*'\. Remove doc_to_choice"):
        prepared(tmp_path, "generate_until", more)
    assert prepared(tmp_path, "generate_until", more, target="answer").entries  # the number of a choice


def test_a_task_without_documents_is_a_line(tmp_path: Path) -> None:
    more = "doc_to_choice: choices\nprocess_docs: !function errors.none"
    with pytest.raises(BadInput, match=r"^tasks: mine cannot be loaded: it has no documents; see its data and its"):
        prepared(tmp_path, "multiple_choice", more, target="answer")


def test_a_task_whose_metrics_are_no_means_is_rejected_before_it_is_scored(tmp_path: Path) -> None:
    more = "metric_list: [{metric: word_perplexity}]"
    with pytest.raises(BadInput, match=r"^tasks: mine has no metric 'word_perplexity' .* \(it has none\)\. Add one"):
        prepared(tmp_path, "loglikelihood_rolling", more, target="prompt")


def test_bits_per_byte_are_the_metric_of_a_task_of_text(tmp_path: Path) -> None:
    more = "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]"
    tasks = prepared(tmp_path, "loglikelihood_rolling", more, target="prompt")
    assert tasks.entries["mine"].primary == "bits_per_byte"


@pytest.mark.parametrize("with_accuracy", [True, False])
def test_error_rates_are_no_accuracies(tmp_path: Path, tokenizer: Any, with_accuracy: bool) -> None:
    metrics = ERRORS + (", {metric: exact_match, aggregation: mean, higher_is_better: true}]" if with_accuracy else "]")
    how = "generation_kwargs: {until: ['a'], max_gen_toks: 5}"
    tasks = prepared(tmp_path, "generate_until", f"{metrics}\n{how}")
    scores = harness.evaluate(tiny_model(0), tokenizer, tasks)
    rates = [row for row in scores.records if row["metric"] not in ("exact_match", "acc")]
    assert [row["value"] for row in rates] == [1.5] and rates[0]["higher_is_better"] is False
    assert rates[0]["primary"] is not with_accuracy
    means = [row["value"] for row in scores.records if row["family"] == "mean"]
    assert means == (
        [row["value"] for row in scores.records if row["metric"] == "exact_match"] if with_accuracy else []
    )


def test_how_choices_were_scored_is_noted(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = prepared(tmp_path, "multiple_choice", "doc_to_choice: choices", target="answer")
    assert harness.evaluate(tiny_model(0), tokenizer, tasks).note == ", choices in packed rows"
    monkeypatch.setattr("eval.language_model.is_packable", lambda config: False)
    assert harness.evaluate(tiny_model(0), tokenizer, tasks).note == ", choices row by row"
