"""What makes each kind of stage; pipeline/kinds.py names the functions. A room is imported when it makes a stage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.chat import DEFAULT_DAY
from common.errors import BadInput
from common.special_tokens import in_words
from common.units import format_tokens
from eval.asking import Asking
from eval.task_set import UNDETERMINED
from pipeline import choosing, recipes
from pipeline.arms import ARMS
from pipeline.execute import Job
from pipeline.job_settings import (
    DeviceOptions,
    EvalOptions,
    EvalSettings,
    LeakOptions,
    LeakSettings,
    MergeSettings,
    TuneSettings,
)
from pipeline.run import launch
from pipeline.speaker import BASE, generates_as, speaker, tokenizer_of
from train.data.chat.reading import said
from train.stage_settings import (
    BaseModelSettings,
    CipherSettings,
    CorpusOptions,
    CorpusSettings,
    CtBlocksSettings,
    InstructionsInLanguageSettings,
    InstructionsSettings,
    ItemsSettings,
    SftBlocksSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    from eval.task_set import TaskSet
    from merge import Recipe


def corpus(job: Job) -> None:
    from train.data.corpus import build

    kind = CipherSettings if job.settings["source"] == "cipher" else CorpusSettings
    settings = kind.from_mapping(job.settings)
    build.build(settings, CorpusOptions.from_mapping(job.options), job.out, job.work)


def items(job: Job) -> None:
    from train.data import instructions

    settings = ItemsSettings.from_mapping(job.settings)
    instructions.build(job.folders["corpus"], settings, job.out, job.options["sft_path"])


def instructions(job: Job) -> None:
    from train.data import instructions

    settings, options = InstructionsSettings.from_mapping(job.settings), job.options
    instructions.from_hub(settings, job.out, job.work, options["folder"], options.get("workers", 1))


def target_instructions(job: Job) -> None:
    from train.data import instructions

    settings = InstructionsInLanguageSettings.from_mapping(job.settings)
    instructions.build_in_language(job.folders["corpus"], settings, job.out)


def leaks(job: Job) -> None:
    from eval.task_texts import texts
    from train.data import contamination

    corpus, made = job.folders["corpus"], job.folders.get("instructions", job.folders["items"])
    settings, options = LeakSettings(**job.settings), LeakOptions(**job.options)
    tasks = tasks_of_settings(job, settings, options.include_path)
    files = contamination.all_training_files(corpus, made)
    contamination.report(texts(tasks), files, job.out, job.work, options.workers)


def base(job: Job) -> None:
    from train import base_model

    settings, prepared = job.settings, job.work / "prepared"
    if not (prepared / "whole").exists():
        base_model.prepare(job.folders["corpus"], BaseModelSettings.from_mapping(settings), prepared)
        (prepared / "whole").touch()
    training = TrainingSettings.from_mapping({**settings, "schedule_tokens": settings["tokens"]})
    job.launched = launch.train(job, prepared / "model", prepared / "blocks", training)
    shutil.rmtree(job.out / "state")  # nothing continues from here


def ct_blocks(job: Job) -> None:
    from train.data import packing

    settings, workers = CtBlocksSettings.from_mapping(job.settings), job.options.get("workers", 1)
    packing.ct_blocks(job.folders["corpus"], job.checkpoint("model"), settings, job.out, job.work, workers)
    job.note = packed(job.out)


def sft_blocks(job: Job) -> None:
    from train.data import packing

    settings, workers = SftBlocksSettings.from_mapping(job.settings), job.options.get("workers", 1)
    items, corpus = job.folders["items"], job.folders.get("corpus")
    packing.sft_blocks(items, corpus, job.checkpoint("model"), settings, job.out, job.work, workers)
    job.note = packed(job.out)


def mixed_blocks(job: Job) -> None:
    from train.data import mixing

    check_budget(job.folders["ct_blocks"], job.settings["ct_tokens"])
    mixing.mixed_blocks(job.folders["ct_blocks"], job.folders["sft_blocks"], job.settings["ct_tokens"], job.out)
    job.note = packed(job.out)


def packed(blocks: Path) -> str:
    """How many blocks there are, how full they are, and control tokens that their text has by name."""
    counts = json.loads((blocks / "counts.json").read_text(encoding="utf-8"))
    filled = f": {counts['blocks']:,} blocks, {counts['real_token_share']:.2%} of their positions real tokens"
    chat = conversed(counts["chat"], counts["trained_tokens"]) if "chat" in counts else ""
    return filled + chat + in_words(counts.get("control_tokens", {}))


def conversed(chat: Mapping[str, Any], trained: int) -> str:
    """How many conversations SFT learns, and what became of the others."""
    names = {"cut": "cut to a block", "unrolled": "unrolled", "shortened": "ended at an empty turn"}
    names |= {"system_in_question": "with the system message in the first question"}
    changed = "".join(f", {chat[name]:,} {words}" for name, words in names.items() if chat.get(name))
    left_out = sum(chat["left_out"].values())
    reasons = f", {left_out:,} left out ({said(chat['left_out'])})" if left_out else ""
    sequences = f"{chat['answers']:,} answers in {chat['sequences']:,} sequences"
    return f"; {chat['conversations']:,} conversations, {sequences}, {trained:,} tokens with loss{changed}{reasons}"


def ct(job: Job) -> None:
    if job.settings["tokens"] is not None:
        check_budget(job.folders["blocks"], job.settings["tokens"])
    _train(job, job.resume.path / "state" if job.resume else None)
    if job.stage.trajectory is None:  # a decay: nothing continues from its end
        shutil.rmtree(job.out / "state")


def sft(job: Job) -> None:
    if "trainings" in job.settings:  # the tries of CT-then-SFT, chosen among on dev
        number, _ = choosing.chosen(job)
        settings = TrainingSettings.from_mapping(job.settings["trainings"][number])
        job.launched = launch.train(job, job.checkpoint("model"), job.folders[f"blocks-{number}"], settings)
    else:
        _train(job, None)
    shutil.rmtree(job.out / "state")  # nothing continues from here


def _train(job: Job, resume_state: Path | None) -> None:
    settings = TrainingSettings.from_mapping({**job.settings, **budget_of(job)})
    job.launched = launch.train(job, job.checkpoint("model"), job.folders["blocks"], settings, resume_state)


def budget_of(job: Job) -> dict[str, int]:
    """The tokens of a training on all of the text, as its blocks have them: whole steps. Empty where they are stated.

    Raises BadInput for a text that is shorter than one step.
    """
    if job.settings["tokens"] is not None:
        return {}
    counts = json.loads((job.folders["blocks"] / "counts.json").read_text(encoding="utf-8"))
    step: int = job.settings["batch_tokens"]
    if counts["tokens"] < step:
        raise BadInput(
            f"ct.batch_tokens={format_tokens(step)}: the text with its English share has {counts['tokens']:,} tokens,"
            " less than one step. Set fewer tokens a step, or give more text."
        )
    tokens = counts["tokens"] // step * step
    return {"tokens": tokens, "schedule_tokens": tokens}


def check_budget(blocks: Path, tokens: int) -> None:
    """Reject a budget that the packed corpus cannot fill."""
    available = json.loads((blocks / "counts.json").read_text(encoding="utf-8"))["tokens"]
    if tokens > available:
        raise BadInput(
            f"ct.tokens={format_tokens(tokens)}: the corpus has {available:,} tokens including English."
            " Set a smaller budget, or give more text."
        )


def merge(job: Job) -> None:
    import torch
    import yaml

    import merge

    torch.set_num_threads(DeviceOptions(**job.options).threads)
    recipe = chosen_recipe(job)
    audit = merge.audit(recipe)
    (job.out / "audit.json").write_text(json.dumps(audit, indent=1) + "\n", encoding="utf-8")
    described = recipe.to_dict()  # paths relative to where the entry will lie: the store can be moved
    lies_in = job.out.absolute().parents[2] / "merge" / "entry"
    described["base"] = os.path.relpath(described["base"], lies_in)
    for model in described["models"].values():
        model |= {key: os.path.relpath(model[key], lies_in) for key in ("path", "adapter") if key in model}
    (job.out / "merge.yml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")


def weights(job: Job) -> None:
    import torch

    import merge
    from merge import Recipe

    torch.set_num_threads(DeviceOptions(**job.options).threads)
    merge.write(Recipe.from_yaml(job.folders["merge"] / "merge.yml"), job.out / "model")


def evaluate(job: Job) -> None:
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
        "asking": asking(settings),
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
    job.note, job.packed_rows = scores.note, scores.packed
    harness.write(scores, job.out)


def unwritten(job: Job) -> bool:
    """Whether a checkpoint that is chosen among others was not written, as its stage `otherwise` stands for it."""
    return "otherwise" in job.folders and not job.checkpoint("checkpoint").is_dir()


def copy_scores(scored: Path, out: Path) -> None:
    """Leaves the scores of another evaluation."""
    for file in scored.iterdir():
        if file.suffix == ".jsonl":
            shutil.copyfile(file, out / file.name)


def asking(settings: EvalSettings | TuneSettings) -> Asking:
    """Return how a stage prompts its checkpoints."""
    generation = settings.generation if isinstance(settings, EvalSettings) else "own"
    return Asking(settings.chat, settings.system, generation, settings.day or DEFAULT_DAY)


def checkpoints(job: Job) -> dict[str, Path]:
    """Return the checkpoints that a merge is made of, by role."""
    return {name: job.checkpoint(name) for name in job.stage.parents if name in ARMS or name == BASE}


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


def chosen_recipe(job: Job) -> Recipe:
    """The merge of this cell's checkpoints by the settings that `tune` chose, or that are stated."""
    settings = MergeSettings(**job.settings)
    return recipe_of(job, settings.stated or choosing.chosen(job)[1], settings.seed)


def recipe_of(job: Job, settings: Mapping[str, Any], seed: int) -> Recipe:
    """The merge of a job's checkpoints by these settings (one of a method's tries)."""
    from merge import Recipe

    parents = job.stage.parents
    base, names = job.checkpoint("model").absolute(), [name for name in parents if name in ARMS]
    recipe = recipes.complete(settings, base, {name: job.checkpoint(name).absolute() for name in names}, seed)
    for name in names:
        adapter = job.folders[name].absolute() / "adapter"
        started_from = parents[name].parents.get("model")
        on_base = started_from is None or started_from.key == parents["model"].key
        if adapter.is_dir() and on_base:  # LoRA: a few megabytes are read beside the base, not a second model
            recipe["models"][name] |= {"path": str(base), "adapter": str(adapter)}
    return Recipe.from_dict(recipe, where=str(job.stage))
