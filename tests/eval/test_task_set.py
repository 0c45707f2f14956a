"""Which tasks there are, and tasks of a user's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from eval import harness, task_set
from tests.eval.conftest import make_items, write_jsonl

OWN = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: choices
doc_to_target: answer
num_fewshot: {shots}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1{metadata}}}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: one task with a relative data path and one, two-shot, with an absolute one."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "own"
    write_jsonl(folder / "rows.jsonl", make_items("mine", "tel", 6, 0))
    (folder / "relative.yaml").write_text(
        OWN.format(name="relative", path="rows.jsonl", shots=0, metadata=", language: tel, family: mine")
    )
    (folder / "absolute.yaml").write_text(OWN.format(name="absolute", path=folder / "rows.jsonl", shots=2, metadata=""))
    return folder


def test_a_new_family_is_a_new_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "riddles_xx.dev.jsonl", make_items("riddles", "xx", 3, 0))
    entry = task_set.prepare(tmp_path, split="dev").entries["riddles_xx"]
    assert (entry.family, entry.language, entry.primary, entry.chance) == ("riddles", "xx", "acc", 0.25)


def test_what_is_no_mean_over_documents_is_not_averaged(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    write_jsonl(tmp_path / "rows.jsonl", make_items("mine", "tel", 6, 0))
    perplexity = "{metric: perplexity, aggregation: perplexity, higher_is_better: false}"
    task = OWN.format(name="last_word", path=tmp_path / "rows.jsonl", shots=0, metadata="")
    task = task.replace("multiple_choice", "loglikelihood").replace("doc_to_choice: choices\n", "")
    task = task.replace("doc_to_target: answer", 'doc_to_target: " the"').replace(
        "metric_list: [", f"metric_list: [{perplexity}, "
    )
    (tmp_path / "last_word.yaml").write_text(task)
    scores = harness.evaluate(model, tokenizer, task_set.prepare(None, include_path=tmp_path))
    assert [row["metric"] for row in scores.records if row["task"] == "last_word"] == ["acc"]


def test_a_choice_is_scored_after_a_space(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    items = make_items("next", "nya", 1, 0)
    write_jsonl(tmp_path / "next_nya.test.jsonl", items)
    tasks = task_set.prepare(tmp_path)
    harness.evaluate(model, tokenizer, tasks)
    asked = [instance.args for instance in tasks.entries["next_nya"].task.instances]
    assert asked == [(items[0]["prompt"], " " + choice) for choice in items[0]["choices"]]


def test_a_prompt_that_looks_like_a_template_is_taken_as_it_is(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    item = {**make_items("next", "nya", 1, 0)[0], "prompt": "{{answer}} {% x %}"}
    write_jsonl(tmp_path / "next_nya.test.jsonl", [item])
    tasks = task_set.prepare(tmp_path)
    harness.evaluate(model, tokenizer, tasks)
    assert tasks.entries["next_nya"].task.instances[0].args[0] == item["prompt"]


def test_own_tasks_run_beside_ours(own: Path, folders: tuple[Path, Path], model: Any, tokenizer: Any) -> None:
    tasks = task_set.prepare(*folders, include_path=own, language="xx")
    scores = harness.evaluate(model, tokenizer, tasks)
    rows = {row["task"]: row for row in scores.records if row["primary"]}
    assert (rows["relative"]["family"], rows["relative"]["language"], rows["relative"]["chance"]) == (
        "mine",
        "tel",
        0.25,
    )
    assert (rows["absolute"]["family"], rows["absolute"]["language"], rows["absolute"]["trivial"]) == (
        "absolute",
        "xx",
        None,
    )
    assert {"mean_tel", "mean_xx", "mean_nya"} <= rows.keys()
    assert rows["mean_tel"]["trivial"] is None
    prompts = [instance.args[0] for instance in tasks.entries["absolute"].task.instances]
    assert all(prompt.count("Answer:") == 3 for prompt in prompts)
    again = harness.evaluate(model, tokenizer, task_set.prepare(*folders, include_path=own, language="xx"))
    assert again == scores


def test_changed_data_is_seen(own: Path) -> None:
    assert len(task_set.prepare(include_path=own, names=["relative"]).entries["relative"].task.eval_docs) == 6
    write_jsonl(own / "rows.jsonl", make_items("mine", "tel", 9, 1))
    os.utime(own / "rows.jsonl", (1, 1))
    assert len(task_set.prepare(include_path=own, names=["relative"]).entries["relative"].task.eval_docs) == 9


def test_names_choose_and_unknown_ones_are_refused(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(task_set.prepare(include_path=own, names=["relative"]).entries) == ["relative"]
    real = task_set.task_manager
    monkeypatch.setattr(
        task_set, "task_manager", lambda folder, shipped: real(folder, False)
    )  # the whole index takes many seconds
    with pytest.raises(BadInput, match="'relativ' is unknown; near it: relative"):
        task_set.prepare(include_path=own, names=["relativ"])


def test_own_folders_that_cannot_work_are_refused(own: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not a folder"):
        task_set.prepare(include_path=tmp_path / "none")
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadInput, match="holds no lm-eval YAML"):
        task_set.prepare(include_path=tmp_path / "bare")
    (own / "relative.yaml").write_text("task: [unclosed")
    with pytest.raises(BadInput, match=r"relative\.yaml"):
        task_set.prepare(include_path=own / ".." / "own" / ".")
    other = tmp_path / "other"
    other.mkdir()
    (other / "lost.yaml").write_text(OWN.format(name="lost", path="nowhere.jsonl", shots=0, metadata=""))
    with pytest.raises(BadInput, match="lost cannot be loaded: .*nowhere"):
        task_set.prepare(include_path=other)


def test_a_primary_metric_that_the_task_lacks_is_refused(own: Path, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "odd.yaml").write_text(OWN.format(name="odd", path=own / "rows.jsonl", shots=0, metadata=", primary: f1"))
    with pytest.raises(BadInput, match=r"odd has no metric 'f1'.*it has acc"):
        harness.evaluate(model, tokenizer, task_set.prepare(include_path=other))


def test_nothing_to_do_a_wrong_split_and_a_wrong_limit_are_refused(folders: tuple[Path, Path], own: Path) -> None:
    for arguments, message in [
        ({}, "nothing to evaluate"),
        ({"split": "train"}, "split: 'train'"),
        ({"limit": 0}, "limit: 0"),
    ]:
        with pytest.raises(BadInput, match=message):
            task_set.prepare(**arguments)
    write_jsonl(folders[0] / "relative.test.jsonl", make_items("relative", "nya", 2, 0))
    with pytest.raises(BadInput, match="'relative' is the name of an items file too"):
        task_set.prepare(*folders, include_path=own)


def test_an_excerpt_ends_with_a_whole_word() -> None:
    document = {"id": "a", "text": "one two three"}
    assert [task_set.truncate(document, length)["text"] for length in (None, 50, 12, 7, 6, 2)] == [
        "one two three",
        "one two three",
        "one two",
        "one two",
        "one",
        "on",
    ]
