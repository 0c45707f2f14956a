"""What merges discarded of SFT, and their task vectors, from audits; which settings were selected for them on dev.

merge/auditing.py defines the shares.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pandas import DataFrame

from common.files import read_jsonl
from merge import Recipe
from pipeline.report.data import frame
from pipeline.report.formatting import settings_text
from pipeline.report.records import Audit, Choice, mean

TOP = "5%"  # of SFT's parameters: the important ones
SFT = "sft"  # the model's name in recipes
# Of the two task vectors, as columns of task_vectors.csv
VECTOR_MEASURES = ("ct_norm", "sft_norm", "norm_ratio", "cosine", "in_conflict")
SAMPLERS = {"tpe": "TPE", "cmaes": "CMA-ES", "random": "random"}  # of optuna, as people write them
PARTS = {"layer": "by_layer", "module kind": "by_kind"}  # of a model, and where an audit has them


@dataclass(frozen=True)
class Shares:
    """Shares of the parameters of SFT's task vector, in a model or a part of it.

    lost: kept, but the other sign was elected. lost_top: the same, of the top 5%. trimmed: trimmed or dropped.
    """

    lost: float
    lost_top: float
    trimmed: float

    @classmethod
    def mean_of(cls, counted: Sequence[Mapping[str, Any]]) -> Shares:
        """Return the means of the shares that audits count."""
        return cls(
            mean([counts["share_lost_in_conflict"] for counts in counted]),
            mean([counts["top"][TOP]["share_lost_in_conflict"] for counts in counted]),
            mean([counts["share_trimmed"] for counts in counted]),
        )


@dataclass(frozen=True, kw_only=True)
class Discarded:
    """What one method discarded of the SFT task vector at one budget.

    whole: of the whole model, mean over seeds. parts: by ("layer", its number) or ("module kind", its name).
    lost_top: by seed, the share of the top 5% that was lost in sign conflicts.
    settings_except_slack: by seed, the recipe's other settings; if they are equal, slack makes the difference.
    slack_variant: by seed, the settings of the slack that are not the default (docs/explanation/slack.md).
    """

    method: str
    ct_tokens: int
    recipe_method: str
    slack: float
    protects: tuple[str, ...]
    whole: Shares
    lost_top: Mapping[int, float]
    settings_except_slack: Mapping[int, Mapping[str, Any]]
    slack_variant: Mapping[int, Mapping[str, Any]]
    parts: Mapping[tuple[str, str], Shares] = field(default_factory=dict)

    @property
    def is_plain_ties(self) -> bool:
        """Whether this is TIES, the slack at 0 or for nobody, and no control whose signs are drawn."""
        models = [model for settings in self.settings_except_slack.values() for model in settings["models"].values()]
        drawn = any(model.get("random_signs") for model in models)
        return self._is_ties and not (self.slack > 0 and self.protects) and not drawn

    @property
    def has_slack_for_sft(self) -> bool:
        """Whether this is TIES with slack that protects SFT alone."""
        return self._is_ties and self.slack > 0 and self.protects == (SFT,)

    @property
    def _is_ties(self) -> bool:
        return self.recipe_method in ("ties", "ties_sv")


def read_audits(audits: Iterable[Audit]) -> list[Discarded]:
    """Return what merges discarded, by method in their order, and by budget.

    A merge without task vectors (such as the weighted average) discards nothing and is left out, and so is one without
    CT, which no budget changes.
    """
    grouped: dict[tuple[str, int], dict[int, tuple[dict[str, Any], Path]]] = {}
    order: dict[str, int] = {}
    for audit in audits:
        report = _report(audit)
        order.setdefault(audit.method, len(order))
        if SFT in report["models"] and audit.ct_tokens:
            grouped.setdefault((audit.method, audit.ct_tokens), {})[audit.seed] = report, audit.folder / "merge.yml"
    return [_discarded(*cell, grouped[cell]) for cell in sorted(grouped, key=lambda cell: (order[cell[0]], cell[1]))]


def recipe_methods(audits: Iterable[Audit]) -> dict[str, str]:
    """Return the `method` of each merge's recipe."""
    first = {audit.method: audit for audit in reversed(list(audits))}
    return {method: _report(audit)["method"] for method, audit in first.items()}


