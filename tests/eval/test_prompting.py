"""One task set asked plain and by a chat template, and what cannot be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from eval import __main__, harness, task_set
from eval.language_model import PackedLM
from eval.prompting import Prompting
from tests.eval import local_tasks
from tests.eval.chat_models import DATED, NO_SYSTEM, chat_model, chat_tokenizer, saved
from tests.eval.conftest import make_items, write_jsonl

AUTO, BOTH = Prompting("auto"), Prompting("both")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return chat_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return chat_model(tokenizer)


@pytest.fixture
def tasks(tmp_path: Path) -> task_set.TaskSet:
    """Sums that are generated, choices of our own, and a text."""
    write_jsonl(tmp_path / "items" / "next_tam.test.jsonl", make_items("next", "tam", 3, 0))
    write_jsonl(tmp_path / "text" / "tam.test.jsonl", [{"id": "a", "text": "நீர் மலை"}])
    own = local_tasks.write(tmp_path / "own", ["mgsm_tam"])
    return task_set.prepare(tmp_path / "items", tmp_path / "text", include_path=own, limit=2, fewshot={"mgsm_tam": 2})


def asked(model: Any, tokenizer: Any, tasks: task_set.TaskSet, prompting: Prompting, monkeypatch: Any) -> list[str]:
    """The prompts of generation that a model is given."""
    prompts: list[str] = []
    own = PackedLM.generate_until

    def note(lm: Any, requests: list[Any]) -> list[str]:
        prompts.extend(request.args[0] for request in requests)
        return own(lm, requests)

    with monkeypatch.context() as patch:
        patch.setattr(PackedLM, "generate_until", note)
        harness.evaluate(model, tokenizer, tasks, prompting=prompting)
    return prompts


def test_plain_chat_plain(model: Any, tokenizer: Any, tasks: task_set.TaskSet, monkeypatch: Any) -> None:
    first, chat, last = (
        asked(model, tokenizer, tasks, prompting, monkeypatch) for prompting in (Prompting(), AUTO, Prompting())
    )
    assert first == last and len(first) == len(chat) == 2
    assert all("<|im_start|>" not in prompt for prompt in first)
    assert all(prompt.count("<|im_start|>user\n") == 3 for prompt in chat)
    plain = [prompt.replace("\n\n", " ").split("கேள்வி:")[1:] for prompt in first]
    turns = [[turn.partition("<|im_end|>")[0] for turn in prompt.split("கேள்வி:")[1:]] for prompt in chat]
    assert [[part.partition("விடை:")[0] for part in parts] for parts in plain] == [
        [part.partition("விடை:")[0] for part in parts] for parts in turns
    ]  # the same examples


def test_requests_are_kept_for_each_template_day_and_system_message(
    model: Any, tokenizer: Any, tasks: task_set.TaskSet, monkeypatch: Any
) -> None:
    dated = chat_tokenizer(DATED)
    ways = [
        (tokenizer, AUTO),
        (tokenizer, Prompting("auto", "சுருக்கமாக")),
        (dated, AUTO),
        (dated, Prompting("auto", day="2026-07-26")),
    ]
    prompts = [asked(model, of, tasks, prompting, monkeypatch)[0] for of, prompting in ways]
    assert len(set(prompts)) == 4
    assert prompts[1].startswith("<|im_start|>system\nசுருக்கமாக<|im_end|>")
    assert prompts[2].startswith("Today: 01 Jan 2025\n") and prompts[3].startswith("Today: 26 Jul 2026\n")
    assert [asked(model, of, tasks, prompting, monkeypatch)[0] for of, prompting in ways] == prompts


def test_both_has_a_row_for_each_mode(model: Any, tokenizer: Any, tasks: task_set.TaskSet) -> None:
    both = harness.evaluate(model, tokenizer, tasks, prompting=BOTH)
    plain, chat = (harness.evaluate(model, tokenizer, tasks, prompting=prompting) for prompting in (Prompting(), AUTO))
    assert both.note.startswith(", prompts by the chat template and plain, choices in packed rows")

    def values(scores: harness.Scores, chat: bool) -> dict[tuple[str, str], float]:
        return {
            (row["task"].removesuffix("@chat"), row["metric"]): row["value"]
            for row in scores.records
            if row["task"].endswith("@chat") is chat and row["metric"] != "bits_per_byte"
        }

    assert values(both, False) == values(plain, False)
    assert values(both, True) == values(chat, False)
    assert len(values(both, True)) == 7 and values(both, True) != values(both, False)
    bits = [row for row in both.records if row["metric"] == "bits_per_byte"]
    assert [row["task"] for row in bits] == ["bits_per_byte_tam"] and "chat" not in bits[0]
    assert all(row["chat"] is row["task"].endswith("@chat") for row in both.records if row not in bits)
    assert {sample["task"] for sample in both.samples} == {
        *("next_tam", "bits_per_byte_tam", "mgsm_tam", "next_tam@chat", "mgsm_tam@chat")
    }
    assert not any("chat" in row for row in plain.records)


@pytest.mark.parametrize("mode", ["auto", "both"])
def test_a_checkpoint_without_a_template_is_asked_plain(model: Any, tasks: task_set.TaskSet, mode: Any) -> None:
    bare = chat_tokenizer(None)
    scores = harness.evaluate(model, bare, tasks, prompting=Prompting(mode))
    assert scores.note.startswith(", plain prompts (no chat template)")
    plain = harness.evaluate(model, bare, tasks)
    assert [{k: v for k, v in row.items() if k != "chat"} for row in scores.records] == plain.records
    assert {row.get("chat") for row in scores.records} == {False, None}


def test_bits_per_byte_have_no_template(model: Any, tokenizer: Any, tasks: task_set.TaskSet) -> None:
    def bits(prompting: Prompting, template: str) -> float:
        of = chat_tokenizer(template)
        rows = harness.evaluate(model, of, tasks, prompting=prompting).records
        return next(row["value"] for row in rows if row["metric"] == "bits_per_byte")

    assert bits(Prompting(), tokenizer.chat_template) == bits(AUTO, tokenizer.chat_template)


def test_answer_bits_are_of_what_was_scored(model: Any, tokenizer: Any, tasks: task_set.TaskSet) -> None:
    """By a template, lm-eval leaves out the delimiter before a choice: a byte less for each."""
    plain, chat = (
        [s for s in harness.evaluate(model, tokenizer, tasks, prompting=prompting).samples if s["task"] == "next_tam"]
        for prompting in (Prompting(), AUTO)
    )
    assert [s["answer_bytes"] for s in plain] == [s["answer_bytes"] + 1 for s in chat]


def test_control_tokens_of_the_template_are_not_those_of_the_text(
    model: Any, tokenizer: Any, tasks: task_set.TaskSet
) -> None:
    assert harness.evaluate(model, tokenizer, tasks, prompting=AUTO).control == {}


def test_a_system_message_that_the_template_rejects_is_one_line(model: Any, tasks: task_set.TaskSet) -> None:
    strict = chat_tokenizer(NO_SYSTEM)
    assert harness.evaluate(model, strict, tasks, prompting=AUTO).records
    with pytest.raises(BadInput, match=r"^eval\.system: .* takes no system message .* Leave both out"):
        harness.evaluate(model, strict, tasks, prompting=Prompting("auto", "சுருக்கமாக"))


def test_greedy_generation_leaves_the_folders_settings_out(model: Any, tokenizer: Any, tasks: task_set.TaskSet) -> None:
    def answers(prompting: Prompting) -> list[str]:
        scores = harness.evaluate(model, tokenizer, tasks, prompting=prompting)
        return [sample["answer"] for sample in scores.samples if sample["task"] == "mgsm_tam"]

    plain = answers(AUTO)
    model.generation_config.repetition_penalty = 8.0
    try:
        assert answers(AUTO) != plain
        assert answers(Prompting("auto", generation="greedy")) == plain
    finally:
        model.generation_config.repetition_penalty = 1.0


def test_too_many_examples_are_one_line_before_anything_runs(tmp_path: Path) -> None:
    own = local_tasks.write(tmp_path / "own", ["mgsm_tam", "choice_tam"])
    assert task_set.prepare(include_path=own, fewshot=local_tasks.SHOTS).entries
    with pytest.raises(
        BadInput, match=r"^eval\.fewshot: choice_tam has 4 examples to draw from, got 5 for each prompt"
    ):
        task_set.prepare(include_path=own, fewshot={"choice_tam": 5})
    with pytest.raises(BadInput, match=r"^eval\.fewshot: must name tasks .*, got 'mgsm'. Near it: mgsm_tam"):
        task_set.prepare(include_path=own, fewshot={"mgsm": 2})
    with pytest.raises(BadInput, match=r"^eval\.fewshot: must be 0 or more, got -1 for mgsm_tam"):
        task_set.prepare(include_path=own, fewshot={"mgsm_tam": -1})


def test_a_task_that_states_no_examples_keeps_none(tmp_path: Path) -> None:
    own = local_tasks.write(tmp_path / "own", ["mgsm_tam", "choice_tam"])
    with (own / "choice_tam.yaml").open("a", encoding="utf-8") as file:
        file.write("num_fewshot: 0\n")
    entries = task_set.prepare(include_path=own, fewshot=3).entries
    assert {name: entry.task.get_config("num_fewshot") for name, entry in entries.items()} == {
        "choice_tam": 0,
        "mgsm_tam": 3,
    }


def test_the_command_line_takes_the_same_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, own = saved(tmp_path / "model"), local_tasks.write(tmp_path / "own", ["choice_tam"])
    out = ["--include-path", str(own), "--out", str(tmp_path / "out"), "--limit", "1"]
    assert __main__.main([str(model), *out, "--chat", "auto", "--system", "சொல்", "--fewshot", "2"]) == 0
    assert '"chat": true' in (tmp_path / "out" / "scores.jsonl").read_text(encoding="utf-8")
    bare = saved(tmp_path / "bare", None)
    assert __main__.main([str(bare), *out, "--chat", "auto"]) == 2
    assert "--chat: must be none for a checkpoint without a chat template, got auto" in capsys.readouterr().err
    assert __main__.main([str(model), *out, "--fewshot", "5"]) == 2
    assert "choice_tam has 4 examples" in capsys.readouterr().err
