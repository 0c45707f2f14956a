"""A few items with each method's answer, in the target language and in English: choices, and generated texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import read_jsonl
from pipeline.report.records import ENGLISH, Evaluation, read_samples, read_scores, unique

BY_CHANCE, BY_DISAGREEMENT = "drawn by chance", "where methods differ most"
LONGEST = 700  # characters of a prompt that the page shows
GENERATED_ITEMS = 2  # of each task


@dataclass(frozen=True)
class Side:
    """An item in one language. answers: the number of each method's choice; methods that were not scored have none."""

    prompt: str
    choices: Sequence[str]
    answer: int
    answers: Mapping[str, int]


@dataclass(frozen=True)
class Sample:
    """An item of one family in the target language, and one in English selected the same way, not its translation."""

    family: str
    why: str
    target: Side
    english: Side | None


@dataclass(frozen=True)
class GeneratedAnswer:
    """A generated text. score: of this item, if the metric is a mean over items; None for chrF and the like."""

    text: str
    score: float | None


@dataclass(frozen=True, kw_only=True)
class GeneratedItem:
    """A question of a task that generates, without the examples of its prompt, with each method's whole answer."""

    task: str
    language: str
    question: str
    target: str
    answers: Mapping[str, GeneratedAnswer]


@dataclass(frozen=True)
class ItemSamples:
    """Samples of choices, with the CT budget and the seed of the answers."""

    samples: Sequence[Sample] = ()
    budget: int = 0
    seed: int = 0


Key = tuple[str, str, str]  # family, language, id


def pick(items: Sequence[Mapping[str, Any]], evaluations: Iterable[Evaluation], language: str) -> ItemSamples:
    """Pick, for each family, an item by chance (its id's hash) and one where most methods differ.

    items: rows of `<family>_<language>.<split>.jsonl`. The answers are those of the largest budget and the first seed.
    """
    scored, budget, seed = shown_folders(evaluations)
    asked: dict[Key, Mapping[str, Any]] = {(row["family"], row["language"], row["id"]): row for row in items}
    answers = _answers(scored, asked) if asked else {}
    picked: list[Sample] = []
    for family in dict.fromkeys(key[0] for key in answers if key[1] == language):
        taken: set[Key] = set()
        for why in (BY_CHANCE, BY_DISAGREEMENT):
            sides: list[Side | None] = []
            for code in (language, ENGLISH):
                keys = [key for key in answers if key[:2] == (family, code) and key not in taken]
                best = min(keys, key=lambda key: _order(why, key, answers[key]), default=None)
                sides.append(_side(asked[best], answers[best]) if best else None)
                taken |= {best} if best else set()
            if sides[0] is not None:
                picked.append(Sample(family, why, sides[0], sides[1]))
    return ItemSamples(picked, budget, seed)


def shown_folders(evaluations: Iterable[Evaluation]) -> tuple[dict[str, Path], int, int]:
    """Return the folders of scores by method at the largest budget and the first seed; the budget and the seed."""
    every = unique(evaluations)
    budget = max((evaluation.ct_tokens for evaluation in every), default=0)
    seed = min((evaluation.seed for evaluation in every), default=0)
    return {e.method: e.folder for e in every if e.seed == seed and e.ct_tokens in (0, budget)}, budget, seed


def pick_generated(evaluations: Iterable[Evaluation], languages: Sequence[str]) -> list[GeneratedItem]:
    """Return of each task that generates the items whose ids have the smallest hashes: no score can choose.

    languages: of the tasks, in the order in which they are shown. Methods as in `pick`.
    """
    scored, _, _ = shown_folders(evaluations)
    by_item: dict[Key, tuple[Mapping[str, Any], dict[str, GeneratedAnswer]]] = {}
    for method, folder in scored.items():
        of_task = {row["task"]: row["language"] for row in read_scores(folder)}
        for sample in read_samples(folder):
            if isinstance(sample.get("answer"), str) and of_task.get(sample["task"]) in languages:
                key = (sample["task"], of_task[sample["task"]], sample["id"])
                _, answers = by_item.setdefault(key, (sample, {}))
                answers[method] = GeneratedAnswer(sample["answer"], sample.get("score"))
    picked: list[GeneratedItem] = []
    for task, language in sorted({key[:2] for key in by_item}, key=lambda pair: (languages.index(pair[1]), pair[0])):
        keys = sorted((key for key in by_item if key[0] == task), key=_hash)[:GENERATED_ITEMS]
        for row, answers in (by_item[key] for key in keys):
            target = row["target"][0] if isinstance(row["target"], list) and row["target"] else row["target"]
            picked.append(
                GeneratedItem(
                    task=task,
                    language=language,
                    question=_shown(row.get("question") or ""),
                    target=str(target),
                    answers=answers,
                )
            )
    return picked


def _answers(scored: Mapping[str, Path], asked: Mapping[Key, Any]) -> dict[Key, dict[str, int]]:
    """Return the number of the choice that each method gave, by item and method."""
    answers: dict[Key, dict[str, int]] = {}
    for method, folder in scored.items():
        tasks = {row["task"]: (row["family"], row["language"]) for row in read_scores(folder)}
        for sample in read_samples(folder):
            key = (*tasks.get(sample["task"], ("", "")), sample["id"])
            if key in asked and isinstance(sample.get("prediction"), int):
                answers.setdefault(key, {})[method] = sample["prediction"]
    return answers


def _order(why: str, key: Key, answers: Mapping[str, int]) -> tuple[float, str]:
    return (_agreement(answers) if why == BY_DISAGREEMENT else 0.0, _hash(key))


def _hash(key: Key) -> str:
    return hashlib.sha256("/".join(key).encode()).hexdigest()


def _agreement(answers: Mapping[str, int]) -> float:
    """Return the share of methods that gave the commonest answer."""
    given = list(answers.values())
    return max(given.count(one) for one in set(given)) / len(given)


def _side(row: Mapping[str, Any], answers: Mapping[str, int]) -> Side:
    return Side(_shown(row["prompt"]), row["choices"], row["answer"], answers)


def _shown(prompt: str) -> str:
    """Return the end of a prompt, as much of it as the page shows."""
    return prompt if len(prompt) <= LONGEST else "\u2026" + prompt[-LONGEST:]


def read_items(folders: Iterable[Path], split: str = "test") -> list[dict[str, Any]]:
    """Return the items that the folders of an `items` stage hold."""
    return [
        row
        for folder in folders
        for path in sorted((folder / "tasks").glob(f"*.{split}.jsonl"))
        for row in read_jsonl(path)
    ]
