"""Audits of merges -> what each discarded of the SFT task vector. merge/auditing.py defines the fractions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merge import Recipe
from pipeline.report.records import Audit, mean

TOPS = ("1%", "5%", "10%")
TOP = "5%"  # what claims speak of
SFT = "sft"  # the model's name in recipes


@dataclass(frozen=True)
class Shares:
    """Shares of the task vector's parameters, or of those of its top.

    trimmed: set to zero by trimming or dropping.
    conflict: kept, but with the other model's kept value of the other sign.
    lost: kept, but lost because the other sign was elected.
    """

    trimmed: float
    conflict: float
    lost: float


@dataclass(frozen=True)
class PartShares:
    """Fractions of one layer, kind of module or whole model: lost and trimmed as in `Shares`; lost_top: of its top
    5%.
    """

    lost: float
    lost_top: float
    trimmed: float


@dataclass(frozen=True)
class Discarded:
    """What one method discarded of the SFT task vector at one budget, mean over seeds.

    lost_top: by seed, the share of the top 5% that was lost in sign conflicts.
    settings_except_slack: by seed, the recipe's other settings; if they are equal, slack makes the difference.
    reading: by seed, which slack it is (docs/explanation/slack.md): its settings that are not the default, or none.
    parts: by ("layer", its number) or ("module kind", its name).
    """

    method: str
    ct_tokens: int
    recipe_method: str
    slack: float
    protects: tuple[str, ...]
    of_all: Shares
    of_top: Mapping[str, Shares]
    norm_lost: float
    lost_top: Mapping[int, float]
    settings_except_slack: Mapping[int, Mapping[str, Any]]
    reading: Mapping[int, Mapping[str, Any]]
    parts: Mapping[tuple[str, str], PartShares] = field(default_factory=dict)

    @property
    def shares(self) -> PartShares:
        """Return those of the whole model."""
        return PartShares(self.of_all.lost, self.of_top[TOP].lost, self.of_all.trimmed)

    @property
    def plain_ties(self) -> bool:
        """Return whether this is TIES, the slack at 0 or for nobody, and no control whose signs are drawn."""
        models = [model for settings in self.settings_except_slack.values() for model in settings["models"].values()]
        drawn = any(model.get("random_signs") for model in models)
        return self.recipe_method in ("ties", "ties_sv") and not (self.slack > 0 and self.protects) and not drawn

    @property
    def slack_for_sft(self) -> bool:
        """Return whether this is TIES with slack that protects SFT alone."""
        return self.recipe_method in ("ties", "ties_sv") and self.slack > 0 and self.protects == (SFT,)


def read(audits: Iterable[Audit]) -> list[Discarded]:
    """Return the discards by method in their order, and budget.

    A merge without task vectors (such as the weighted average) discards nothing and is left out, and so is one without
    CT, which no budget changes.
    """
    grouped: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    order: dict[str, int] = {}
    for audit in audits:
        report = json.loads((audit.folder / "audit.json").read_text(encoding="utf-8"))
        order.setdefault(audit.method, len(order))
        if SFT in report["models"] and audit.ct_tokens:
            report["settings_except_slack"], report["reading"] = _settings(audit.folder / "merge.yml")
            grouped.setdefault((audit.method, audit.ct_tokens), {})[audit.seed] = report
    return [
        _discarded(method, budget, grouped[method, budget])
        for method, budget in sorted(grouped, key=lambda key: (order[key[0]], key[1]))
    ]


def _discarded(method: str, budget: int, by_seed: Mapping[int, dict[str, Any]]) -> Discarded:
    first, models = next(iter(by_seed.values())), [report["models"][SFT] for report in by_seed.values()]
    return Discarded(
        method,
        budget,
        first["method"],
        math.inf if first["slack"] == "inf" else float(first["slack"]),
        tuple(first["protect"]),
        _shares(models),
        {top: _shares([model["top"][top] for model in models]) for top in TOPS},
        mean([model["norm_lost"] for model in models]),
        {seed: report["models"][SFT]["top"][TOP]["share_lost_in_conflict"] for seed, report in by_seed.items()},
        {seed: report["settings_except_slack"] for seed, report in by_seed.items()},
        {seed: report["reading"] for seed, report in by_seed.items()},
        _parts(list(by_seed.values())),
    )


def _settings(recipe: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a recipe's settings without the slack's own and the folders, which differ by budget and seed; and its
    reading.
    """
    import yaml

    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    models = {
        name: {key: value for key, value in model.items() if key not in ("path", "adapter")}
        for name, model in settings["models"].items()
    }
    left_out = ("method", "base", "models", "protect")
    shared = {key: value for key, value in settings.items() if key not in left_out and "slack" not in key}
    reading = {
        key: value
        for key, value in settings.items()
        if "slack" in key and key != "slack" and value != Recipe.model_fields[key].default
    }
    return {"models": models, **shared}, reading if settings.get("slack") else {}


def _parts(reports: list[dict[str, Any]]) -> dict[tuple[str, str], PartShares]:
    """Return means over seeds of each layer and kind of module that all audits have."""
    parts = {}
    for by, key in (("layer", "by_layer"), ("module kind", "by_kind")):
        for part in reports[0].get(key, {}):
            models = [report.get(key, {}).get(part, {}).get(SFT) for report in reports]
            if all(models):
                whole, top = _shares(models), _shares([model["top"][TOP] for model in models])
                parts[by, part] = PartShares(whole.lost, top.lost, whole.trimmed)
    return parts


def recipe_methods(audits: Iterable[Audit]) -> dict[str, str]:
    """Return the `method` of each merge's recipe."""
    first = {audit.method: audit.folder for audit in reversed(list(audits))}
    return {
        method: json.loads((folder / "audit.json").read_text(encoding="utf-8"))["method"]
        for method, folder in first.items()
    }


def _shares(counted: list[dict[str, Any]]) -> Shares:
    keys = ("share_trimmed", "share_in_conflict", "share_lost_in_conflict")
    return Shares(*(mean([counts[key] for counts in counted]) for key in keys))
