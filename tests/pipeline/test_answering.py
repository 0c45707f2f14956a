"""The stage `answers`: one model's own words, by its template if it has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.answers import generate_answers
from pipeline.execute import Job
from pipeline.stages.scoring import ANSWERING, AnswersSettings, ScoreOptions, prompt, run_answers
from pipeline.stages.stage import Stage
from tests.eval.chat_models import CHATML, chat_tokenizer, saved
from tests.pipeline.toy_stage import toy_stage

QUESTIONS = ["நீர் என்றால் என்ன?", "Moni", "བོད་ཡིག་ཟེར་ན་ཅི་ཞིག་ཡིན་ནམ།"]
SETTINGS: dict[str, Any] = {"language": "tam", "seed": 0, "tokens": 6, "dtype": "float32", "questions": QUESTIONS}
OPTIONS = ScoreOptions(device="cpu", threads=1, batch_tokens=256)


def made(folder: Path, model: Path, **more: object) -> list[dict[str, object]]:
    """What the stage leaves of a given model."""
    stage = Stage(
        ANSWERING, "tam", AnswersSettings(**{**SETTINGS, **more}), {"checkpoint": toy_stage("model", "given")}, OPTIONS
    )
    (folder / "out").mkdir(parents=True)
    job = Job(stage, folder / "out", folder / "work", {"checkpoint": model})
    run_answers(job)
    return [json.loads(line) for line in (job.out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("template", [CHATML, None])
def test_answers_are_those_of_the_folder_asked_alone(tmp_path: Path, template: str | None) -> None:
    model = saved(tmp_path / "model", template)
    tokenizer = chat_tokenizer(template)
    rows = made(tmp_path / "stage", model)
    assert [row["question"] for row in rows] == QUESTIONS
    for row, question in zip(rows, QUESTIONS, strict=True):
        asked = question if template is None else [{"role": "user", "content": question}]
        [alone] = generate_answers(model, tokenizer, [asked], max_new_tokens=6)
        assert row == {"question": question, "answer": alone.text, "tokens": alone.tokens, "ended": alone.ended}


def test_a_system_message_begins_every_chat_and_no_plain_prompt() -> None:
    asked = prompt(chat_tokenizer(), "Moni", "பதில் சொல்")
    assert asked == [{"role": "system", "content": "பதில் சொல்"}, {"role": "user", "content": "Moni"}]
    assert prompt(chat_tokenizer(None), "Moni", "பதில் சொல்") == "Moni"


def test_a_model_that_was_not_written_answers_as_the_chat_model(tmp_path: Path) -> None:
    said = '{"question": "a", "answer": "ம", "tokens": 1, "ended": true}\n'
    for name in ("adapted", "chat", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "chat" / "answers.jsonl").write_text(said, encoding="utf-8")
    parents = {"checkpoint": toy_stage("adapted", "tam"), "otherwise": toy_stage("answers", "tam")}
    folders = {"checkpoint": tmp_path / "adapted", "otherwise": tmp_path / "chat"}
    job = Job(
        Stage(ANSWERING, "tam", AnswersSettings(**SETTINGS), parents, OPTIONS),
        tmp_path / "out",
        tmp_path / "work",
        folders,
    )
    run_answers(job)
    assert (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8") == said
    assert job.note == ": those of the chat model"
