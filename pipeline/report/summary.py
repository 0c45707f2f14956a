"""The first words of a report: sentences from the verdicts of its claims, and the terms that a reader needs."""

from __future__ import annotations

from collections.abc import Sequence

from pandas import DataFrame

from common.units import format_tokens
from eval.task_set import BITS
from pipeline.baselines import BASELINES
from pipeline.report.claims import Answer, Clauses
from pipeline.report.data import OVERALL, budgets_of, measures, methods_of
from pipeline.report.formatting import UNITS, by_part, confidence, label, listed
from pipeline.report.paired import Comparison
from pipeline.report.records import ReportInfo

# The verdicts with data, in the order in which the second claim of a headline is looked for.
VERDICTS = ("supported", "contradicted", "equivalent", "ruled out", "inconclusive")


def sentences(answers: Sequence[Answer], language: str, budgets: Sequence[int] = ()) -> list[str]:
    """Return the headline: the first claim, the clearest other claim, and the number of claims by verdict.

    budgets: CT tokens of the report.
    """
    asked = [answer for answer in answers if answer.verdict in VERDICTS]
    exploratory = sum(answer.verdict == "exploratory" for answer in answers)
    if not asked and exploratory:
        return [f"In {language}, no hypothesis has a verdict: {exploratory} of {len(answers)} are exploratory."]
    if not asked:
        return [f"In {language}, no claim has data: the stages that the claims need were not run."]
    by_verdict = {verdict: [answer for answer in asked if answer.verdict == verdict] for verdict in VERDICTS}
    others = [answer for verdict in VERDICTS[:-1] for answer in by_verdict[verdict] if answer is not asked[0]]
    counts = ", ".join(f"{len(found)} {verdict}" for verdict, found in by_verdict.items() if found)
    counted = f"Of {len(asked)} claim{'s' if len(asked) != 1 else ''}: {counts}."
    more = f" {exploratory} more {'is' if exploratory == 1 else 'are'} exploratory." if exploratory else ""
    return [*(_sentence(answer, budgets) for answer in (asked[0], *others[:1])), f"{counted}{more}"]


def sentence(answers: Sequence[Answer], language: str, budgets: Sequence[int] = ()) -> str:
    """Return the headline as one text."""
    return " ".join(sentences(answers, language, budgets))


def _sentence(answer: Answer, budgets: Sequence[int]) -> str:
    clauses = answer.claim.clauses
    text = _of_claim(answer, clauses, budgets) if clauses else _of_hypothesis(answer)
    bound = "; a lower bound, from two points" if answer.more.get("bound") else ""
    numbers = f" ({confidence(answer.estimate, answer.claim.unit)}{bound})" if answer.estimate else ""
    parts = f" {by_part(answer.parts)}" if answer.parts.differ else ""
    return f"{text}{numbers}.{parts}"


def _of_hypothesis(answer: Answer) -> str:
    """Return the statement with its verdict."""
    stated = answer.claim.text.rstrip(".")
    return {
        "supported": stated,
        "equivalent": f"Equivalent, as the effect is within \u00b1{answer.claim.margin:g}: \u201c{stated}\u201d",
        "ruled out": f"Ruled out, as the effect is below {answer.claim.margin:g}: \u201c{stated}\u201d",
        "contradicted": f"Contradicted, as the effect has the opposite sign: \u201c{stated}\u201d",
    }.get(answer.verdict, f"Inconclusive: \u201c{stated}\u201d")


def _of_claim(answer: Answer, clauses: Clauses, budgets: Sequence[int]) -> str:
    texts = {
        "supported": clauses.supported,
        "equivalent": clauses.equivalent,
        "ruled out": clauses.ruled_out,
        "contradicted": clauses.contradicted,
        "inconclusive": f"it is inconclusive whether {clauses.supported}",
    }
    trained = [tokens for tokens in budgets if tokens]
    where = {"mean": "on average over CT budgets, "}.get(clauses.where, "")
    if clauses.where in ("smallest", "largest") and trained:
        tokens = min(trained) if clauses.where == "smallest" else max(trained)
        where = f"at {format_tokens(tokens)} tokens, "
    text = f"{where}{texts[answer.verdict]}"
    return text[0].upper() + text[1:]