def norm_ratios(audits: Iterable[Audit], merge: str, budget: int) -> list[float]:
    """Return ‖τ_CT‖ / ‖τ_SFT‖ as the audits of a merge have them, one per seed."""
    every = [_report(audit)["models"] for audit in audits if (audit.method, audit.ct_tokens) == (merge, budget)]
    return [models["ct"]["norm"] / models[SFT]["norm"] for models in every if {"ct", SFT} <= models.keys()]


@dataclass(frozen=True, kw_only=True)
class TaskVectors:
    """The task vectors of CT and SFT at one budget and seed, before any trimming. A row of task_vectors.csv.

    regime: of a report over several ("": there is one). ct_norm, sft_norm: their L2 norms. in_conflict: the share of
    parameters whose signs differ. cosine: of their angle; None without a task arithmetic of both, whose norm has it.
    """

    regime: str
    ct_tokens: int
    seed: int
    ct_norm: float
    sft_norm: float
    in_conflict: float
    cosine: float | None

    @property
    def norm_ratio(self) -> float:
        """‖τ_CT‖ / ‖τ_SFT‖."""
        return self.ct_norm / self.sft_norm


@dataclass(frozen=True)
class Spread:
    """A value over seeds: its mean, smallest and largest."""

    mean: float
    low: float
    high: float


def task_vectors(audits: Iterable[Audit]) -> list[TaskVectors]:
    """Return the task vectors that merges of CT and SFT were made of, by regime, budget and seed.

    Cells are left out where a vector is zero, or its norm beyond float64.
    """
    cells: dict[tuple[str, int, int], list[tuple[dict[str, Any], Path]]] = {}
    for audit in audits:
        report = _report(audit)
        is_pair = report["models"].keys() == {"ct", SFT}
        untrimmed = all(model["norm"] and not model["share_trimmed"] for model in report["models"].values())
        if is_pair and audit.ct_tokens and untrimmed:
            regime = audit.method.rpartition("/")[0]
            cells.setdefault((regime, audit.ct_tokens, audit.seed), []).append((report, audit.folder / "merge.yml"))
    rows = []
    for (regime, budget, seed), reports in sorted(cells.items()):
        models = reports[0][0]["models"]
        summed = [(report, recipe) for report, recipe in reports if report["method"] == "task_arithmetic"]
        rows.append(
            TaskVectors(
                regime=regime,
                ct_tokens=budget,
                seed=seed,
                ct_norm=models["ct"]["norm"],
                sft_norm=models[SFT]["norm"],
                in_conflict=models[SFT]["share_in_conflict"],
                cosine=_cosine(*summed[0]) if summed else None,
            )
        )
    return rows


def task_vectors_table(vectors: Sequence[TaskVectors]) -> DataFrame:
    """Return task_vectors.csv: a row per regime, budget and seed."""
    columns = ("regime", "ct_tokens", "seed", *VECTOR_MEASURES)
    return frame(columns, ([getattr(one, column) for column in columns] for one in vectors))


def task_vectors_over_seeds(vectors: Sequence[TaskVectors]) -> list[tuple[str, int, dict[str, Spread | None]]]:
    """Return by regime and budget each measure over seeds; None where a seed does not have it."""
    cells: dict[tuple[str, int], list[TaskVectors]] = {}
    for one in vectors:
        cells.setdefault((one.regime, one.ct_tokens), []).append(one)
    rows = []
    for (regime, budget), ones in cells.items():
        spreads: dict[str, Spread | None] = {}
        for measure in VECTOR_MEASURES:
            values = [getattr(one, measure) for one in ones]
            spreads[measure] = None if None in values else Spread(mean(values), min(values), max(values))
        rows.append((regime, budget, spreads))
    return rows


def _cosine(report: Mapping[str, Any], recipe: Path) -> float | None:
    """Return cos(τ_CT, τ_SFT) from ‖λ(a τ_CT + b τ_SFT)‖, by the law of cosines.

    None where λ, a or b differs between tensors or is not above 0, or the merged norm is beyond float64.
    """
    import yaml

    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    given = [settings["lambda"], *(settings["models"][name]["weight"] for name in ("ct", SFT))]
    if settings.get("normalize") or settings.get("slices") or not all(isinstance(each, int | float) for each in given):
        return None
    if report["merged"]["norm"] is None:
        return None
    scale = given[0] * report["merged"]["lambda_factor"]
    ct, sft = (weight * report["models"][name]["norm"] for weight, name in zip(given[1:], ("ct", SFT), strict=True))
    if min(scale, ct, sft) <= 0:
        return None
    cosine = ((report["merged"]["norm"] / scale) ** 2 - ct**2 - sft**2) / (2 * ct * sft)
    return min(1.0, max(-1.0, cosine))


