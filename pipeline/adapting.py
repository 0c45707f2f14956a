"""The stages of an adaptation: `choose` picks one candidate by its scores on dev, `adapted` writes it as a folder.

A candidate is the chat model itself (`sft`) or a try of a merge. `choose` leaves `candidates.jsonl` (one row per
candidate: what it is, its gain, what it keeps) and `choice.yml`. `adapted` leaves `model/` and `outcome.json`; if the
chat model won, `outcome.json` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import BadInput
from common.files import read_jsonl, write_json, write_jsonl
from eval.asking import CHAT
from eval.task_checks import LOWER
from eval.task_set import BITS
from pipeline.choosing import CHOICE
from pipeline.config.adapting import BEST, ENGLISH, TASKS
from pipeline.execute import Job
from pipeline.job_settings import AdaptedOptions, ChooseSettings
from pipeline.old_names import current_row
from pipeline.plan_adapt import SFT

CANDIDATES, OUTCOME = "candidates.jsonl", "outcome.json"
ROUNDING = 1e-9  # differences below are those of arithmetic: .40 − .02 is .38
TO_HUNDRED = {"bleu", "chrf", "ter"}  # metrics of lm-eval that are no shares
Row = dict[str, Any]


def choose(job: Job) -> None:
    """Reads what each candidate scored on dev, and leaves the choice."""
    settings = ChooseSettings(**job.settings)
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
    write_yaml(job.out / CHOICE, choice)
    job.note = f": {described(choice)}"


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


def described(choice: Mapping[str, Any]) -> str:
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
    """The records that a measure is the mean of; see pipeline.config.adapting.Adapt."""
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
    from train.data.families import QUESTIONS

    return row["family"] not in (*QUESTIONS, "mean") and row["metric"] != BITS and bool(row.get(LOWER, True))


def adapted(job: Job) -> None:
    """Writes the chosen merge as a folder that is the chat model's in all but its weights."""
    import torch
    import yaml

    from pipeline import adapted_folder

    torch.set_num_threads(AdaptedOptions(**job.options).threads)
    choice = yaml.safe_load((job.folders["choose"] / CHOICE).read_text(encoding="utf-8"))
    outcome = {"winner": choice["candidate"], "method": choice["method"], "settings": choice["settings"]}
    if choice["candidate"] != SFT:
        stop = adapted_folder.write(job, choice["candidate"], choice, described(choice))
        outcome |= {"dtype": job.settings["dtype"], "stop_added": stop}
        job.note = f"; {stop} was added to the tokens that end an answer" if stop else ""
    write_json(job.out / OUTCOME, outcome)
    job.note = f": {described(choice)}{job.note}"


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")
