"""Which parameters a merge discarded, counted while it merges.

For one model's task vector τ over n parameters (of a tensor, a layer, a module kind or the whole model):

- share_trimmed: parameters whose τ is not zero and that trimming or dropping set to zero, over n;
- share_in_conflict: parameters that were kept and non-zero while another model's kept value has the other sign, over n;
- share_lost_in_conflict: parameters that were kept and non-zero but whose sign was not elected, over n (no election:
  0);
- norm_lost: 1 − ‖what entered the merge‖₂ / ‖τ‖₂ (before rescaling, weights and λ);
- merged: ‖λ·τ_m‖₂ of the whole model, and what `norm` multiplied λ with (1 without it);
- slack_regained, slack_given_up: survivors that ξ = 0 would have discarded, and the reverse, over n;
- top: the first three again among the model's most important parameters: in each tensor those at least as large as the
  k-th largest |τ| and not zero, k = 1, 5, 10 % of the tensor; `share_of_parameters` says how many those are over n.
"""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy
import torch

from merge.arithmetic import elected_sign, rounded, scaled, surviving
from merge.checkpoints.tensor_names import kind_of, layer_of
from merge.engine.fused import FusedCounts
from merge.engine.passes import DEFAULT, Workers, run
from merge.engine.pieces import Piece
from merge.engine.plan import make_plan
from merge.engine.tensor_recipe import MergedDelta, ModelTerm, TensorRecipe
from merge.recipe import Recipe
from merge.select import PATTERNS, Array, Threshold, count_kept, is_accurate, magnitude_bits

LEVELS = (0.01, 0.05, 0.10)


