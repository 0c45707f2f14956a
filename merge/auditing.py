"""Which parameters a merge discarded, counted while it merges.

For one model's task vector τ over n parameters (of a tensor, a layer, a module kind or the whole model):

- share_trimmed: parameters whose τ is not zero and that trimming or dropping set to zero, over n;
- share_in_conflict: parameters that were kept and non-zero while another model's kept value has the other sign, over n;
- share_lost_in_conflict: parameters that were kept and non-zero but whose sign was not elected, over n (no election: 0);
- norm_lost: 1 − ‖what entered the merge‖₂ / ‖τ‖₂ (before rescaling, weights and λ);
- slack_regained, slack_given_up: survivors that ξ = 0 would have discarded, and the reverse, over n;
- top: the first three again among the model's most important parameters: in each tensor those at least as large as the k-th
  largest |τ| and not zero, k = 1, 5, 10 % of the tensor; `share_of_parameters` says how many those are over n.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy
import torch

from merge.engine import run
from merge.methods import elected_sign, surviving
from merge.pieces import Piece
from merge.plan import Parent, make_plan
from merge.recipe import Recipe
from merge.select import kept
from merge.settings import kind_of, layer_of
from merge.tensor_recipe import Merged, TensorRecipe

LEVELS = (0.01, 0.05, 0.10)
SMALLEST = 2.0**-149  # a float32 above zero
_COUNTS = ("size", "trimmed", "conflict", "lost")


@dataclass
class Tally:
    """Counts for one model; `top` holds the same counts for the levels. energies are sums of τ²."""

    size: int = 0
    trimmed: int = 0
    conflict: int = 0
    lost: int = 0
    regained: int = 0
    given_up: int = 0
    energy: float = 0.0
    energy_used: float = 0.0
    top: dict[float, list[int]] = field(default_factory=dict)

    def __iadd__(self, other: Tally) -> Self:
        for name in (*_COUNTS, "regained", "given_up", "energy", "energy_used"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for level, counts in other.top.items():
            self.top[level] = [a + b for a, b in zip(self.top.get(level, [0] * 4), counts, strict=True)]
        return self

    def shares(self) -> dict[str, Any]:
        """What the module's text defines."""
        return {
            "parameters": self.size,
            **_shares(self.size, self.trimmed, self.conflict, self.lost),
            "norm": math.sqrt(self.energy),
            "norm_lost": 1.0 - math.sqrt(self.energy_used / self.energy) if self.energy else 0.0,
            "slack_regained": self.regained / max(1, self.size),
            "slack_given_up": self.given_up / max(1, self.size),
            "top": {
                f"{level:.0%}": {"share_of_parameters": counts[0] / max(1, self.size), **_shares(*counts)}
                for level, counts in sorted(self.top.items())
            },
        }


def _shares(size: int, trimmed: int, conflict: int, lost: int) -> dict[str, float]:
    of = max(1, size)
    return {"share_trimmed": trimmed / of, "share_in_conflict": conflict / of, "share_lost_in_conflict": lost / of}


