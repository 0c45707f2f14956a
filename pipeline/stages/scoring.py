"""The stages that score: `eval` (a checkpoint or a merge), `leaks` (contamination) and `answers` (free text).

Each kind has its settings, its planner and its function side by side. Plans need no torch and no files.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.chat import DEFAULT_DAY, read_chat_template
from common.files import write_jsonl
from common.settings import Settings
from eval.prompting import Generation
from eval.settings import ScoringSettings, TaskSettings
from merge.recipe import UNION_OF
from pipeline.baselines import MODEL, VARIANT, merged_roles
from pipeline.config import Config
from pipeline.stages.data import Data, source_folders, workers
from pipeline.stages.stage import Inputs, Stage, StageType

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from eval.harness import Scores
    from eval.task_set import TaskSet
    from merge import Recipe
    from pipeline.execute import Job

NOT_INSTRUCTED = ("base", "ct")  # baselines that learnt no instructions: their templates, if any, are the base's
OTHERWISE = "otherwise"  # the role of what stands for a checkpoint that is selected among others, if it is not written
ANSWERS = "answers.jsonl"


class ScoreOptions(Settings):
    """batch_tokens: in one forward pass, padding included. gpus: over which a model is spread."""

    device: str
    threads: int
    batch_tokens: int
    gpus: int = 1
    include_path: str | None = None  # folder of the user's lm-eval tasks


# --- eval ---


class EvalSettings(ScoringSettings):
    """The scoring of one checkpoint or merge."""

    language: str
    trained_length: int | None = None  # tokens per block in training: no item is scored beyond it
    day: str | None = None  # for today, where a template asks for the date


def plan_eval(config: Config, inputs: Inputs, data: Data, slug: str, scored: Mapping[str, Stage]) -> Stage:
    """Plan the scoring of a checkpoint, or of a merge of these parents."""
    day = config.chat.date if inputs.asks_date else None
    settings = EvalSettings.pick(config.eval, config, language=config.language.code, day=day)
    parents = {**scored, "items": data.items, "corpus": data.corpus}
    return Stage(EVAL, slug, settings, parents, ScoreOptions.pick(config.eval, config.compute), inputs.tasks)


def run_eval(job: Job[EvalSettings, ScoreOptions]) -> None:
    import torch

    from eval import harness

    if (
        OTHERWISE in job.folders and not job.checkpoint("checkpoint").is_dir()
    ):  # the chat model won, and has been scored
        for file in job.folders[OTHERWISE].iterdir():
            if file.suffix == ".jsonl":
                shutil.copyfile(file, job.out / file.name)
        return
    settings, options = job.settings, job.options
    torch.set_num_threads(options.threads)
    tasks = load_tasks(job, settings, options.include_path)
    if "merge" in job.stage.parents:
        import merge
        from merge import Recipe

        place = "cpu" if options.gpus > 1 else None  # it fits no single GPU
        recipe = Recipe.from_yaml(job.folders["merge"] / "merge.yml")
        model = merge.load(recipe, options.device, place)
        folders = checkpoints(job)
        folder = folders[speaker(folders, settings.chat, recipe.tokenizer)]
        if folder != folders[MODEL]:
            generates_as(model, folder)
        tokenizer = tokenizer_of_merge(job, recipe, folder)
        scores = harness.evaluate(model, tokenizer, tasks, **how(settings, options))
    else:
        scores = harness.evaluate_folder(job.checkpoint("checkpoint"), tasks, **how(settings, options))
    job.note = scores.note
    job.facts |= packing_fact(scores)
    harness.write_scores(scores, job.out)


EVAL = StageType("eval", run_eval, 2, "score", 18, tracked=True)


# --- contamination ---


class ContaminationSettings(TaskSettings):
    """The search in training text for the items that are scored."""

    language: str


class ContaminationOptions(Settings):
    """workers: processes that read training text."""

    include_path: str | None
    workers: int = 1


def plan_contamination(config: Config, inputs: Inputs, data: Data) -> Stage:
    language = config.language.code
    parents = {"items": data.items, "corpus": data.corpus, **data.sources}
    if data.instructions is not data.items:
        parents["instructions"] = data.instructions
    settings = ContaminationSettings.pick(config.eval, language=language)
    options = ContaminationOptions.pick(config.eval, workers=workers(config))
    return Stage(CONTAMINATION, language, settings, parents, options, inputs.tasks)


def run_contamination(job: Job[ContaminationSettings, ContaminationOptions]) -> None:
    from eval.task_set import item_texts
    from train.data import contamination

    corpus, made = job.folders["corpus"], job.folders.get("instructions", job.folders["items"])
    tasks = load_tasks(job, job.settings, job.options.include_path)
    files = contamination.all_training_files([corpus, *source_folders(job).values()], made)
    contamination.find_contamination(item_texts(tasks), files, job.out, job.work, job.options.workers)


# The kind and the files keep the name that they had before 0.2, so that stores stay valid.
CONTAMINATION = StageType("leaks", run_contamination, 1, "data", 10, shared=True)


# --- free answers ---


class AnswersSettings(Settings):
    """The free answers of one model."""

    language: str
    seed: int
    tokens: int  # of an answer, at most
    dtype: str  # of the weights
    questions: tuple[str, ...] | None = None  # the user's; None: test items in the language, drawn by the seed
    system: str | None = None  # message that all chats begin with
    generation: Generation = "own"
    day: str | None = None  # for today, where a template asks for the date


def plan_answers(
    config: Config, inputs: Inputs, data: Data, slug: str, tokens: int, parents: Mapping[str, Stage]
) -> Stage:
    """Plan answers of at most so many tokens of the parent `checkpoint`, or of what stands for it."""
    day = config.chat.date if inputs.asks_date else None
    settings = AnswersSettings.pick(
        config.eval, config, language=config.language.code, tokens=tokens, questions=inputs.questions, day=day
    )
    drawn_from = {} if inputs.questions else {"items": data.items, "corpus": data.corpus}
    options = ScoreOptions.pick(config.eval, config.compute, include_path=None)
    return Stage(ANSWERING, slug, settings, {**parents, **drawn_from}, options)


def run_answers(job: Job[AnswersSettings, ScoreOptions]) -> None:
    """Generate one model's answers: by its chat template if it has one, else to the plain text.

    Leaves answers.jsonl, one line per question: the question, the answer, its tokens, and whether the model ended it.
    """
    if OTHERWISE in job.folders and not (job.folders["checkpoint"] / "model").is_dir():
        shutil.copyfile(job.folders[OTHERWISE] / ANSWERS, job.out / ANSWERS)
        job.note = ": those of the chat model"
        return
    import torch

    from eval import loading
    from eval.answers import generate_answers
    from pipeline import page_questions

    settings, options = job.settings, job.options
    torch.set_num_threads(options.threads)
    questions = settings.questions or page_questions.draw(
        job.folders["items"], job.folders["corpus"], settings.language, settings.seed
    )
    model, tokenizer = loading.load_checkpoint(
        job.checkpoint("checkpoint"), device=options.device, dtype=settings.dtype, gpus=options.gpus
    )
    answers = generate_answers(
        model,
        tokenizer,
        [prompt(tokenizer, question, settings.system) for question in questions],
        max_new_tokens=settings.tokens,
        device=options.device if options.gpus == 1 else None,
        batch_tokens=options.batch_tokens,
        generation=settings.generation,
        day=settings.day or DEFAULT_DAY,
    )
    rows = [
        {"question": question, "answer": answer.text, "tokens": answer.tokens, "ended": answer.ended}
        for question, answer in zip(questions, answers, strict=True)
    ]
    write_jsonl(job.out / ANSWERS, rows)
    job.note = f": {sum(answer.ended for answer in answers)} of {len(answers)} end by themselves"


ANSWERING = StageType("answers", run_answers, 1, "score", 20)


def prompt(tokenizer: Any, question: str, system: str | None) -> str | list[dict[str, str]]:
    """Return a question as messages for the tokenizer's chat template, or as it is if there is no template."""
    from eval.prompting import chat_template_of

    if chat_template_of(tokenizer) is None:
        return question
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": question}]