def of_comparisons(comparisons: Sequence[Comparison]) -> str:
    """Return what paired differences show in a report without claims: how many are clear, and the clearest."""
    if not comparisons:
        return "There is nothing to compare here."
    counts = {
        verdict: [c for c in comparisons if c.verdict == verdict] for verdict in ("better", "worse", "equivalent")
    }
    found = [f"{len(of_verdict)} {verdict}" for verdict, of_verdict in counts.items() if of_verdict]
    text = f"Of {len(comparisons)} paired differences: {', '.join(found) or 'none is conclusive'}"
    clear = sorted(counts["better"] + counts["worse"], key=lambda c: c.p_adjusted)
    if clear:
        c = clear[0]
        numbers = confidence(c.difference, UNITS[c.kind])
        text += f". The clearest: {label(c.method)} is {c.verdict} than {label(c.baseline)} ({numbers})"
    return text + "."


MOST_NAMED = 6  # merges or tasks by name
QUESTION = "Is it enough to combine two trained models (a merge), or should one model get both trainings (CT-then-SFT)?"
KNOBS = (
    "at equal bits per byte",
    "Each method has a setting that trades accuracy for bits per byte. We compare where methods predict equally well.",
)


def question(scores: DataFrame) -> str | None:
    """Return what a report asks, if it has merges and CT-then-SFT."""
    methods = _trained_and_merged(scores)
    return QUESTION if "ct_then_sft" in methods and any(method not in BASELINES for method in methods) else None


def terms(scores: DataFrame, info: ReportInfo, has_frontiers: bool) -> list[tuple[str, str]]:
    """Return the terms that a reader needs first, and what they mean, for the methods and scores of a report.

    Empty for models that somebody else trained, which have no CT.
    """
    methods = _trained_and_merged(scores)
    if not methods:
        return []
    merges = [method for method in methods if method not in BASELINES]
    amounts = listed([format_tokens(budget) for budget in budgets_of(scores) if budget], "or")
    text = f"{amounts} tokens (pieces of words) of {info.language_name} text."
    found = [
        ("CT", f"Continual pre-training: the base model reads {text}"),
        ("SFT", "Supervised fine-tuning: the base model learns to follow English instructions."),
    ]
    if "ct_then_sft" in methods:
        found.append(("CT-then-SFT", "The baseline: both trainings, one after the other."))
    if merges:
        named = ", ".join(label(method) for method in merges[:MOST_NAMED])
        more = f" and {len(merges) - MOST_NAMED} more" if len(merges) > MOST_NAMED else ""
        found.append(("merge", f"The CT model and the SFT model are combined without more training: {named}{more}."))
    if any("slack" in label(method) for method in merges):
        found.append(("slack", "A setting of TIES that protects the parameters of the SFT model in conflicts."))
    return found + _score_terms(scores, info) + ([KNOBS] if has_frontiers else [])


def _trained_and_merged(scores: DataFrame) -> list[str]:
    """Return the methods without the titles of reports; empty without CT."""
    methods = list(dict.fromkeys(method.rpartition("/")[2] for method in methods_of(scores)))
    return methods if any(budgets_of(scores)) and {"ct", "ct_then_sft"} & set(methods) else []


def _score_terms(scores: DataFrame, info: ReportInfo) -> list[tuple[str, str]]:
    terms = []
    shown = {measure.name: measure for measure in measures(scores, info.language)}
    accuracy = shown.get(OVERALL[0])
    if accuracy is not None:
        rows = scores[scores.language == info.language]
        tasks = sorted(set(rows[rows.primary.astype(bool) & (rows.metric != BITS)].family) - {"mean"})
        named = f" ({listed(tasks)})" if len(tasks) <= MOST_NAMED else ""
        items = f"{max(rows[rows.task == accuracy.task].n):,} {info.language_name} test items in {len(tasks)} task"
        chance = f" Guessing gives {accuracy.chance:.3f}." if accuracy.chance is not None else ""
        plural = "s" if len(tasks) != 1 else ""
        terms.append(
            ("accuracy", f"The share of {items}{plural}{named} that a model answers correctly.{chance}"),
        )
    if "bits per byte" in shown:
        text = f"How badly a model predicts {info.language_name} text that it has not read. Lower is better."
        terms.append(("bits per byte", text))
    return terms
