"""Sign election: which of several values with opposite signs survive. With slack, a smaller protected side can win.

For any number of models; P is the sum of the protected models' votes, O that of the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

LARGEST = 3.4028234663852886e38  # of float32, in which votes are summed


@dataclass(frozen=True)
class Slack:
    """How much smaller the protected side may be and still win a conflict. At ξ = 0 it is TIES, bit for bit.

    xi: ξ ≥ 0, or infinity, which also stands for values beyond float32. protected: by model. form: the protected side
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


def elected_sign(voters: Sequence[torch.Tensor], slack: Slack = NO_SLACK, scope: Scope | None = None) -> torch.Tensor:
    """Return +1 or −1 for each parameter, in the voters' dtype: the sign of the votes' sum, where slack adds to P.

    A sum of exactly zero elects +, as in mergekit; under slack it elects P's side, since P also wins if it is just
    large enough. With infinite slack, P wins wherever it is not zero. Under slack, votes are summed in float32 at
    least: in 16 bits, rounding would lose a small ξ.
    """
    if not slack.on:
        balance = total(voters)
    else:
        shielded, balance = _sides(voters, slack, scope)
        if math.isinf(slack.xi):
            balance.add_(shielded).sign_().add_(shielded.sign(), alpha=2)
        elif slack.form == "ratio":
            balance.add_(shielded, alpha=1 + slack.xi)
        else:
            balance.add_(shielded).add_(shielded.sign(), alpha=slack.xi * slack.unit)
        # A sum that is not zero exceeds its terms' rounding error, far above 2⁻⁶⁰ of a term: this only decides zeros.
        balance = balance.add_(shielded, alpha=2.0**-60).to(voters[0].dtype)
    # A sum is −0 only where every vote is a zero, of which none survives: its sign does not matter.
    return torch.copysign(torch.ones((), dtype=balance.dtype, device=balance.device), balance)


def _sides(voters: Sequence[torch.Tensor], slack: Slack, scope: Scope | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return P, of protected models' votes inside their scope, and O, of all others: new tensors, float32 at least."""
    wide = torch.promote_types(voters[0].dtype, torch.float32)
    shielded: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for vote, mine, inside in zip(voters, slack.protected, scope or [None] * len(voters), strict=True):
        if mine and inside is not None:
            others.append(vote * ~inside)
            vote = vote * inside
        (shielded if mine else others).append(vote)
    return _widened(shielded, wide), _widened(others, wide)


def _widened(tensors: Sequence[torch.Tensor], wide: torch.dtype) -> torch.Tensor:
    out = tensors[0].to(wide, copy=True)
    for tensor in tensors[1:]:
        out += tensor
    return out


def surviving(
    voters: Sequence[torch.Tensor], sign: torch.Tensor, spared: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Return |voter| where a voter has the elected sign or `spared` (bool) is true; else 0."""
    alive = [(voter * sign).clamp_min_(0) for voter in voters]
    if spared is None:
        return alive
    return [torch.where(spared, voter.abs(), part) for voter, part in zip(voters, alive, strict=True)]


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
