"""What the compiled loops are given: numbers in tables, and inside the loops by name."""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Any, NamedTuple

Array = Any  # numpy array

BLOCK = 512  # parameters that go through all steps before the next: what a few models take lies in the first cache
EXACT, BFLOAT16, FLOAT16 = 0, 1, 2  # formats of numbers: float32 and the two of 16 bits
NO_SLACK, RATIO, DIFFERENCE, INFINITE = 0, 1, 2, 3  # forms of slack
DIGIT = 16  # bits of a magnitude that one pass counts
BINS = 1 << DIGIT


class Table(IntEnum):
    """Where a loop finds its tables: what it is called with is the list of their addresses, in this order.

    NUMBERS: int64 [Number]. PLACES: int64, addresses: of the base's weights, of the models', of masks, of
    probabilities, of the results. CODES: int64, as what the base, the models and the results are stored. SETTINGS:
    float32 [Row, models]. SCALARS: float32 [Scalar]. LAMBDAS: float32 [results]. LEVELS, COUNTS, TURNED, ENERGIES: see
    Tallies. LEFT: see Trim. WORK: float32 [WORK_ROWS · models + LINES, BLOCK]; MARKS: uint32 [BLOCK].
    """

    NUMBERS = 0
    PLACES = auto()
    CODES = auto()
    SETTINGS = auto()
    SCALARS = auto()
    LAMBDAS = auto()
    LEFT = auto()
    LEVELS = auto()
    COUNTS = auto()
    TURNED = auto()
    ENERGIES = auto()
    WORK = auto()
    MARKS = auto()


class Number(IntEnum):
    """Places in the table of whole numbers: sizes, and switches that are 0 or 1 (see Combine, Rescale and Tallies).

    PARAMETERS: of the slice; COLUMNS: of its rows.
    """

    PARAMETERS = 0
    MODELS = auto()
    RESULTS = auto()
    LEVELS = auto()
    ELECT = auto()
    NORMALIZE = auto()
    WEIGHTED = auto()
    POSITIVE = auto()
    BOTH = auto()
    SLACK_FORM = auto()
    RESCALED = auto()
    DRAWN = auto()
    BY_CHANCE = auto()
    AUDITED = auto()
    OWN_SIGNS = auto()
    COLUMNS = auto()


class Row(IntEnum):
    """Rows of the settings, a column a model (see Trim, Rescale and Combine)."""

    EDGE = 0
    EDGE_OF_LARGEST = auto()
    BELOW = auto()
    BELOW_LARGEST = auto()
    TIMES = auto()
    OVER = auto()
    WEIGHT = auto()
    SCOPE = auto()
    PROTECTED = auto()


class Scalar(IntEnum):
    """Places among the single numbers (see Combine). SHARE: also what an average is divided by."""

    SHARE = 0
    LEAST = auto()
    SLACK = auto()


class Count(IntEnum):
    """As Table, of the loops that count one task vector.

    PLACES, CODES: of the base and the model. COUNTS: int64, by magnitude: [BINS / 2], or [rows, BINS] with ROWS, int16
    [BINS / 2]. SUMS: float64 [2]: how many are zero, and Σ τ².
    """

    NUMBERS = 0
    PLACES = auto()
    CODES = auto()
    COUNTS = auto()
    ROWS = auto()
    SUMS = auto()
    WORK = auto()
    MARKS = auto()


class Draw(IntEnum):
    """As Table, of the loop that draws what stays of one task vector, in a slice of whole rows.

    PLACES, CODES: of the base and the model. SCALARS: float32, the least probability and its step by rank. STREAM:
    uint64 [9], two states of PCG64, one after the other, the multiplier and increment that take each two states on,
    and 1 where half of the first word is used up. MASK: uint8. CHANCES: float32, of each parameter; may be nowhere.
    SUMS: float64 [2], of magnitudes and of those that stay; may be nowhere. WORK: float32 [2, BLOCK]. SORTING: uint32
    [5, at least columns + 4 and 256]. BINS: int64 [BINS / 2], zeros.
    """

    NUMBERS = 0
    PLACES = auto()
    CODES = auto()
    SCALARS = auto()
    STREAM = auto()
    MASK = auto()
    CHANCES = auto()
    SUMS = auto()
    WORK = auto()
    SORTING = auto()
    BINS = auto()


WORK_ROWS, LINES = 5, 6  # float32 blocks a model, and beside them


class Trim(NamedTuple):
    """Which magnitudes of a task vector stay, [2, models]: those of the first row, less those of the second.

    edges: the least that stays. below: what is smaller than it by one step. left: how many of those equal to the edge
    may still stay, which goes down from slice to slice. An edge of -1 keeps all, of infinity none.
    """

    edges: Array
    below: Array
    left: Array


class Rescale(NamedTuple):
    """What drops values at random and makes up for it.

    needed: whether anything is made up for. drawn, by_chance: whether there are masks and probabilities. masks: uint8
    [models, parameters]; probabilities: float32; times, over: [models].
    """

    needed: bool
    drawn: bool
    by_chance: bool
    masks: Array
    probabilities: Array
    times: Array
    over: Array


class Combine(NamedTuple):
    """How task vectors become one (methods.Consensus): numbers are float32, arrays run over models.

    share: what the sum is divided by without an election. least: the least divisor with one; 0: none, and 1 where it is
    zero. form, slack: the form of slack and its factor. scope: least magnitude that is protected, -1 for all.
    protected: 0 or 1. audited: whether survivors are asked for.
    """

    weights: Array
    share: Any
    least: Any
    elect: bool
    normalize: bool
    weighted: bool
    positive: bool
    both: bool
    form: int
    slack: Any
    protected: Array
    scope: Array
    audited: bool


class Tallies(NamedTuple):
    """What an audit counts (merge/auditing.py).

    levels: edges of magnitude, [levels, models]. counts: [models, 1 + levels, 3] of kept, in conflict, lost; the first
    row of all that is not zero. turned: [models, 2], regained and given up by slack. energies: [1 + models]: Σ τ_m²,
    and Σ τ² of what survived. own_signs: see discard_counts.count. fought: a block to work in.
    """

    own_signs: bool
    levels: Array
    counts: Array
    turned: Array
    energies: Array
    fought: Array
