"""The stage `answers`: what one model says to the questions, in its own words.

It leaves answers.jsonl, one line per question: the question, the answer, its tokens, and whether the model ended it.
"""

from __future__ import annotations

import shutil
from typing import Any

from common.chat import DEFAULT_DAY
from common.files import write_jsonl
from pipeline import page_questions
from pipeline.execute import Job
from pipeline.job_settings import AnswersSettings, TuneOptions

ANSWERS = "answers.jsonl"
OTHERWISE = "otherwise"  # the answers of the chat model, which are those of an adapted model that was not written


def answers(job: Job) -> None:
    """Generate one model's answers: by its chat template if it has one, else to the plain text."""
    if OTHERWISE in job.folders and not (job.folders["checkpoint"] / "model").is_dir():
        shutil.copyfile(job.folders[OTHERWISE] / ANSWERS, job.out / ANSWERS)
        job.note = ": those of the chat model"
        return
    import torch

    from eval import checkpoints
    from eval.answers import generate_answers

    settings, options = AnswersSettings(**job.settings), TuneOptions(**job.options)
    torch.set_num_threads(options.threads)
    asked = settings.questions or page_questions.draw(
        job.folders["items"], job.folders["corpus"], settings.language, settings.seed
    )
    model, tokenizer = checkpoints.load(
        job.checkpoint("checkpoint"), device=options.device, dtype=settings.dtype, gpus=options.gpus
    )
    given = generate_answers(
        model,
        tokenizer,
        [prompt(tokenizer, question, settings.system) for question in asked],
        max_new_tokens=settings.tokens,
        device=options.device if options.gpus == 1 else None,
        batch_tokens=options.batch_tokens,
        generation=settings.generation,
        day=settings.day or DEFAULT_DAY,
    )
    rows = [
        {"question": question, "answer": one.text, "tokens": one.tokens, "ended": one.ended}
        for question, one in zip(asked, given, strict=True)
    ]
    write_jsonl(job.out / ANSWERS, rows)
    job.note = f": {sum(one.ended for one in given)} of {len(given)} end by themselves"


def prompt(tokenizer: Any, question: str, system: str | None) -> str | list[dict[str, str]]:
    """Return a question as messages for the tokenizer's chat template, or as it is if there is no template."""
    from eval.chat_prompts import template_of

    if template_of(tokenizer) is None:
        return question
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": question}]