def _report(audit: Audit) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((audit.folder / "audit.json").read_text(encoding="utf-8"))
    return report


def _discarded(method: str, budget: int, by_seed: Mapping[int, tuple[dict[str, Any], Path]]) -> Discarded:
    reports = [report for report, _ in by_seed.values()]
    settings = {seed: _settings(recipe) for seed, (_, recipe) in by_seed.items()}
    parts = {}
    for by, key in PARTS.items():
        for part in reports[0].get(key, {}):
            counted = [report.get(key, {}).get(part, {}).get(SFT) for report in reports]
            if all(counted):  # else not all audits have it
                parts[by, part] = Shares.mean_of(counted)
    return Discarded(
        method=method,
        ct_tokens=budget,
        recipe_method=reports[0]["method"],
        slack=math.inf if reports[0]["slack"] == "inf" else float(reports[0]["slack"]),
        protects=tuple(reports[0]["protect"]),
        whole=Shares.mean_of([report["models"][SFT] for report in reports]),
        lost_top={seed: Shares.mean_of([report["models"][SFT]]).lost_top for seed, (report, _) in by_seed.items()},
        settings_except_slack={seed: others for seed, (others, _) in settings.items()},
        slack_variant={seed: variant for seed, (_, variant) in settings.items()},
        parts=parts,
    )


def _settings(recipe: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a recipe's settings without the slack and the folders, which differ by seed; and its variant."""
    import yaml

    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    models = {
        name: {key: value for key, value in model.items() if key not in ("path", "adapter")}
        for name, model in settings["models"].items()
    }
    left_out = ("method", "base", "models", "protect")
    others = {key: value for key, value in settings.items() if key not in left_out and "slack" not in key}
    variant = {
        key: value
        for key, value in settings.items()
        if "slack" in key and key != "slack" and value != Recipe.model_fields[key].default
    }
    return {"models": models, **others}, variant if settings.get("slack") else {}


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The settings selected for one merge.

    trials: their number. metric: `acc` or `bits_per_byte`. score: on dev, mean over the cells that count. at_budget:
    the same at this budget alone, if cells of several count. leads, sampler: as in `Choice`. scored: each trial's
    settings that differ between trials, and its score.
    """

    method: str
    ct_tokens: int
    seed: int
    settings: Mapping[str, Any]
    trials: int
    metric: str
    score: float
    at_budget: float
    leads: bool = True
    sampler: str | None = None
    scored: Sequence[tuple[Mapping[str, Any], float]] = ()

    @property
    def settings_text(self) -> str:
        """The settings without the method, which a table has anyway."""
        return settings_text({key: value for key, value in self.settings.items() if key != "method"})

    @property
    def found_by(self) -> str:
        """What proposed the trials."""
        if self.sampler:
            return f"search ({SAMPLERS.get(self.sampler, self.sampler)})"
        return "grid" if self.trials > 1 else "fixed"


def read_choices(choices: Iterable[Choice]) -> list[Selected]:
    """Return the selections by method in their order, budget and seed."""
    import yaml

    selected: list[Selected] = []
    order: dict[str, int] = {}
    for choice in choices:
        order.setdefault(choice.method, len(order))
        settings = yaml.safe_load((choice.folder / "choice.yml").read_text(encoding="utf-8"))
        trials = read_jsonl(choice.folder / "tries.jsonl")
        best = next(row for row in trials if row["settings"] == settings)
        scores = zip(choice.judged, best.get("scores", ()), strict=False)
        first = trials[0]["settings"]
        varied = [key for key in first if any(row["settings"].get(key) != first[key] for row in trials)]
        at_budget = [score for budget, score in scores if budget == choice.ct_tokens]
        selected.append(
            Selected(
                method=choice.method,
                ct_tokens=choice.ct_tokens,
                seed=choice.seed,
                settings=settings,
                trials=len(trials),
                metric=best["metric"],
                score=best["score"],
                at_budget=mean(at_budget) if at_budget else best["score"],
                leads=choice.leads,
                sampler=choice.sampler,
                scored=[({key: row["settings"].get(key) for key in varied}, row["score"]) for row in trials],
            )
        )
    return sorted(selected, key=lambda one: (order[one.method], one.ct_tokens, one.seed))