@dataclass
class Tally:
    """Counts for one model. energies are sums of τ².

    levels: for every parameter whose τ is not zero (1.0), and for the most important ones by share, [how many, kept,
    kept and in conflict, kept and lost].
    """

    parameters: int = 0
    regained: int = 0
    given_up: int = 0
    energy: float = 0.0
    energy_used: float = 0.0
    levels: dict[float, list[int]] = field(default_factory=dict)

    def __iadd__(self, other: Tally) -> Self:
        for name in ("parameters", "regained", "given_up", "energy", "energy_used"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for level, counts in other.levels.items():
            self.levels[level] = [a + b for a, b in zip(self.levels.get(level, [0] * 4), counts, strict=True)]
        return self

    def shares(self) -> dict[str, Any]:
        """Return the shares that the module's docstring defines."""
        total = max(1, self.parameters)
        top = {
            f"{level:.0%}": {
                "share_of_parameters": self.levels[level][0] / total,
                **_shares(self.levels[level], max(1, self.levels[level][0])),
            }
            for level in sorted(self.levels.keys() - {1.0})
        }
        norm = norm_of([self.energy])
        lost = norm and 1.0 - math.sqrt(self.energy_used / self.energy)
        return {
            "parameters": self.parameters,
            **_shares(self.levels.get(1.0, [0] * 4), total),
            "norm": norm,
            "norm_lost": lost,
            "slack_regained": self.regained / total,
            "slack_given_up": self.given_up / total,
            "top": top,
        }


def norm_of(energies: Iterable[float]) -> float | None:
    """Return the norm from sums of squares; None beyond float64, as JSON has no infinity."""
    try:
        energy = math.fsum(energies)
    except OverflowError:
        return None
    return math.sqrt(energy) if math.isfinite(energy) else None


def _shares(counts: list[int], total: int) -> dict[str, float]:
    size, here, conflict, lost = counts
    return {
        "share_trimmed": (size - here) / total,
        "share_in_conflict": conflict / total,
        "share_lost_in_conflict": lost / total,
    }


class Audit:
    """Observe one recipe's merge (see tensor_recipe.Observer) and sum its counts.

    Without a base there is no task vector, and nothing to count.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.levels: tuple[float, ...] = LEVELS if recipe.base is not None else ()
        self._tallies: dict[tuple[str, str], Tally] = {}  # (tensor, model)
        self._steps: dict[str, float] = {}  # by tensor, Σ (λ·τ_m)²
        self._lambda_factor = 1.0

    def observe(self, tensor: TensorRecipe, piece: Piece, delta: MergedDelta | FusedCounts | None) -> None:
        """Count one slice."""
        if not self.levels:
            return
        if isinstance(delta, FusedCounts):
            self._add(tensor, piece, delta.counts, delta.energies, delta.energy)
            return
        kept_taus = delta.kept if delta else [piece.tau(term.parent, tensor.dtype) for term in tensor.terms]
        survivors = delta.survivors if delta else None
        plain = self._survivors_without_slack(tensor, delta) if delta else None
        edges = [[self._threshold(tensor, piece, term, level).bits for level in self.levels] for term in tensor.terms]
        how = tensor.consensus
        own_signs = not how.slack.both and (not how.weighted or min(how.weights) > 0)
        signed, alive, before = ([patterns(part) for part in parts or ()] for parts in (kept_taus, survivors, plain))
        counted = count([magnitude_bits(part) for part in kept_taus], signed, alive, before, edges, own_signs)
        used: list[float | None] = []
        for i, term in enumerate(tensor.terms):
            if delta and survivors is not None:
                used.append(energy_alive(delta, i, term.weight if how.weighted else 1.0))
            else:
                whole = kept_taus[i] is piece.tau(term.parent, tensor.dtype)
                used.append(None if whole else energy(kept_taus[i]))
        self._add(tensor, piece, counted, used, energy(delta.tau) if delta else None)

    def _add(
        self,
        tensor: TensorRecipe,
        piece: Piece,
        counted: Sequence[tuple[list[list[int]], tuple[int, int]]],
        used: Sequence[float | None],
        merged: float | None,
    ) -> None:
        """Add the counts of a slice, by model.

        used: Σ τ² of what entered the merge, None if all did; merged: Σ τ_m².
        """
        for term, (rows, turned), part in zip(tensor.terms, counted, used, strict=True):
            tally = self._before(tensor, piece, term)
            tally.regained, tally.given_up = turned
            for counts, row in zip(tally.levels.values(), rows, strict=True):
                counts += row
            tally.energy_used = tally.energy if part is None else part
            running = self._tallies.setdefault((tensor.output.name, term.name), Tally())
            running += tally
        if merged is not None:
            step = tensor.lambda_**2 * merged
            self._steps[tensor.output.name] = self._steps.get(tensor.output.name, 0.0) + step
            self._lambda_factor = tensor.lambda_factor

    def _before(self, tensor: TensorRecipe, piece: Piece, term: ModelTerm) -> Tally:
        """Read the counts of the whole tensor that selection left with its first slice."""
        tally = Tally(piece.stop - piece.start, levels={level: [0] for level in (1.0, *self.levels)})
        if piece.start == 0:
            ranking = piece.job.selection[term.parent, tensor.dtype]
            tally.energy, tally.levels[1.0][0] = ranking.energy, ranking.nonzero
            for level in self.levels:
                tally.levels[level][0] = min(ranking.nonzero, self._threshold(tensor, piece, term, level).count_ge)
        return tally

    def _threshold(self, tensor: TensorRecipe, piece: Piece, term: ModelTerm, level: float) -> Threshold:
        return piece.job.selection[term.parent, tensor.dtype].thresholds[count_kept(level, tensor.output.numel)]

    def report(self) -> dict[str, Any]:
        """Return a report for JSON per model, module kind and layer (`outside`: embeddings, final norm, head)."""
        whole = self._by(lambda _: "all").get("all", {})
        return {
            "method": self.recipe.method,
            "slack": self.recipe.slack if math.isfinite(self.recipe.slack) else "inf",
            "protect": list(self.recipe.protect),
            "merged": {"norm": norm_of(self._steps.values()), "lambda_factor": self._lambda_factor},
            "models": {model.name: whole[model.name].shares() for model in self.recipe.models if model.name in whole},
            "by_kind": {kind: _plain(tallies) for kind, tallies in sorted(self._by(kind_of).items())},
            "by_layer": {
                layer: _plain(tallies) for layer, tallies in sorted(self._by(_layer_label).items(), key=_layer_order)
            },
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per tensor and model, for a table."""
        rows = []
        for (tensor, model), tally in sorted(self._tallies.items()):
            shares = tally.shares()
            tops = shares.pop("top")
            row = {"tensor": tensor, "layer": layer_of(tensor), "kind": kind_of(tensor), "model": model, **shares}
            row |= {
                f"top_{level.rstrip('%')}_{key}": value
                for level, values in tops.items()
                for key, value in values.items()
            }
            rows.append(row)
        return rows

    def save(self, folder: Path) -> None:
        """Write audit.json, and audit.parquet with one row per tensor and model."""
        (folder / "audit.json").write_text(json.dumps(self.report(), indent=1) + "\n", encoding="utf-8")
        if rows := self.rows():
            import pyarrow.json
            import pyarrow.parquet

            lines = "\n".join(
                map(json.dumps, rows)
            ).encode()  # pyarrow's other ways from Python values first import pandas
            pyarrow.parquet.write_table(pyarrow.json.read_json(io.BytesIO(lines)), folder / "audit.parquet")

    def _survivors_without_slack(self, tensor: TensorRecipe, delta: MergedDelta) -> list[torch.Tensor] | None:
        """Compute what the same election would keep at slack 0; None if slack changes nothing."""
        how = tensor.consensus
        if not how.elect or not how.slack.on:
            return None
        voters = delta.taus
        if how.weighted:
            weights = [rounded(weight, delta.tau.dtype) for weight in how.weights]
            voters = [scaled(tau, weight) for tau, weight in zip(delta.taus, weights, strict=True)]
        return surviving(voters, elected_sign(voters))

    def _by(self, label: Any) -> dict[str, dict[str, Tally]]:
        grouped: dict[str, dict[str, Tally]] = {}
        for (tensor, model), tally in sorted(self._tallies.items()):  # in one order: sums of floats depend on it
            total = grouped.setdefault(label(tensor), {}).setdefault(model, Tally())
            total += tally
        return grouped


def audit_many(recipes: Sequence[Recipe], workers: Workers = DEFAULT) -> list[dict[str, Any]]:
    """Return the reports of several recipes over one base, in one pass, without keeping weights."""
    plan = make_plan(recipes)
    try:
        audits = [Audit(recipe) for recipe in recipes]
        run(plan, [None] * len(audits), audits, workers)
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


def patterns(tensor: torch.Tensor) -> Array:
    """Return flat bit patterns as signed integers of the same width."""
    return tensor.cpu().view(-1).view(PATTERNS[tensor.dtype.itemsize]).numpy()


def energy_alive(delta: MergedDelta, i: int, weight: float) -> float:
    """Compute Σ τ² of model i where it survived. weight: the factor of its votes."""
    assert delta.survivors is not None
    if delta.taus[i] is delta.kept[i] and abs(math.frexp(weight)[0]) == 0.5:  # a power of two: nothing was rounded
        return energy(delta.survivors[i]) / weight**2
    mask = (patterns(delta.survivors[i]) > 0).view(numpy.int8)
    alive = torch.from_numpy(patterns(delta.kept[i]) * mask).view(delta.kept[i].dtype)
    return energy(alive.view(delta.kept[i].shape))


def count(
    sizes: list[Array],
    kept: list[Array],
    survivors: list[Array],
    plain: list[Array],
    edges: list[list[int]],
    own_signs: bool,
) -> list[tuple[list[list[int]], tuple[int, int]]]:
    """Count, for each model, [kept, in conflict, lost] by level, and (regained, given up).

    The first row of the former counts all non-zero values, the others each level of `edges`.

    sizes: magnitudes of kept values; kept, survivors, plain: bit patterns of kept values, of survivors, and of
    survivors without slack.

    Each predicate is one bit per parameter, packed into words; a conjunction is one AND. own_signs: every model voted
    with its own sign (no negative weights), so a model that meets the other sign either loses or sees another lose, and
    the signs themselves are not needed.
    """
    present = [_packed(size > 0) for size in sizes]
    alive = [_packed(part > 0) for part in survivors] or present
    lost = [here & ~left for here, left in zip(present, alive, strict=True)]
    if survivors and own_signs:
        fought = functools.reduce(numpy.bitwise_or, lost)
        conflict = [here & fought for here in present]
    else:
        minus = [_packed(part < 0) & here for part, here in zip(kept, present, strict=True)]
        plus = [here & ~below for here, below in zip(present, minus, strict=True)]
        any_minus, any_plus = (functools.reduce(numpy.bitwise_or, side) for side in (minus, plus))
        conflict = [(above & any_minus) | (below & any_plus) for above, below in zip(plus, minus, strict=True)]
    counted = []
    for i, size in enumerate(sizes):
        rows = [[_ones(asked[i]) for asked in (present, conflict, lost)]]
        for inside in (_packed(size >= max(1, edge)) for edge in edges[i]):
            rows.append([_ones(inside), _ones(inside & conflict[i]), _ones(inside & lost[i])])
        before = _packed(plain[i] > 0) if plain else alive[i]
        counted.append((rows, (_ones(alive[i] & ~before), _ones(before & ~alive[i])) if plain else (0, 0)))
    return counted


def _ones(words: Array) -> int:
    return int(numpy.bitwise_count(words).sum(dtype=numpy.uint32))


def _packed(mask: Array) -> Array:
    """Pack a flat mask into whole words."""
    bits = numpy.packbits(mask)
    if padding := -len(bits) % 8:
        bits = numpy.pad(bits, (0, padding))
    return bits.view(numpy.uint64)


def energy(tau: torch.Tensor) -> float:
    """Compute Σ τ², row by row, since a norm in float32 loses digits over many elements."""
    rows = torch.linalg.vector_norm(tau, dim=-1, dtype=torch.promote_types(tau.dtype, torch.float32))
    energy = float(rows.double().square().sum())
    return energy if is_accurate(energy, tau.numel()) else float(tau.double().square().sum())
