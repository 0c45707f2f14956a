"""Merging as pure functions on tensors: one slice of one parameter tensor at a time.

Every function takes task vectors of the same shape and dtype and returns new tensors. Arithmetic is done in their
dtype; sums over models of 16-bit task vectors are accumulated in float32 and rounded once. Sources: task arithmetic
(Ilharco et al. 2023), TIES (Yadav et al. 2023), DARE (Yu et al. 2024), breadcrumbs (Davari and Belilovsky 2024), DELLA
(Deep et al. 2024), slack (Tao et al. 2024).

A sign election decides which of several values with opposite signs survive. With slack, a smaller protected side can
win. P is the sum of the protected models' votes, O that of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch

from merge.select import Array

LARGEST = 3.4028234663852886e38  # of float32, in which votes are summed


@dataclass(frozen=True)
class Slack:
    """How much smaller the protected side may be and still win a conflict. At ξ = 0 it is TIES, bit for bit.

    xi: ξ ≥ 0, or infinity, which also replaces values beyond float32. protected: by model. form: the protected side
    wins iff |O| ≤ (1 + ξ)·|P| (`ratio`), or iff |O| − |P| ≤ ξ·unit (`difference`). both: where slack changed the
    election, the others survive as well.
    """

    xi: float = 0.0
    protected: tuple[bool, ...] = ()
    form: str = "ratio"
    unit: float = 1.0
    both: bool = False

    def __post_init__(self) -> None:
        if (1 + self.xi if self.form == "ratio" else self.xi * self.unit) > LARGEST:
            object.__setattr__(self, "xi", math.inf)

    @property
    def on(self) -> bool:
        """Tell whether slack can change anything."""
        return self.xi > 0 and any(self.protected) and not all(self.protected)


NO_SLACK = Slack()
Scope = Sequence[torch.Tensor | None]  # by model: where its protection applies, bool; None: everywhere


@dataclass(frozen=True)
class Consensus:
    """How sparsified task vectors of one tensor become one; tuples run over models.

    weighted: elect on weight·τ (mergekit's order) instead of on τ. floor: the smallest divisor of a mean.
    """

    weights: tuple[float, ...]
    normalize: bool = True
    elect: bool = True
    slack: Slack = NO_SLACK
    weighted: bool = False
    floor: float = 0.0


def merge_taus(
    taus: Sequence[torch.Tensor], how: Consensus, scope: Scope | None = None
) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
    """Combine sparsified task vectors (zeros where trimmed or dropped) into τ_m, without λ.

    With an election, τ_m is the disjoint mean Σ w τ / Σ w over the models with the elected sign (the sum if not
    `normalize`), else the weighted sum over all models (over Σ w if `normalize`). Returns τ_m and, with an election,
    the survivors of each model: |voter| where it has the elected sign, else 0. scope: where slack applies.

    Signs are applied by multiplying with ±1, which is exact and, unlike masks, runs at memory speed on a CPU.
    """
    weights = [rounded(weight, taus[0].dtype) for weight in how.weights]
    weighted = [scaled(tau, weight) for tau, weight in zip(taus, weights, strict=True)]
    if not how.elect:
        merged = total(weighted)
        if how.normalize:
            divisor = rounded(math.fsum(weights), merged.dtype)
            merged = merged / (1.0 if abs(divisor) < 1e-8 else divisor)
        return merged, None
    voters = weighted if how.weighted else taus
    sign = elected_sign(voters, how.slack, scope)
    slack_won = elected_sign(voters) != sign if how.slack.both and how.slack.on else None
    survivors = surviving(voters, sign, slack_won)
    merged = total(
        survivors if how.weighted else [scaled(part, weight) for part, weight in zip(survivors, weights, strict=True)]
    )
    # the same, but copysign is faster in 16 bits
    merged = torch.copysign(merged, sign) if min(weights) >= 0 else merged * sign
    if slack_won is not None:
        merged = torch.where(slack_won, total(weighted), merged)
    return merged / _divisor(survivors, weights, how.floor) if how.normalize else merged, survivors


def elected_sign(voters: Sequence[torch.Tensor], slack: Slack = NO_SLACK, scope: Scope | None = None) -> torch.Tensor:
    """Return +1 or −1 for each parameter, in the voters' dtype: the sign of the votes' sum, where slack adds to P.

    A sum of exactly zero elects +, as in mergekit; under slack it elects P's side, since P also wins if it is just
    large enough. With infinite slack, P wins wherever it is not zero. Under slack, votes are summed in float32 at
    least: in 16 bits, rounding would lose a small ξ.
    """
    if not slack.on:
        balance = total(voters)
    else:
        protected, balance = _sides(voters, slack, scope)
        if math.isinf(slack.xi):
            balance.add_(protected).sign_().add_(protected.sign(), alpha=2)
        elif slack.form == "ratio":
            balance.add_(protected, alpha=1 + slack.xi)
        else:
            balance.add_(protected).add_(protected.sign(), alpha=slack.xi * slack.unit)
        # A sum that is not zero exceeds its terms' rounding error, far above 2⁻⁶⁰ of a term: this only decides zeros.
        balance = balance.add_(protected, alpha=2.0**-60).to(voters[0].dtype)
    # A sum is −0 only where every vote is a zero, of which none survives: its sign does not matter.
    return torch.copysign(torch.ones((), dtype=balance.dtype, device=balance.device), balance)


def _sides(voters: Sequence[torch.Tensor], slack: Slack, scope: Scope | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return P, of protected models' votes inside their scope, and O, of all others: new tensors, float32 at least."""
    wide = torch.promote_types(voters[0].dtype, torch.float32)
    protected: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for vote, is_protected, inside in zip(voters, slack.protected, scope or [None] * len(voters), strict=True):
        if is_protected and inside is not None:
            others.append(vote * ~inside)
            vote = vote * inside
        (protected if is_protected else others).append(vote)
    return _sum_in(wide, protected), _sum_in(wide, others)


def _sum_in(dtype: torch.dtype, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    out = tensors[0].to(dtype, copy=True)
    for tensor in tensors[1:]:
        out += tensor
    return out


def surviving(
    voters: Sequence[torch.Tensor], sign: torch.Tensor, everywhere: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Return |voter| where a voter has the elected sign or `everywhere` (bool) is true; else 0."""
    survivors = [(voter * sign).clamp_min_(0) for voter in voters]
    if everywhere is None:
        return survivors
    return [torch.where(everywhere, voter.abs(), part) for voter, part in zip(voters, survivors, strict=True)]


def total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over models in their dtype; 16-bit terms are added in float32 and rounded once."""
    if len(tensors) == 1:
        return tensors[0]
    if len(tensors) == 2 or tensors[0].dtype not in (torch.bfloat16, torch.float16):
        out = tensors[0] + tensors[1]
        for tensor in tensors[2:]:
            out.add_(tensor)
        return out
    wide = tensors[0].float()
    for tensor in tensors[1:]:
        wide += tensor
    return wide.to(tensors[0].dtype)


def _divisor(survivors: Sequence[torch.Tensor], weights: Sequence[float], floor: float) -> torch.Tensor:
    """Compute Σ w over the survivors of each parameter, 1 where it is zero; with a floor, at least that."""
    divisor = total([_where_alive(part, weight) for part, weight in zip(survivors, weights, strict=True)])
    if floor:
        return divisor.clamp_(min=floor)
    if min(weights) > 0:  # zero means no survivor: 0 is divided, and any positive divisor does
        return divisor.clamp_min_(min(weights))
    return torch.where(divisor == 0, torch.ones_like(divisor), divisor)


def _where_alive(survivors: torch.Tensor, weight: float) -> torch.Tensor:
    """Return `weight` where a survivor is above zero, else 0."""
    if survivors.dtype.itemsize > 2:
        return scaled(survivors.sign(), weight)
    # sign() of 16-bit floats is slow on a CPU; the sign of their patterns is not (that of a negative zero is negative)
    pattern = int(torch.tensor(weight, dtype=survivors.dtype).view(torch.int16))
    return survivors.view(torch.int16).clamp(0, 1).mul_(pattern).view(survivors.dtype)


def apply_task_vector(base: torch.Tensor, tau: torch.Tensor, lambda_: float) -> torch.Tensor:
    """Compute θ0 + λ·τ_m."""
    return base + scaled(tau, lambda_)


def average(thetas: Sequence[torch.Tensor], weights: Sequence[float], normalize: bool) -> torch.Tensor:
    """Compute Σ w θ, over Σ w if `normalize`; each product is added with one rounding if the processor can."""
    factors = torch.tensor(weights, dtype=thetas[0].dtype, device=thetas[0].device)
    out = torch.zeros_like(thetas[0])
    for theta, factor in zip(thetas, factors, strict=True):
        out.addcmul_(theta, factor)
    return out.div_(factors.sum()) if normalize else out


def slerp_coefficients(t: float, norm_a: float, norm_b: float, dot: float) -> tuple[float, float]:
    """Return factors (a, b) of spherical interpolation a·θ_A + b·θ_B at `t`, from the tensors' norms and dot product.

    The interpolation is linear where the two are nearly parallel (|cos| > 0.9995) or one is zero.
    """
    cosine = dot / ((norm_a if norm_a > 1e-8 else 1.0) * (norm_b if norm_b > 1e-8 else 1.0))
    cosine = max(-1.0, min(1.0, cosine))
    if abs(cosine) > 0.9995:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def nearswap(base: torch.Tensor, theta: torch.Tensor, t: float) -> torch.Tensor:
    """Return θ where it is at most t from θ0, else the point between them at distance t."""
    weight = (t / (base - theta).abs().clamp_(min=1e-6)).clamp_(0, 1)
    return weight * theta + (1 - weight) * base


def row_ranks(magnitude: torch.Tensor) -> torch.Tensor:
    """Count the values of its row that are smaller, or equal and earlier: float32 of the same shape, [rows, columns].

    On a CPU a row is sorted as integers, bit pattern above index: vectorised, several times faster than argsort.
    """
    columns, size = magnitude.shape[-1], magnitude.dtype.itemsize
    if magnitude.device.type != "cpu" or size > 4 or columns >= 1 << 31:
        order = magnitude.argsort(dim=-1, stable=True)
    else:
        shift, kind = (16, numpy.uint32) if size == 2 and columns <= 1 << 16 else (32, numpy.uint64)
        bits = magnitude.contiguous().view(torch.int16 if size == 2 else torch.int32).numpy()
        keys: Array = bits.astype(kind)
        keys <<= kind(shift)
        keys |= numpy.arange(columns, dtype=kind)
        keys.sort(axis=-1)
        order = torch.from_numpy((keys & kind((1 << shift) - 1)).astype(numpy.int64))
    places = torch.arange(columns, dtype=torch.float32, device=order.device)
    return torch.empty(order.shape, device=order.device).scatter_(-1, order, places.expand_as(order))


def keep_probabilities(ranks: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Return DELLA's keep probabilities: linear in rank, from density − ε to density + ε (a row's largest).

    ranks: of complete rows, float32 [rows, columns]; returns the same.
    """
    low, step = keep_line(ranks.shape[-1], density, epsilon)
    return low + ranks * step


def keep_line(columns: int, density: float, epsilon: float) -> tuple[float, float]:
    """Return the least of DELLA's keep probabilities, and what a rank adds to it."""
    return density - epsilon, 2 * epsilon / max(1, columns - 1)


def scaled(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    """Return the tensor times a number; the tensor itself if that is 1."""
    return tensor if factor == 1.0 else tensor * factor


def rounded(value: float, dtype: torch.dtype) -> float:
    """Round to the nearest number of that dtype."""
    return float(torch.tensor(value, dtype=dtype))
