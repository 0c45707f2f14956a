"""Which parameters a merge discarded, counted while it merges.

For one model's task vector τ over n parameters (of a tensor, a layer, a module kind or the whole model):

- share_trimmed: parameters that trimming or dropping set to zero, over n;
- share_in_conflict: parameters that were kept and non-zero while another model's kept value has the other sign, over n;
- share_lost_in_conflict: parameters that were kept and non-zero but whose sign was not elected, over n (no election: 0);
- norm_lost: 1 − ‖what entered the merge‖₂ / ‖τ‖₂ (before rescaling, weights and λ);
- slack_regained, slack_given_up: survivors that ξ = 0 would have discarded, and the reverse, over n;
- top: the first three again among the model's most important parameters: in each tensor those at least as large as the k-th
  largest |τ| and not zero, k = 1, 5, 10 % of the tensor; `share_of_parameters` says how many those are over n.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from merge.methods import elect, survives
from merge.pieces import Piece
from merge.recipe import Recipe
from merge.select import kept
from merge.settings import kind_of, layer_of
from merge.tensor_recipe import TensorRecipe

LEVELS = (0.01, 0.05, 0.10)
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

    def __iadd__(self, other: Tally) -> Tally:
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
        self.levels = LEVELS if recipe.base is not None else ()
        self._tallies: dict[tuple[str, str], Tally] = {}  # (tensor, model)

    def see(
        self, tensor: TensorRecipe, piece: Piece, masks: Sequence[torch.Tensor | None], survivors: Sequence[torch.Tensor] | None
    ) -> None:
        if not self.levels:
            return
        taus = [piece.tau(use.parent, tensor.dtype) for use in tensor.uses]
        kept_taus = [tau if mask is None else tau * mask for tau, mask in zip(taus, masks, strict=True)]
        signs = [(tau > 0, tau < 0) for tau in kept_taus]
        both = _any(positive for positive, _ in signs) & _any(negative for _, negative in signs)
        before = self._without_slack(tensor, kept_taus) if survivors is not None else None
        for i, use in enumerate(tensor.uses):
            magnitude = piece.magnitude(use.parent, tensor.dtype)
            present = signs[i][0] | signs[i][1]
            conflict = present & both
            lost = present & ~survivors[i] if survivors is not None else None
            tally = Tally(magnitude.numel(), _missing(masks[i]), _count(conflict), _count(lost))
            tally.energy = _energy(taus[i])
            tally.energy_used = tally.energy if masks[i] is None and survivors is None else _energy(
                kept_taus[i] if survivors is None else kept_taus[i] * survivors[i]
            )
            if before is not None and survivors is not None:
                tally.regained = _count(survivors[i] & ~before[i])
                tally.given_up = _count(before[i] & ~survivors[i])
            for level in self.levels:
                threshold = piece.job.thresholds[(use.parent, tensor.dtype, kept(level, tensor.output.numel))].value
                top = (magnitude >= threshold) & (magnitude > 0)
                mask = masks[i]
                tally.top[level] = [
                    _count(top),
                    0 if mask is None else _count(top & ~mask),
                    _count(top & conflict),
                    0 if lost is None else _count(top & lost),
                ]
            self._add(tensor.output.name, use.name, tally)

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

    def _without_slack(self, tensor: TensorRecipe, taus: Sequence[torch.Tensor]) -> list[torch.Tensor] | None:
        """Survivors that the same election would leave at slack 0; None where slack changes nothing."""
        how = tensor.consensus
        if how.slack == 0 or not any(how.protected):
            return None
        voters = [tau * weight for tau, weight in zip(taus, how.weights, strict=True)] if how.weighted else taus
        positive = elect(voters)
        return [survives(tau, positive) for tau in voters]

    def _add(self, tensor: str, model: str, tally: Tally) -> None:
        held = self._tallies.setdefault((tensor, model), Tally())
        held += tally

    def _by(self, label: Any) -> dict[str, dict[str, Tally]]:
        grouped: dict[str, dict[str, Tally]] = {}
        for (tensor, model), tally in self._tallies.items():
            total = grouped.setdefault(label(tensor), {}).setdefault(model, Tally())
            total += tally
        return grouped


def _plain(tallies: dict[str, Tally]) -> dict[str, Any]:
    return {name: tally.shares() for name, tally in tallies.items()}


def _layer_label(tensor: str) -> str:
    layer = layer_of(tensor)
    return "outside" if layer is None else str(layer)


def _layer_order(item: tuple[str, Any]) -> tuple[bool, int]:
    return (item[0] == "outside", 0 if item[0] == "outside" else int(item[0]))


def _any(masks: Iterable[torch.Tensor]) -> torch.Tensor:
    first, *rest = masks
    for mask in rest:
        first = first | mask
    return first


def _count(mask: torch.Tensor | None) -> int:
    return 0 if mask is None else int(torch.count_nonzero(mask))


def _missing(mask: torch.Tensor | None) -> int:
    return 0 if mask is None else mask.numel() - _count(mask)


def _energy(tau: torch.Tensor) -> float:
    flat = tau.float().view(-1)
    return float(flat @ flat)
