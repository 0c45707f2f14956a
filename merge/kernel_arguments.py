"""What the compiled loops of merge/kernels.py are given: arrays and numbers by name."""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any  # numpy array


class Trim(NamedTuple):
    """Which magnitudes of a task vector stay, [models, 2]: those of the first column, less those of the second.

    edges: the least that stays. below: what is smaller than it by one step. left: how many of those equal to the edge
    may still stay, which goes down from slice to slice. An edge of -1 keeps all, of infinity none.
    """

    edges: Array
    below: Array
    left: Array


class Rescale(NamedTuple):
    """What drops values at random and makes up for it.

    needed: whether anything is made up for. masks: uint8 [models, parameters] or [0, 0]; probabilities: as masks,
    float32; times, over: [models].
    """

    needed: bool
    masks: Array
    probabilities: Array
    times: Array
    over: Array


class Combine(NamedTuple):
    """How task vectors become one (methods.Consensus): numbers in the dtype of the arithmetic, arrays over models.

    share: what the sum is divided by without an election. least: the least divisor with one; 0: none, and 1 where it is
    zero. mode, slack: the form of slack and its factor. scope: least magnitude that is protected, -1 for all.
    """

    weights: Array
    share: Any
    least: Any
    elect: bool
    normalize: bool
    weighted: bool
    positive: bool
    both: bool
    mode: int
    slack: Any
    protected: Array
    scope: Array


class Tallies(NamedTuple):
    """What an audit counts (merge/auditing.py).

    levels: edges of magnitude, [models, levels]. counts: [models, 1 + levels, 3] of kept, in conflict, lost; the first
    row of all that is not zero. turned: [models, 2], regained and given up by slack. energies: [1 + models]: Σ τ_m²,
    and Σ τ² of what survived. own_signs: see discard_counts.count.
    """

    wanted: bool
    own_signs: bool
    levels: Array
    counts: Array
    turned: Array
    energies: Array
