"""Define the few terms that a reader of the page needs first, for the methods and scores that it has. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from common.units import format_tokens
from eval.task_set import BITS
from pipeline.baselines import BASELINES
from pipeline.report.records import Row, label
from pipeline.report.results import OVERALL, budgets_of, measures, methods_in_order
from pipeline.report.wording import listed

MOST_NAMED = 6  # merges or tasks by name


def terms(rows: Sequence[Row], language: str, name: str, frontiers: bool) -> list[tuple[str, str]]:
    """Return terms and what they mean. language, name: of the language. frontiers: whether the page has some.

    Empty for models that somebody else trained, which have no CT.
    """
    methods = list(dict.fromkeys(method.rpartition("/")[2] for method in methods_in_order(row.method for row in rows)))
    merges = [method for method in methods if method not in BASELINES]
    budgets = [format_tokens(budget) for budget in budgets_of(rows) if budget]
    if not budgets or not {"ct", "ct_then_sft"} & set(methods):
        return []
    amounts = listed(budgets, "or")
    asked = [QUESTION] if merges and "ct_then_sft" in methods else []
    found = [
        *asked,
        ("CT", f"Continual pre-training: the base model reads {amounts} tokens (pieces of words) of {name} text."),
        ("SFT", "Supervised fine-tuning: the base model learns to follow English instructions."),
    ]
    if "ct_then_sft" in methods:
        found.append(("CT-then-SFT", "The baseline: both trainings, one after the other."))
    if merges:
        named = [label(method) for method in merges[:MOST_NAMED]]
        more = f" and {len(merges) - MOST_NAMED} more" if len(merges) > MOST_NAMED else ""
        found.append(
            ("merge", f"The CT model and the SFT model are combined without more training: {', '.join(named)}{more}.")
        )
    if any("slack" in label(method) for method in merges):
        found.append(("slack", "A setting of TIES that protects the parameters of the SFT model in conflicts."))
    return found + _scores(rows, language, name) + ([KNOBS] if frontiers else [])


QUESTION = (
    "question",
    "Is it enough to combine two trained models (a merge), or should one model get both trainings (CT-then-SFT)?",
)
KNOBS = (
    "at equal bits per byte",
    "Each method has a setting that trades accuracy for bits per byte. We compare where methods predict equally well.",
)


def _scores(rows: Sequence[Row], language: str, name: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    shown = {measure.name: measure for measure in measures(rows, language)}
    accuracy = shown.get(OVERALL[0])
    if accuracy is not None:
        families = {row.family for row in rows if row.language == language and row.primary and row.metric != BITS}
        tasks = sorted(families - {"mean"})
        items = max(row.n for row in rows if row.language == language and row.task == accuracy.task)
        named = f" ({listed(tasks)})" if len(tasks) <= MOST_NAMED else ""
        counted = f"{len(tasks)} task{'s' if len(tasks) != 1 else ''}{named}"
        chance = f" Guessing gives {accuracy.chance:.3f}." if accuracy.chance is not None else ""
        found.append(
            (
                "accuracy",
                f"The share of {items:,} {name} test items in {counted} that a model answers correctly.{chance}",
            )
        )
    if "bits per byte" in shown:
        text = f"How badly a model predicts {name} text that it has not read. Lower is better."
        found.append(("bits per byte", text))
    return found