class Audit:
    """Watches one recipe's merge (see engine.Observer) and adds up. Without a base there is no task vector, and nothing to see."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.levels: tuple[float, ...] = LEVELS if recipe.base is not None else ()
        self._tallies: dict[tuple[str, str], Tally] = {}  # (tensor, model)

    def see(self, tensor: TensorRecipe, piece: Piece, merged: Merged) -> None:
        """Count one slice. Whole numbers are added up in float32 vectors of 0 and 1: exact, and faster than masks on a CPU."""
        if not self.levels:
            return
        taus = [piece.tau(use.parent, tensor.dtype) for use in tensor.uses]
        kept_taus = merged.kept if merged.kept is not None else taus
        signs = [part.sign().float() for part in kept_taus]
        both = (-(_reduce(torch.maximum, signs) * _reduce(torch.minimum, signs))).clamp_min_(0)  # 1 where both signs occur
        plain = self._survivors_without_slack(tensor, merged)
        for i, use in enumerate(tensor.uses):
            present = signs[i].abs()
            conflict = both * present
            lost = torch.zeros_like(both)
            used = kept_taus[i]
            held = int(torch.count_nonzero(taus[i]))
            tally = Tally(size=taus[i].numel(), trimmed=held - _count(present), conflict=_count(conflict))
            if merged.survivors is not None:
                alive = merged.survivors[i].sign().float()
                lost = present - alive
                used = used * alive.to(used.dtype)
                tally.lost = _count(lost)
                if plain is not None:
                    before = plain[i].sign().float()
                    tally.regained = _count((alive - before).clamp_min_(0))
                    tally.given_up = _count((before - alive).clamp_min_(0))
            tally.energy, tally.energy_used = _energy(taus[i]), _energy(used)
            tally.top = self._tops(tensor, piece, use.parent, [present, conflict, lost])
            self._add(tensor.output.name, use.name, tally)

    def _tops(self, tensor: TensorRecipe, piece: Piece, parent: Parent, flags: Sequence[torch.Tensor]) -> dict[float, list[int]]:
        """Counts (size, trimmed, conflict, lost) among the largest; only the largest of the widest level are looked at."""
        edges = {
            level: max(SMALLEST, piece.job.thresholds[(parent, tensor.dtype, kept(level, tensor.output.numel))].value)
            for level in self.levels
        }
        magnitude = _flat(piece.magnitude(parent, tensor.dtype))
        places = numpy.flatnonzero(magnitude >= numpy.float32(min(edges.values())))
        near = magnitude.take(places)  # numpy takes a few times faster than torch indexes
        present, conflict, lost = (_flat(flag).take(places) for flag in flags)
        tops = {}
        for level, edge in edges.items():
            inside = (near >= numpy.float32(edge)).astype(numpy.float32)
            size = int(inside.sum())
            tops[level] = [size, size - int(inside @ present), int(inside @ conflict), int(inside @ lost)]
        return tops

    def report(self) -> dict[str, Any]:
        """JSON-serialisable: per model, by module kind and by layer (`outside`: embeddings, final norm, head)."""
        names = [model.name for model in self.recipe.models]
        return {
            "method": self.recipe.method,
            "slack": self.recipe.slack if math.isfinite(self.recipe.slack) else "inf",
            "protect": list(self.recipe.protect),
            "models": {name: tally.shares() for name, tally in self._by(lambda _: "all").get("all", {}).items() if name in names},
            "by_kind": {kind: _plain(tallies) for kind, tallies in sorted(self._by(kind_of).items())},
            "by_layer": {layer: _plain(tallies) for layer, tallies in sorted(self._by(_layer_label).items(), key=_layer_order)},
        }

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per tensor and model, for a table."""
        rows = []
        for (tensor, model), tally in sorted(self._tallies.items()):
            shares = tally.shares()
            tops = shares.pop("top")
            row = {"tensor": tensor, "layer": layer_of(tensor), "kind": kind_of(tensor), "model": model, **shares}
            row |= {f"top_{level.rstrip('%')}_{key}": value for level, values in tops.items() for key, value in values.items()}
            rows.append(row)
        return rows

    def save(self, folder: Path) -> None:
        """audit.json, and audit.parquet with a row per tensor and model where pyarrow is installed."""
        (folder / "audit.json").write_text(json.dumps(self.report(), indent=1) + "\n", encoding="utf-8")
        if find_spec("pyarrow") and (rows := self.rows()):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "audit.parquet")

    def _survivors_without_slack(self, tensor: TensorRecipe, merged: Merged) -> list[torch.Tensor] | None:
        """What the same election would leave at slack 0; None where slack changes nothing."""
        how = tensor.consensus
        if merged.taus is None or not how.elect or how.slack == 0 or not any(how.protected):
            return None
        voters = merged.taus
        if how.weighted:
            voters = [tau * weight for tau, weight in zip(merged.taus, how.weights, strict=True)]
        return surviving(voters, elected_sign(voters))

    def _add(self, tensor: str, model: str, tally: Tally) -> None:
        held = self._tallies.setdefault((tensor, model), Tally())
        held += tally

    def _by(self, label: Any) -> dict[str, dict[str, Tally]]:
        grouped: dict[str, dict[str, Tally]] = {}
        for (tensor, model), tally in self._tallies.items():
            total = grouped.setdefault(label(tensor), {}).setdefault(model, Tally())
            total += tally
        return grouped


def audit_many(recipes: Sequence[Recipe], **engine: Any) -> list[dict[str, Any]]:
    """The reports of several recipes over one base, in one pass, without keeping any weights; `engine`: see engine.run."""
    plan = make_plan(recipes)
    try:
        audits = [Audit(recipe) for recipe in recipes]
        run(plan, [None] * len(audits), audits, **engine)
        return [audit.report() for audit in audits]
    finally:
        plan.close()


def _plain(tallies: dict[str, Tally]) -> dict[str, Any]:
    return {name: tally.shares() for name, tally in tallies.items()}


def _layer_label(tensor: str) -> str:
    layer = layer_of(tensor)
    return "outside" if layer is None else str(layer)


def _layer_order(item: tuple[str, Any]) -> tuple[bool, int]:
    return (item[0] == "outside", 0 if item[0] == "outside" else int(item[0]))


def _reduce(pairwise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(pairwise, tensors)


def _flat(tensor: torch.Tensor) -> Any:
    return tensor.view(-1).cpu().numpy()


def _count(flags: torch.Tensor) -> int:
    return int(flags.sum())


def _energy(tau: torch.Tensor) -> float:
    flat = tau.float().view(-1)
    return float(flat @ flat)
