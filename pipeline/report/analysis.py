"""From the results of a run to everything that its report shows: scores, claims, differences, gaps, prices. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pandas import DataFrame

from pipeline.report import builtin_claims, data, gaps, hypothesis_answers, merges, paired, samples, stages
from pipeline.report.claims import Claims
from pipeline.report.data import DataExposure, Gate
from pipeline.report.gaps import FrontierGaps
from pipeline.report.hypothesis_answers import HypothesisData
from pipeline.report.merges import Discarded, Selected, TaskVectors
from pipeline.report.records import ENGLISH, Audit, Choice, Evaluation, FrontierPoint, ReportInfo, unique
from pipeline.report.samples import GeneratedItem, ItemSamples
from pipeline.report.stages import Cost, StageRecords


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The results that a report is made from.

    evaluations: of one target language, any number of budgets and seeds; base and SFT once or with every budget.
    stages: the records of stage.json files; `cells` in one is how many cells needed it. items: rows of items that were
    scored. contamination: leaks.json, if it was looked for. untuned: tuned methods as the first of their trials scores.
    counts: the counts.json of CT's blocks. frontier: every knob value of every method, on dev and test. hypotheses: a
    file that is answered in place of the built-in claims.
    """

    info: ReportInfo
    evaluations: Sequence[Evaluation]
    audits: Sequence[Audit] = ()
    choices: Sequence[Choice] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    items: Sequence[Mapping[str, Any]] = ()
    contamination: Mapping[str, Any] | None = None
    untuned: Sequence[Evaluation] = ()
    counts: Sequence[Mapping[str, Any]] = ()
    frontier: Sequence[FrontierPoint] = ()
    hypotheses: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What a report shows.

    recipes: by the merge, its recipe's method. untuned: scores of tuned methods with their first trial. hypotheses: the
    name of the file that the claims are from, if they are an experiment's own. costs: by method and CT budget.
    generated: texts of methods, at the budget and seed of `samples`.
    """

    info: ReportInfo
    scores: DataFrame
    claims: Claims
    discarded: Sequence[Discarded] = ()
    task_vectors: Sequence[TaskVectors] = ()
    selected: Sequence[Selected] = ()
    stages: StageRecords = field(default_factory=StageRecords)
    recipes: Mapping[str, str] = field(default_factory=dict)
    untuned: DataFrame = field(default_factory=lambda: data.gather([]))
    samples: ItemSamples = field(default_factory=ItemSamples)
    generated: Sequence[GeneratedItem] = ()
    exposure: Sequence[DataExposure] = ()
    gaps: FrontierGaps | None = None
    gates: Sequence[Gate] = ()
    costs: Mapping[tuple[str, int], Cost] = field(default_factory=dict)
    contamination: Mapping[str, Any] | None = None
    hypotheses: str | None = None


def analyse(inputs: Inputs) -> Analysis:
    """Compute what a report shows. Raises ValueError if checkpoints were not scored on the same items."""
    info = inputs.info
    scores = data.gather(inputs.evaluations)
    discarded = merges.read_audits(inputs.audits)
    selected = merges.read_choices(inputs.choices)
    answerable = HypothesisData.of(inputs.evaluations, inputs.frontier, discarded, info.language)
    pairs = paired.across(data.methods_of(scores), info.given)
    if pairs is None:
        shown = builtin_claims.answer_all(inputs.evaluations, discarded, selected, info.language)
    else:
        evidence = paired.Evidence(inputs.evaluations, info.language)
        shown = Claims([], paired.compare(evidence, pairs, 1 if info.given else 2))
    if inputs.hypotheses is not None:
        answers = hypothesis_answers.answers(inputs.hypotheses, answerable, info.regime, info.regimes)
        shown = Claims(answers, shown.comparisons)
    return Analysis(
        info=info,
        scores=scores,
        claims=shown,
        discarded=discarded,
        task_vectors=merges.task_vectors(inputs.audits),
        selected=selected,
        stages=StageRecords(inputs.stages),
        recipes=merges.recipe_methods(inputs.audits),
        untuned=data.gather(inputs.untuned),
        samples=samples.pick(inputs.items, inputs.evaluations, info.language),
        generated=samples.pick_generated(inputs.evaluations, [info.language, ENGLISH]),
        exposure=data.data_exposure(inputs.counts, [budget for budget in data.budgets_of(scores) if budget]),
        gaps=gaps.frontier_gaps(answerable.frontiers, shown.answers),
        gates=data.gates(scores, info.language),
        costs=stages.costs(unique(inputs.evaluations), inputs.stages),
        contamination=inputs.contamination,
        hypotheses=inputs.hypotheses.name if inputs.hypotheses is not None else None,
    )
