"""TODO."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.chat import DEFAULT_DAY, read_chat_template
from common.files import write_jsonl
from eval.prompting import Prompting
from eval.task_set import UNDETERMINED
from pipeline import page_questions
from pipeline.baselines import BASELINES
from pipeline.execute import Job
from pipeline.job_settings import (
    AnswersSettings,
    EvalOptions,
    EvalSettings,
    LeakOptions,
    LeakSettings,
    TuneOptions,
    TuneSettings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from eval.harness import Scores
    from eval.task_set import TaskSet


def run_contamination(job: Job) -> None:
    from eval.task_set import item_texts
    from train.data import contamination

    corpus, made = job.folders["corpus"], job.folders.get("instructions", job.folders["items"])
    settings, options = LeakSettings(**job.settings), LeakOptions(**job.options)
    tasks = tasks_of_settings(job, settings, options.include_path)
    files = contamination.all_training_files(corpus, made)
    contamination.find_contamination(item_texts(tasks), files, job.out, job.work, options.workers)


def packing_fact(scores: Scores) -> dict[str, bool]:
    """Return whether choices were scored in packed rows, for stage.json; nothing if no choice was scored."""
    return {} if scores.packed is None else {"packed_rows": scores.packed}


def run_eval(job: Job) -> None:
    import torch

    from eval import harness

    if unwritten(job):  # the chat model won, and has been scored
        return copy_scores(job.folders["otherwise"], job.out)
    settings, options = EvalSettings(**job.settings), EvalOptions(**job.options)
    torch.set_num_threads(options.threads)
    tasks = tasks_of_settings(job, settings, options.include_path)
    how: Mapping[str, Any] = {
        "batch_tokens": options.batch_tokens,
        "device": options.device,
        "dtype": settings.dtype,
        "trained_length": settings.trained_length,
        "gpus": options.gpus,
        "prompting": prompting(settings),
    }
    if "merge" in job.stage.parents:
        import merge
        from merge import Recipe

        place = "cpu" if options.gpus > 1 else None  # it fits no single GPU
        recipe = Recipe.from_yaml(job.folders["merge"] / "merge.yml")
        model = merge.load(recipe, options.device, place)
        folders = checkpoints(job)
        folder = folders[speaker(folders, settings.chat, recipe.tokenizer)]
        if folder != folders[BASE]:
            generates_as(model, folder)
        scores = harness.evaluate(model, tokenizer_of(folder), tasks, **how)
    else:
        scores = harness.evaluate_folder(job.checkpoint("checkpoint"), tasks, **how)
    job.note = scores.note
    job.facts |= packing_fact(scores)
    harness.write_scores(scores, job.out)


def unwritten(job: Job) -> bool:
    """Whether a checkpoint that is chosen among others was not written, as its stage `otherwise` stands for it."""
    return "otherwise" in job.folders and not job.checkpoint("checkpoint").is_dir()


def copy_scores(scored: Path, out: Path) -> None:
    """Leaves the scores of another evaluation."""
    for file in scored.iterdir():
        if file.suffix == ".jsonl":
            shutil.copyfile(file, out / file.name)


def prompting(settings: EvalSettings | TuneSettings) -> Prompting:
    """Return how a stage prompts its checkpoints."""
    generation = settings.generation if isinstance(settings, EvalSettings) else "own"
    return Prompting(settings.chat, settings.system, generation, settings.day or DEFAULT_DAY)


def checkpoints(job: Job) -> dict[str, Path]:
    """Return the checkpoints that a merge is made of, by role."""
    return {name: job.checkpoint(name) for name in job.stage.parents if name in BASELINES or name == BASE}


def tasks_of_settings(job: Job, settings: LeakSettings, include_path: str | None) -> TaskSet:
    """The tasks of a split: items and texts of the corpus, and lm-eval's."""
    split, limit, excerpt = settings.split, settings.limit, settings.excerpt
    names, language = tuple(settings.tasks), settings.language
    shots = settings.fewshot if isinstance(settings, EvalSettings) else None
    asked = tuple(sorted(shots.items())) if isinstance(shots, Mapping) else shots
    items, corpus = job.folders["items"], job.folders["corpus"]
    return task_set(items, corpus, split, limit, excerpt, include_path, names, language, asked)


@cache
def task_set(
    items: Path,
    corpus: Path,
    split: str,
    limit: int | None,
    excerpt: int | None,
    include_path: str | None = None,
    names: tuple[str, ...] = (),
    language: str = UNDETERMINED,
    fewshot: int | tuple[tuple[str, int], ...] | None = None,
) -> TaskSet:
    """The tasks of a split, built once a process: every checkpoint is scored on the same ones."""
    from eval import task_set

    families = items / "tasks" if any((items / "tasks").iterdir()) else None  # no families: no items of ours
    return task_set.prepare(
        families,
        corpus / "text",
        split=split,
        limit=limit,
        excerpt=excerpt,
        include_path=None if include_path is None else Path(include_path),
        names=names,
        language=language,
        fewshot=dict(fewshot) if isinstance(fewshot, tuple) else fewshot,
    )


BASE = "model"  # the role of what task vectors start from
NOT_INSTRUCTED = ("base", "ct")  # arms that learnt no instructions: their templates, if any, are the base's


def speaker(folders: Mapping[str, Path], chat: str, named: str | None = None) -> str:
    """Return the role of the parent of a merge whose tokenizer it is scored with. Reads the parents' templates.

    folders: checkpoints by role. chat: none, auto or both. named: the model that the recipe takes its tokenizer from.
    By a template: the first parent that learnt instructions and has one, else the first that has one, else the base.
    """
    if named in folders:
        return str(named)
    if chat == "none":
        return BASE
    merged = [name for name in folders if name in BASELINES]
    by_instructions = sorted(merged, key=lambda name: name in NOT_INSTRUCTED)
    return next((name for name in [*by_instructions, BASE] if read_chat_template(folders[name])), BASE)


def tokenizer_of(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def generates_as(model: PreTrainedModel, folder: Path) -> None:
    """Give a merge in memory the generation config of a checkpoint, if that has one."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


ANSWERS = "answers.jsonl"
OTHERWISE = "otherwise"  # the answers of the chat model, which are those of an adapted model that was not written


def run_answers(job: Job) -> None:
    """Generate one model's answers: by its chat template if it has one, else to the plain text."""
    if OTHERWISE in job.folders and not (job.folders["checkpoint"] / "model").is_dir():
        shutil.copyfile(job.folders[OTHERWISE] / ANSWERS, job.out / ANSWERS)
        job.note = ": those of the chat model"
        return
    import torch

    from eval import loading
    from eval.answers import generate_answers

    settings, options = AnswersSettings(**job.settings), TuneOptions(**job.options)
    torch.set_num_threads(options.threads)
    asked = settings.questions or page_questions.draw(
        job.folders["items"], job.folders["corpus"], settings.language, settings.seed
    )
    model, tokenizer = loading.load_checkpoint(
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
    from eval.prompting import chat_template_of

    if chat_template_of(tokenizer) is None:
        return question
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": question}]
