"""The stages of an adaptation: every trial on dev, the choice, the model that is given away, its scores.

    base ── ct ──┬── merges of CT and the chat model ──────────────────┐   each trial: merge, eval on dev
    sft ─────────┘                                                     ├── choose ── adapted ── eval on test
     └───── sft_then_ct ── averaged back with the chat model ──────────┘

A candidate is the chat model itself (`sft`) or a trial of a merge. `choose` leaves `candidates.jsonl` (one row per
candidate: what it is, its gain, what it keeps) and `choice.yml`. `adapted` leaves `model/` and `outcome.json`; if the
chat model won, `outcome.json` alone. Plans need no torch and no files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub
from common.chat import read_stop_ids
from common.errors import BadInput
from common.files import read_jsonl, write_json, write_jsonl
from common.settings import Settings
from common.validation import read_json
from eval.prompting import CHAT
from eval.task_checks import LOWER
from pipeline import model_cards
from pipeline.config import Config, Method
from pipeline.config.adapting import AUTO, BEST, BITS, ENGLISH, TASKS
from pipeline.model_cards import Facts, Origin
from pipeline.old_names import current_row
from pipeline.stages.merging import DeviceOptions
from pipeline.stages.scoring import OTHERWISE, plan_answers
from pipeline.stages.stage import Inputs, Stage, StageType, in_order
from pipeline.stages.training import plan_base, plan_chat_model
from pipeline.stages.tuning import SELECTED

if TYPE_CHECKING:
    from pipeline.execute import Job
    from pipeline.stages.cell import CellPlanner

SFT = "sft"  # the candidate that is the chat model itself: not to adapt can be the answer
ANSWER_TOKENS = 256  # of a free answer, at most; the page marks those that are cut
ADAPTED = "adapted"  # the model that was chosen, by the name that it has in results
COMPARED = ("base", SFT, "ct", ADAPTED)  # whose answers stand side by side on the page


Candidate = dict[str, Any]  # candidate (its name), method, settings


class ChooseSettings(Settings):
    """The choice of the model that is given away.

    gain: the measure to raise; keep: the one that may fall below the chat model's by `tolerance` at most. write: best,
    or the method whose best trial is taken.
    """

    gain: str
    keep: str
    tolerance: float
    language: str
    candidates: tuple[Candidate, ...]
    write: str = BEST


class AdaptedSettings(Settings):
    """dtype: of the weights in the folder."""

    dtype: str


class AdaptedOptions(DeviceOptions):
    """spoken: the name of the language, as the card has it."""

    spoken: str


@dataclass(frozen=True, kw_only=True)
class AdaptStages:
    """What an adaptation makes beside the checkpoints of its cell.

    dev: evals on dev by candidate, `sft` first. evals: on test, by the names of results and `adapted`. checkpoints: by
    the same names. answers: to questions, by the same names.
    """

    choose: Stage
    adapted: Stage
    dev: Mapping[str, Stage]
    evals: Mapping[str, Stage]
    checkpoints: Mapping[str, Stage]
    answers: Mapping[str, Stage] = field(default_factory=dict)

    @property
    def goals(self) -> list[Stage]:
        """What its plan has to hold."""
        return [self.adapted, *self.dev.values(), *self.evals.values(), *self.answers.values()]


def is_one_model(config: Config, inputs: Inputs) -> bool:
    """Whether the chat model is its own base."""
    return bool(config.sft.source) and plan_base(config, inputs).key == plan_chat_model(config, inputs).key


def needs_pair(method: Method) -> bool:
    """Whether a method moves along what SFT changed in the base: nothing, where one model is both."""
    return method.from_ == "base" and SFT in method.of


def for_its_pair(config: Config, inputs: Inputs) -> Config:
    """The config without the methods that one model as the pair has no use for. Raises BadInput where none is left."""
    if config.adapt is None or not is_one_model(config, inputs):
        return config
    kept = {name: method for name, method in config.merge.methods.items() if not needs_pair(method)}
    asked = [*config.merge.methods] if config.adapt.write == BEST else [config.adapt.write]
    if not any(name in kept for name in asked):
        raise BadInput(
            f"merge.methods.{asked[0]}: model.path and sft.source are one model, so SFT changed nothing that could be"
            f" merged, got {config.sft.source}. Name the base of the chat model, or take chat_linear or chat_slerp."
        )
    return config.model_copy(update={"merge": config.merge.model_copy(update={"methods": kept})})


def plan_adaptation(planner: CellPlanner, evals: Mapping[str, Stage], checkpoints: Mapping[str, Stage]) -> AdaptStages:
    """Plan an adaptation. evals, checkpoints: on test, and what is scored there, by the names of results."""
    config, on_dev = planner.config, planner.on_dev
    assert config.adapt is not None
    slug = planner.slug(ADAPTED, ("ct",))
    dev = {SFT: on_dev.eval(f"{planner.slug(SFT, (SFT,))}-dev", {"checkpoint": planner.sft}, SFT)}
    merges: dict[str, Stage] = {}
    candidates: list[Candidate] = []
    for name, method in config.merge.methods.items():
        for number, recipe in enumerate(method.tries):
            candidate, merge = f"{name}-try-{number}", planner.trial(name, number)
            merges[candidate] = merge
            dev[candidate] = on_dev.eval_of_merge(name, merge, f"{merge.slug}-dev")
            knob = {key: recipe[key] for key in method.grid}
            candidates.append({"candidate": candidate, "method": name, "settings": knob})
    measures = {key: measure(getattr(config.adapt, key), config) for key in ("gain", "keep")}
    selection = ChooseSettings.pick(
        config.adapt, **measures, language=config.language.code, candidates=tuple(candidates)
    )
    choose = Stage(CHOOSE, slug, selection, dev, method=ADAPTED)
    sources = {role: stage for merge in merges.values() for role, stage in merge.parents.items()}
    pair = {"model": planner.base, SFT: planner.sft}  # whatever a merge calls the model that it starts from
    options = AdaptedOptions.pick(config.compute, spoken=config.language.name)
    parents = {"choose": choose, **sources, **pair, **merges}
    adapted = Stage(ADAPTED_MODEL, slug, AdaptedSettings.pick(config.adapt), parents, options, method=ADAPTED)
    scored = planner.eval(slug, {"checkpoint": adapted, OTHERWISE: evals[SFT]}, ADAPTED)
    made = {**checkpoints, ADAPTED: adapted}
    answers = plan_all_answers(planner, {**made, SFT: planner.sft})
    return AdaptStages(
        choose=choose, adapted=adapted, dev=dev, evals={**evals, ADAPTED: scored}, checkpoints=made, answers=answers
    )


def plan_all_answers(planner: CellPlanner, checkpoints: Mapping[str, Stage]) -> dict[str, Stage]:
    """Plan the free answers to the questions of the models that the page compares, by the names of results."""
    stages: dict[str, Stage] = {}
    for name in COMPARED:
        if name in checkpoints:
            slug = planner.slug(name, ("ct" if name == ADAPTED else name,))
            otherwise = {OTHERWISE: stages[SFT]} if name == ADAPTED else {}
            parents = {"checkpoint": checkpoints[name], **otherwise}
            answers = plan_answers(planner.config, planner.inputs, planner.data, slug, ANSWER_TOKENS, parents)
            stages[name] = replace(answers, method=name)
    return stages


def of_chat_model(config: Config, method: Method) -> dict[str, str]:
    """What merge.special_rows adds to a recipe: tokenizer and rows of the chat model, by its name in the recipe."""
    if config.merge.special_rows is None:
        return {}
    name = "base" if method.from_ == SFT else SFT if SFT in method.of else None
    return {"tokenizer": name, "special_rows": name} if name else {}


def measure(asked: str, config: Config) -> str:
    """The measure that `auto` stands for: the lm-eval tasks, acc or bits_per_byte."""
    if asked != AUTO:
        return asked
    if config.eval.tasks or config.eval.include_path:
        return TASKS
    return "acc" if config.families else "bits_per_byte"


CANDIDATES, OUTCOME = "candidates.jsonl", "outcome.json"
ROUNDING = 1e-9  # differences below are those of arithmetic: .40 − .02 is .38
TO_HUNDRED = {"bleu", "chrf", "ter"}  # metrics of lm-eval that are no shares
Row = dict[str, Any]


def run_choose(job: Job[ChooseSettings, Settings]) -> None:
    """Reads what each candidate scored on dev, and leaves the choice."""
    settings = job.settings
    named: list[Row] = [{"candidate": SFT, "method": SFT, "settings": {}}, *settings.candidates]
    scores = {row["candidate"]: read_scores(job.folders[row["candidate"]]) for row in named}
    measures = {"gain": settings.gain, "keep": settings.keep}
    rows = [
        {**row, **{key: value(scores[row["candidate"]], asked, settings.language) for key, asked in measures.items()}}
        for row in named
    ]
    gain_sign, keep_sign = (sign(scores[SFT], asked, settings.language) for asked in measures.values())
    candidates = marked(rows, settings.tolerance, keep_sign)
    best = winner(candidates, settings.write, gain_sign, keep_sign)
    write_jsonl(job.out / CANDIDATES, candidates)
    choice = {name: best[name] for name in ("candidate", "method", "settings")}
    choice |= {**measures, "tolerance": settings.tolerance}
    choice |= {} if settings.write == BEST else {"write": settings.write}
    write_yaml(job.out / SELECTED, choice)
    job.note = f": {choice_in_words(choice)}"


CHOOSE = StageType("choose", run_choose, 1, "merge", 1)


def marked(rows: Sequence[Row], tolerance: float, sign: int) -> list[Row]:
    """The candidates, the chat model first, each with whether it keeps: it falls by no more than the tolerance.

    sign: 1 where more is better, −1 where less is.
    """
    least = sign * rows[0]["keep"] - tolerance - ROUNDING
    return [{**row, "kept": row is rows[0] or sign * row["keep"] >= least} for row in rows]


def winner(rows: Sequence[Row], write: str, gain_sign: int, keep_sign: int) -> Row:
    """Of those that keep, the one that gains most; of equals, the earlier.

    write: a method, where one is asked for; if none of its tries keeps, the one that keeps most.
    """
    asked = [row for row in rows if write in (BEST, row["method"])]
    kept = [row for row in asked if row["kept"]]
    if kept:
        return max(kept, key=lambda row: float(gain_sign * row["gain"]))
    return max(asked, key=lambda row: float(keep_sign * row["keep"]))


def choice_in_words(choice: Mapping[str, Any]) -> str:
    """A choice for people: `ties_sv_1, lambda 0.75`."""
    if choice["candidate"] == SFT:
        return "the chat model as it is"
    settings = (f"{key.removeprefix('models.')} {value}" for key, value in choice["settings"].items())
    return ", ".join([choice["method"], *settings])


def read_scores(folder: Path) -> list[Row]:
    """The records of an evaluation."""
    return [current_row(row) for row in read_jsonl(folder / "scores.jsonl")]


def value(rows: Sequence[Row], measure: str, language: str) -> float:
    """What a candidate has by a measure: the mean of its records. Raises BadInput where it has none."""
    found = of_measure(rows, measure, language)
    return float(sum(row["value"] for row in found) / len(found))


def sign(rows: Sequence[Row], measure: str, language: str) -> int:
    """1 where more of a measure is better, −1 where less is."""
    first = of_measure(rows, measure, language)[0]
    return -1 if first["metric"] == BITS or not first.get(LOWER, True) else 1


def of_measure(rows: Sequence[Row], measure: str, language: str) -> list[Row]:
    """Return the records that a measure is the mean of; see pipeline.config.adapting.Adapt."""
    primary = [row for row in rows if row["primary"]]
    spoken = "en" if measure in ENGLISH else language
    of_language = [row for row in primary if row["language"] == spoken]
    if measure == TASKS:
        found = [row for row in of_language if is_of_lm_eval(row)]
        check_one_scale(found)
    elif measure in ("acc", "acc_en"):
        found = [row for row in of_language if row["family"] == "mean"]
    elif measure in (BITS, "bits_per_byte_en"):
        found = [row for row in of_language if row["metric"] == BITS]
    else:
        found = [row for row in primary if row["task"] == measure]
    found = [row for row in found if row.get(CHAT) is not False] or found  # scored both ways: as it is used
    if not found:
        there = ", ".join(sorted({row["task"] for row in primary}))
        raise BadInput(f"adapt.gain, adapt.keep: nothing was scored by {measure}. Name one of {there}.")
    return found


def check_one_scale(rows: Sequence[Row]) -> None:
    """Raise BadInput if the mean of the tasks would be one of shares and of scores up to 100."""
    scales = {row["metric"].partition(",")[0] in TO_HUNDRED: f"{row['task']} ({row['metric']})" for row in rows}
    if len(scales) > 1:
        raise BadInput(
            f"adapt.gain=auto: the mean of tasks needs one scale, got {scales[False]} and {scales[True]}."
            " Set adapt.gain to one of the tasks."
        )


def is_of_lm_eval(row: Row) -> bool:
    """Whether a record is of a task of lm-eval that is better the higher it is: neither an item of ours nor text."""
    from train.data.questions import QUESTIONS

    return row["family"] not in (*QUESTIONS, "mean") and row["metric"] != BITS and bool(row.get(LOWER, True))


def run_adapted(job: Job[AdaptedSettings, AdaptedOptions]) -> None:
    """Writes the chosen merge as a folder that is the chat model's in all but its weights."""
    import torch
    import yaml

    torch.set_num_threads(job.options.threads)
    choice = yaml.safe_load((job.folders["choose"] / SELECTED).read_text(encoding="utf-8"))
    outcome = {"winner": choice["candidate"], "method": choice["method"], "settings": choice["settings"]}
    if choice["candidate"] != SFT:
        stop = write_adapted(job, choice["candidate"], choice, choice_in_words(choice))
        outcome |= {"dtype": job.settings.dtype, "stop_added": stop}
        job.note = f"; {stop} was added to the tokens that end an answer" if stop else ""
    write_json(job.out / OUTCOME, outcome)
    job.note = f": {choice_in_words(choice)}{job.note}"


