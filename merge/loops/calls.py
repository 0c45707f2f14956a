"""Calls of the loops: tables of numbers, and the list of their addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy
import torch

from merge.loops.arguments import (
    BFLOAT16,
    BINS,
    BLOCK,
    EXACT,
    FLOAT16,
    LINES,
    WORK_ROWS,
    Count,
    Draw,
    Number,
    Row,
    Scalar,
    Table,
)  # fmt: skip
from merge.loops.machine_code import Loop

Array = Any  # numpy array
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
    """Calls that count one task vector, slice after slice: see arguments.Count."""

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

    def see(self, base: Stored, model: Stored) -> None:
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
    return Drawn(mask.view(shape), chances if chances is None else chances.view(shape), tuple(sums.tolist()))


def stream_from(generator: numpy.random.PCG64, start: int) -> Array:
    """Return where the float32 numbers of a new generator continue from number `start`, as arguments.Draw has it."""
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
        self.marks = numpy.empty(BLOCK, numpy.uint32)
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
        """Merge a slice. weights: of the base and the models; masks, probabilities: see arguments.Rescale."""
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