# --- tasks, tokenizers and prompts ---


def how(settings: Any, options: ScoreOptions) -> dict[str, Any]:
    """Return what scoring needs besides the model and the tasks. settings: of `eval` or `tune`."""
    from eval.prompting import Prompting

    generation = settings.generation if isinstance(settings, EvalSettings) else "own"
    return {
        "batch_tokens": options.batch_tokens,
        "device": options.device,
        "dtype": settings.dtype,
        "trained_length": settings.trained_length,
        "gpus": options.gpus,
        "prompting": Prompting(settings.chat, settings.system, generation, settings.day or DEFAULT_DAY),
    }


def packing_fact(scores: Scores) -> dict[str, bool]:
    """Return whether choices were scored in packed rows, for stage.json; nothing if no choice was scored."""
    return {} if scores.packed is None else {"packed_rows": scores.packed}


def load_tasks(job: Job[Any, Any], settings: EvalSettings | ContaminationSettings, include_path: str | None) -> TaskSet:
    """Return the tasks of a split: items and texts of the corpus, and lm-eval's."""
    shots = settings.fewshot if isinstance(settings, EvalSettings) else None
    return task_set(
        job.folders["items"],
        job.folders["corpus"],
        settings.split,
        settings.limit,
        settings.max_chars,
        include_path,
        settings.tasks,
        settings.language,
        tuple(sorted(shots.items())) if isinstance(shots, Mapping) else shots,
    )