ADAPTED_MODEL = StageType("adapted", run_adapted, 1, "merge", 5)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")


GENERATION, CONFIG, CARD = "generation_config.json", "config.json", "README.md"


def write_adapted(
    job: Job[AdaptedSettings, AdaptedOptions], candidate: str, choice: Mapping[str, Any], chosen: str
) -> str | None:
    """Writes the folder of a candidate; returns the stop token that had to be added, if one had to.

    Raises BadInput for a chat model whose template says no end of an answer.
    """
    import merge
    from merge import Recipe

    recipe = Recipe.from_yaml(job.folders[candidate] / "merge.yml")
    folder = merge.write(recipe.model_copy(update={"out_dtype": job.settings.dtype}), job.out / "model")
    stop = add_stop(folder)
    use_cache(folder)
    card = folder / CARD
    facts = facts_of(job, candidate, choice, chosen, stop)
    card.write_text(model_cards.render_adapted(facts, card.read_text(encoding="utf-8")), encoding="utf-8")
    return stop


def add_stop(folder: Path) -> str | None:
    """Has generations end where the chat template ends an answer; returns the token, if its number was not among them.

    All else of generation_config.json stays as it is.
    """
    from transformers import AutoTokenizer

    from train.data.chat_template import TOKENIZER, template_of
    from train.settings import ChatSettings

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    template = template_of(tokenizer, ChatSettings(template=TOKENIZER), "sft.source: its tokenizer")
    number = tokenizer.get_vocab()[template.stop_token]
    numbers = read_stop_ids(folder)
    if number in numbers:
        return None
    file = folder / GENERATION
    config = read_json(file) if file.is_file() else {}
    _put(file, {**config, "eos_token_id": [*numbers, number]})
    return template.stop_token


