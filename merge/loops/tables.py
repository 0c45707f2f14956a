"""What the compiled loops are called with: tables of numbers, by address; inside the loops the same numbers have names.

The second half of this file makes the tables and calls: `CountCall`, `draw_slice` and `MergeCall`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum, auto
from typing import Any, NamedTuple

import numpy
import torch

Array = Any  # numpy array
Loop = Callable[[int], int]  # machine code, called with the address of its list of addresses

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
    Tallies. LEFT: see Trim. WORK: float32 [WORK_ROWS · models + LINES, BLOCK]; MARKS: uint32 [2, BLOCK].
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
    """How task vectors become one (arithmetic.Consensus): numbers are float32, arrays run over models.

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
    and Σ τ² of what survived. own_signs: see auditing.count. work: uint32 [2, BLOCK].
    """

    own_signs: bool
    levels: Array
    counts: Array
    turned: Array
    energies: Array
    work: Array


MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645  # PCG64's
KINDS = {torch.float32: EXACT, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


class Stored(NamedTuple):
    """Numbers of a slice as a loop reads or writes them."""

    values: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, dtype: torch.dtype) -> Stored:
        """Weights as they were read, or rounded to the dtype of the arithmetic where loops cannot read them."""
        return cls((values if values.dtype in KINDS else values.to(dtype)).contiguous())

    @property
    def code(self) -> int:
        return KINDS[self.values.dtype]


def call(loop: Loop, tables: Mapping[IntEnum, Array], names: type[IntEnum]) -> int:
    """Call a loop with tables; those that are not given are nowhere."""
    addresses = [tables[name].ctypes.data if name in tables else 0 for name in names]
    listed = numpy.array(addresses, numpy.int64)  # named, so that it lives as long as the call
    return loop(listed.ctypes.data)


class CountCall:
    """Calls that count one task vector, slice after slice: see Count."""

    def __init__(self, loop: Loop, counts: Array, rows: Array | None = None):
        self.loop = loop
        self.sums = numpy.zeros(2)
        self.numbers = numpy.zeros(len(Number), numpy.int64)
        self.numbers[Number.LEVELS] = len(counts)
        self.tables: dict[IntEnum, Array] = {
            Count.NUMBERS: self.numbers,
            Count.COUNTS: counts,
            Count.SUMS: self.sums,
            Count.WORK: numpy.empty((2, BLOCK), numpy.float32),
            Count.MARKS: numpy.empty(BLOCK, numpy.uint16),
        }
        if rows is not None:
            self.tables[Count.ROWS] = rows

    def update(self, base: Stored, model: Stored) -> None:
        """Count the next slice."""
        self.numbers[Number.PARAMETERS] = base.values.numel()
        self.tables[Count.PLACES] = numpy.array([base.values.data_ptr(), model.values.data_ptr()], numpy.int64)
        self.tables[Count.CODES] = numpy.array([base.code, model.code], numpy.int64)
        call(self.loop, self.tables, Count)


class Drawn(NamedTuple):
    """What DARE or DELLA draws of a slice of one task vector.

    mask: 0 and 1, uint8 [rows, columns]. chances: float32, the probability of each, where they are asked for. sums:
    Σ|τ|, and that of what stays, in float64.
    """

    mask: torch.Tensor
    chances: torch.Tensor | None
    sums: tuple[float, float]


def draw_slice(
    loop: Loop, base: Stored, model: Stored, columns: int, stream: Array, low: float, step: float, exact: bool
) -> Drawn:
    """Draw in a slice of whole rows.

    stream: see `stream_from`. low, step: the least probability, and what a rank adds to it. exact: give probabilities.
    """
    shape, size = (-1, columns), base.values.numel()
    mask = torch.empty(size, dtype=torch.uint8)
    chances = torch.empty(size, dtype=torch.float32) if exact else None
    sums = numpy.zeros(2)
    numbers = numpy.zeros(len(Number), numpy.int64)
    numbers[Number.PARAMETERS], numbers[Number.COLUMNS] = size, columns
    tables: dict[IntEnum, Array] = {
        Draw.NUMBERS: numbers,
        Draw.PLACES: numpy.array([base.values.data_ptr(), model.values.data_ptr()], numpy.int64),
        Draw.CODES: numpy.array([base.code, model.code], numpy.int64),
        Draw.SCALARS: numpy.array([low, step], numpy.float32),
        Draw.STREAM: stream,
        Draw.MASK: mask.numpy(),
        Draw.SUMS: sums,
        Draw.WORK: numpy.empty((2, BLOCK), numpy.float32),
        Draw.SORTING: numpy.empty((5, max(columns + 4, 256)), numpy.uint32),
        Draw.BINS: numpy.zeros(BINS // 2, numpy.int64),
    }
    if chances is not None:
        tables[Draw.CHANCES] = chances.numpy()
    call(loop, tables, Draw)
    return Drawn(mask.view(shape), None if chances is None else chances.view(shape), (float(sums[0]), float(sums[1])))


def stream_from(generator: numpy.random.PCG64, start: int) -> Array:
    """Return where the float32 numbers of a new generator continue from number `start`, as Draw has it."""
    generator.advance(start // 2)  # a word of 64 bits makes two numbers
    state, increment = (generator.state["state"][key] for key in ("state", "inc"))
    states = []
    for _ in range(2):
        state = (state * MULTIPLIER + increment) % (1 << 128)
        states.append(state)
    twice = (MULTIPLIER**2, MULTIPLIER * increment + increment)
    halves = [(number >> shift) % (1 << 64) for number in (*states, *twice) for shift in (64, 0)]
    return numpy.array([*halves, start % 2], numpy.uint64)


class MergeCall:
    """Calls that merge slice after slice. Set the tables of settings, then call."""

    def __init__(self, loop: Loop, models: int, levels: int = 0):
        self.loop, self.models = loop, models
        self.numbers = numpy.zeros(len(Number), numpy.int64)
        self.settings = numpy.ones((len(Row), models), numpy.float32)
        self.scalars = numpy.ones(len(Scalar), numpy.float32)
        self.lambdas = numpy.zeros(0, numpy.float32)
        self.levels = numpy.zeros((levels, models), numpy.float32)
        self.left = numpy.zeros((2, models), numpy.int64)
        self.numbers[Number.MODELS], self.numbers[Number.LEVELS] = models, levels
        self.work = numpy.empty((WORK_ROWS * models + LINES, BLOCK), numpy.float32)
        self.marks = numpy.empty((2, BLOCK), numpy.uint32)
        self.clear()

    def clear(self) -> None:
        """Forget what was counted."""
        self.counts = numpy.zeros((self.models, 1 + len(self.levels), 3), numpy.int64)
        self.turned = numpy.zeros((self.models, 2), numpy.int64)
        self.energies = numpy.zeros(1 + self.models)

    def __call__(
        self,
        weights: Sequence[Stored],
        results: Sequence[Stored],
        masks: Array | None = None,
        probabilities: Array | None = None,
    ) -> int:
        """Merge a slice. weights: of the base and the models; masks, probabilities: see Rescale."""
        self.numbers[Number.PARAMETERS] = weights[0].values.numel()
        self.numbers[Number.RESULTS] = len(results)
        self.numbers[Number.DRAWN], self.numbers[Number.BY_CHANCE] = masks is not None, probabilities is not None
        places = [each.values.data_ptr() for each in weights]
        places += [0 if table is None else table.ctypes.data for table in (masks, probabilities)]
        places += [each.values.data_ptr() for each in results]
        tables: dict[IntEnum, Array] = {
            Table.NUMBERS: self.numbers,
            Table.PLACES: numpy.array(places, numpy.int64),
            Table.CODES: numpy.array([each.code for each in (*weights, *results)], numpy.int64),
            Table.SETTINGS: self.settings,
            Table.SCALARS: self.scalars,
            Table.LAMBDAS: self.lambdas,
            Table.LEFT: self.left,
            Table.LEVELS: self.levels,
            Table.COUNTS: self.counts,
            Table.TURNED: self.turned,
            Table.ENERGIES: self.energies,
            Table.WORK: self.work,
            Table.MARKS: self.marks,
        }
        return call(self.loop, tables, Table)