@cache
def task_set(
    items: Path,
    corpus: Path,
    split: str,
    limit: int | None,
    max_chars: int | None,
    include_path: str | None = None,
    names: tuple[str, ...] = (),
    language: str | None = None,
    fewshot: int | tuple[tuple[str, int], ...] | None = None,
) -> TaskSet:
    """Return the tasks of a split, built once per process: every checkpoint is scored on the same ones."""
    from eval import task_set

    families = items / "tasks" if any((items / "tasks").iterdir()) else None  # no families: no items of ours
    return task_set.prepare(
        families,
        corpus / "text",
        split=split,
        limit=limit,
        max_chars=max_chars,
        include_path=None if include_path is None else Path(include_path),
        names=names,
        language=task_set.UNDETERMINED if language is None else language,
        fewshot=dict(fewshot) if isinstance(fewshot, tuple) else fewshot,
    )


def checkpoints(job: Job[Any, Any]) -> dict[str, Path]:
    """Return the checkpoints that a merge is made of, by role."""
    return {name: job.checkpoint(name) for name in (MODEL, *merged_roles(job.stage.parents))}


def speaker(folders: Mapping[str, Path], chat: str, named: str | None = None) -> str:
    """Return the role of the parent of a merge whose tokenizer it is scored with. Reads the parents' templates.

    folders: checkpoints by role. chat: none, auto or both. named: the model that the recipe takes its tokenizer from.
    By a template: the first parent that learnt instructions and has one, else the first that has one, else the base.
    """
    named = named and named.removeprefix(UNION_OF)
    if named in folders:
        return str(named)
    if chat == "none":
        return MODEL
    merged = merged_roles(folders)
    by_instructions = sorted(merged, key=lambda name: name.partition(VARIANT)[0] in NOT_INSTRUCTED)
    return next((name for name in [*by_instructions, MODEL] if read_chat_template(folders[name])), MODEL)


def tokenizer_of(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def tokenizer_of_merge(job: Job[Any, Any], recipe: Recipe, speaker: Path) -> Any:
    """Load the tokenizer that a merge is scored with.

    speaker: the checkpoint that gives its tokenizer, or where the merge has the union of all tokens its template.
    """
    tokenizer = tokenizer_of(speaker)
    if not recipe.has_union:
        return tokenizer
    import merge

    folder = job.work / "tokenizer"
    merge.write_tokenizer(recipe, folder)
    union = tokenizer_of(folder)
    union.chat_template = tokenizer.chat_template or union.chat_template
    return union


def generates_as(model: PreTrainedModel, folder: Path) -> None:
    """Give a merge in memory the generation config of a checkpoint, if that has one."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