def use_cache(folder: Path) -> None:
    """Sets `use_cache: true`, which trainings turn off, wherever generations look for it."""
    for name in (CONFIG, GENERATION):
        file = folder / name
        if file.is_file() and (name == CONFIG or "use_cache" in read_json(file)):
            _put(file, {**read_json(file), "use_cache": True})


def facts_of(
    job: Job[AdaptedSettings, AdaptedOptions], candidate: str, choice: Mapping[str, Any], chosen: str, stop: str | None
) -> Facts:
    """What the card says."""
    stage = job.stage
    chat, merged = origin(stage.parents["sft"]), stage.parents[candidate]
    return Facts(
        title=f"{chat.name.rpartition('/')[2]}, adapted to {job.options.spoken}",
        language=stage.parents["choose"].settings.language,
        spoken=job.options.spoken,
        base=origin(stage.parents["model"]),
        chat=chat,
        choice=choice,
        chosen=chosen,
        candidates=len(read_jsonl(job.folders["choose"] / "candidates.jsonl")),
        dtype=job.settings.dtype,
        stages=[stage_described(each) for each in in_order([merged])],
        stop=stop,
        new_tokens=token_count(job.out / "model") - token_count(job.checkpoint("sft")),
    )


def token_count(folder: Path) -> int:
    """Return the number of tokens of a checkpoint's tokenizer."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def origin(stage: Stage) -> Origin:
    """A given model as a card names it: by its id on the hub, else by the name of its folder."""
    path = stage.options.path
    model = hub.parse(path, "path")
    repo = model.repo if model else None
    return Origin(repo or Path(path).absolute().name, repo, hub.licence_of(path))


def stage_described(stage: Stage) -> dict[str, Any]:
    """A stage with what decides its result, which names no path."""
    named = {role: origin(parent).name if parent.given else str(parent) for role, parent in stage.parents.items()}
    return {"stage": str(stage), "settings": stage.key_content, "from": named}


def _put(file: Path, config: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
