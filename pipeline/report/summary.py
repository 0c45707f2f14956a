"""The first words of a report: sentences from the verdicts of its claims, and the terms that a reader needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pandas import DataFrame

from common.units import format_tokens
from eval.task_set import BITS
from pipeline.baselines import BASELINES
from pipeline.report.claims import Answer, Claim
from pipeline.report.data import OVERALL, budgets_of, measures, methods_of
from pipeline.report.formatting import ANSWER_BITS, SHARE_OF_TOP, UNITS, by_part, confidence, label, listed
from pipeline.report.paired import Comparison
from pipeline.report.records import ReportInfo

# The verdicts with data, in the order in which the second claim of a headline is looked for.
VERDICTS = ("supported", "contradicted", "equivalent", "ruled out", "inconclusive")


@dataclass(frozen=True)
class Clauses:
    """How a claim is written under each verdict, and the unit of its effect.

    where: `smallest` or `largest` budget, `mean` over budgets, or empty. supported, equivalent, contradicted: what was
    found. not_found: a ruled out gain. An inconclusive claim is written as supported, behind "it is inconclusive
    whether".
    """

    where: str
    supported: str
    equivalent: str
    not_found: str
    contradicted: str
    unit: str


ACCURACY, TEXT_BITS, TOP = "in accuracy", "bits per byte of text saved", SHARE_OF_TOP
CORRECT = f"{ANSWER_BITS} saved"


def _compared(where: str, first: str, second: str, quality: tuple[str, str, str], unit: str) -> Clauses:
    """quality: more, no more, less, such as `is more accurate than`."""
    more, no_more, less = quality
    equal = f"{first} and {second} are equivalent {'in accuracy' if unit == ACCURACY else 'in bits per byte'}"
    return Clauses(
        where, f"{first} {more} {second}", equal, f"{first} {no_more} {second}", f"{first} {less} {second}", unit
    )


_ACCURATE = ("is more accurate than", "is not more accurate than", "is less accurate than")
_LIKELY = (
    "makes the correct answers more likely than",
    "does not make the correct answers more likely than",
    "makes the correct answers less likely than",
)
_KEEPS = (
    "models the language better than",
    "does not model the language better than",
    "models the language worse than",
)
_AVERAGED = "the average of CT-then-SFT and CT"


def _slack(more: str, no_more: str, less: str, unit: str, same_norm: bool = False) -> Clauses:
    at = " at equal norm of the merged updates" if same_norm else ""
    equal = f"slack makes no meaningful difference to {'accuracy' if unit == ACCURACY else ANSWER_BITS}"
    texts = [f"{text}{at}" for text in (f"slack {more}", equal, f"slack {no_more}", f"slack {less}")]
    return Clauses("mean", texts[0], texts[1], texts[2], texts[3], unit)


_RAISES = ("raises accuracy", "does not raise accuracy", "lowers accuracy")
_HELPS = (
    "makes the correct answers more likely",
    "does not make the correct answers more likely",
    "makes the correct answers less likely",
)
CLAUSES = {
    "scarce-accuracy": _compared("smallest", "merging", "CT-then-SFT", _ACCURATE, ACCURACY),
    "scarce-answer-bits": _compared("smallest", "merging", "CT-then-SFT", _LIKELY, CORRECT),
    "language-kept": _compared("mean", "merging", "CT-then-SFT", _KEEPS, TEXT_BITS),
    "averaged-accuracy": _compared("smallest", "merging", _AVERAGED, _ACCURATE, ACCURACY),
    "averaged-language-kept": _compared("mean", "merging", _AVERAGED, _KEEPS, TEXT_BITS),
    "merging-uses-ct": _compared("largest", "merging", "the average of base and SFT", _ACCURATE, ACCURACY),
    "advantage-shrinks": Clauses(
        "",
        "the advantage of merging over CT-then-SFT shrinks as the CT budget grows",
        "the advantage of merging over CT-then-SFT is the same at the smallest and the largest CT budget",
        "the advantage of merging over CT-then-SFT does not shrink as the CT budget grows",
        "the advantage of merging over CT-then-SFT grows with the CT budget",
        ACCURACY,
    ),
    "conflicts-grow": Clauses(
        "",
        "TIES discards more of SFT's important parameters as the CT budget grows",
        "TIES discards as many of SFT's important parameters at the largest CT budget as at the smallest",
        "TIES does not discard more of SFT's important parameters as the CT budget grows",
        "TIES discards fewer of SFT's important parameters as the CT budget grows",
        TOP,
    ),
    "slack-keeps": Clauses(
        "mean",
        "slack keeps more of SFT's important parameters than TIES",
        "slack and TIES keep as many of SFT's important parameters",
        "slack does not keep more of SFT's important parameters than TIES",
        "slack keeps fewer of SFT's important parameters than TIES",
        TOP,
    ),
    "slack-accuracy": _slack(*_RAISES, ACCURACY),
    "slack-answer-bits": _slack(*_HELPS, CORRECT),
    "slack-norm-accuracy": _slack(*_RAISES, ACCURACY, same_norm=True),
    "slack-norm-answer-bits": _slack(*_HELPS, CORRECT, same_norm=True),
}


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


def unit(claim: Claim) -> str:
    """Return the unit of a claim's effect, MDE and margin."""
    return claim.unit or CLAUSES[claim.id].unit


def _sentence(answer: Answer, budgets: Sequence[int]) -> str:
    text = _of_hypothesis(answer) if answer.claim.unit else _of_claim(answer, budgets)
    bound = "; a lower bound, from two points" if answer.more.get("bound") else ""
    numbers = f" ({confidence(answer.estimate, unit(answer.claim))}{bound})" if answer.estimate else ""
    parts = f" {by_part(answer.parts)}" if answer.parts.differ else ""
    return f"{text}{numbers}.{parts}"


def _of_hypothesis(answer: Answer) -> str:
    """The words of its statement, under each verdict."""
    stated = answer.claim.text.rstrip(".")
    return {
        "supported": stated,
        "equivalent": f"Equivalent, as the effect is within \u00b1{answer.claim.margin:g}: \u201c{stated}\u201d",
        "ruled out": f"Ruled out, as the effect is below {answer.claim.margin:g}: \u201c{stated}\u201d",
        "contradicted": f"Contradicted, as the effect has the opposite sign: \u201c{stated}\u201d",
    }.get(answer.verdict, f"Inconclusive: \u201c{stated}\u201d")


def _of_claim(answer: Answer, budgets: Sequence[int]) -> str:
    clauses = CLAUSES[answer.claim.id]
    texts = {
        "supported": clauses.supported,
        "equivalent": clauses.equivalent,
        "ruled out": clauses.not_found,
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
    found = []
    shown = {measure.name: measure for measure in measures(scores, info.language)}
    accuracy = shown.get(OVERALL[0])
    if accuracy is not None:
        own = scores[scores.language == info.language]
        tasks = sorted(set(own[own.primary.astype(bool) & (own.metric != BITS)].family) - {"mean"})
        named = f" ({listed(tasks)})" if len(tasks) <= MOST_NAMED else ""
        items = f"{max(own[own.task == accuracy.task].n):,} {info.language_name} test items in {len(tasks)} task"
        chance = f" Guessing gives {accuracy.chance:.3f}." if accuracy.chance is not None else ""
        plural = "s" if len(tasks) != 1 else ""
        found.append(
            ("accuracy", f"The share of {items}{plural}{named} that a model answers correctly.{chance}"),
        )
    if "bits per byte" in shown:
        text = f"How badly a model predicts {info.language_name} text that it has not read. Lower is better."
        found.append(("bits per byte", text))
    return found
