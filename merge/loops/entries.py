"""The loops as machine code is called: with the addresses of tables, in the order of tables.Table.

Each function here makes one for arithmetic in `kind`, which is constant inside. They return a number of `store`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
from numba import carray, types  # type: ignore[attr-defined]

from merge.loops.consensus import add_multiple, combine
from merge.loops.draws import (
    draw_bits,
    draw_row,
    magnitude_keys,
    move_to_front,
    probabilities_of,
    rank_row,
    sum_magnitudes,
)  # fmt: skip
from merge.loops.formats import array_at, compiled, load, load_difference, narrow, store
from merge.loops.tables import (  # fmt: skip
    BINS,
    BLOCK,
    EXACT,
    LINES,
    WORK_ROWS,
    Combine,
    Count,
    Draw,
    Number,
    Rescale,
    Row,
    Scalar,
    Table,
    Tallies,
    Trim,
)
from merge.loops.tallying import sum_of_squares, tally
from merge.loops.trimming import (
    count_below,
    count_magnitudes,
    count_zeros,
    drop_values,
    rescale_task_vector,
    trim_task_vector,
)

Array = Any  # numpy array
Entry = Callable[[Any], int]
SIGNATURE = types.int64(types.CPointer(types.int64))
TABLES, COUNTS, DRAWS, NUMBERS, ROWS, SCALARS = len(Table), len(Count), len(Draw), len(Number), len(Row), len(Scalar)


@compiled()
def numbers_of(tables: Array) -> Array:
    """The table of whole numbers."""
    return array_at(tables[Table.NUMBERS], NUMBERS, numpy.int64)


@compiled()
def trim_of(tables: Array, settings: Array) -> Trim:
    """See Trim."""
    left = array_at(tables[Table.LEFT], (2, settings.shape[1]), numpy.int64)
    return Trim(settings[Row.EDGE : Row.BELOW], settings[Row.BELOW : Row.TIMES], left)


@compiled()
def rescale_of(places: Array, numbers: Array, settings: Array) -> Rescale:
    """See Rescale."""
    models, size = numbers[Number.MODELS], numbers[Number.PARAMETERS]
    return Rescale(
        numbers[Number.RESCALED] != 0,
        numbers[Number.DRAWN] != 0,
        numbers[Number.BY_CHANCE] != 0,
        array_at(places[1 + models], (models, size), numpy.uint8),
        array_at(places[2 + models], (models, size), numpy.float32),
        settings[Row.TIMES],
        settings[Row.OVER],
    )


@compiled()
def combine_of(tables: Array, numbers: Array, settings: Array) -> Combine:
    """See Combine."""
    scalars = array_at(tables[Table.SCALARS], SCALARS, numpy.float32)
    return Combine(
        settings[Row.WEIGHT],
        scalars[Scalar.SHARE],
        scalars[Scalar.LEAST],
        numbers[Number.ELECT] != 0,
        numbers[Number.NORMALIZE] != 0,
        numbers[Number.WEIGHTED] != 0,
        numbers[Number.POSITIVE] != 0,
        numbers[Number.BOTH] != 0,
        numbers[Number.SLACK_FORM],
        scalars[Scalar.SLACK],
        settings[Row.PROTECTED],
        settings[Row.SCOPE],
        numbers[Number.AUDITED] != 0,
    )


@compiled()
def tallies_of(tables: Array, numbers: Array) -> Tallies:
    """See Tallies."""
    models, levels = numbers[Number.MODELS], numbers[Number.LEVELS]
    return Tallies(
        numbers[Number.OWN_SIGNS] != 0,
        array_at(tables[Table.LEVELS], (levels, models), numpy.float32),
        array_at(tables[Table.COUNTS], (models, 1 + levels, 3), numpy.int64),
        array_at(tables[Table.TURNED], (models, 2), numpy.int64),
        array_at(tables[Table.ENERGIES], 1 + models, numpy.float64),
        array_at(tables[Table.MARKS], (2, BLOCK), numpy.uint32),
    )


def merging(kind: int) -> Entry:
    """Trim or drop, rescale, bring the models' task vectors to one, and move the base by each λ."""

    def merge_slice(pointer: Any) -> int:
        tables = carray(pointer, TABLES, numpy.int64)
        numbers = numbers_of(tables)
        models, results, length = numbers[Number.MODELS], numbers[Number.RESULTS], numbers[Number.PARAMETERS]
        places = array_at(tables[Table.PLACES], 3 + models + results, numpy.int64)
        codes = array_at(tables[Table.CODES], 1 + models + results, numpy.int64)
        settings = array_at(tables[Table.SETTINGS], (ROWS, models), numpy.float32)
        lambdas = array_at(tables[Table.LAMBDAS], results, numpy.float32)
        trim, rescale = trim_of(tables, settings), rescale_of(places, numbers, settings)
        how, seen = combine_of(tables, numbers, settings), tallies_of(tables, numbers)
        work = array_at(tables[Table.WORK], (WORK_ROWS * models + LINES, BLOCK), numpy.float32)
        deltas, parts, alive = work[:models], work[models : 2 * models], work[2 * models : 3 * models]
        kept = work[3 * models : 4 * models]  # not in place: the compiler makes vectors only of what is apart
        taus = work[4 * models : 5 * models] if rescale.needed else kept
        lines = work[WORK_ROWS * models :]
        base, merged = lines[4], lines[5]
        found = 0
        for start in range(0, length, BLOCK):
            size = min(BLOCK, length - start)
            load(places[0], codes[0], start, size, kind, base)
            for m in range(models):
                load_difference(places[1 + m], codes[1 + m], start, size, base, kind, deltas[m])
                if rescale.drawn:
                    drop_values(deltas[m], rescale.masks[m, start : start + size], size, kept[m])
                else:
                    trim_task_vector(deltas[m], trim, m, size, lines[0], kept[m])
                if rescale.needed:
                    rescale_task_vector(kept[m], rescale, m, start, kind, size, taus[m])
            combine(taus, deltas, how, kind, size, parts, alive, lines, merged)
            if how.audited:
                tally(kept, alive, lines[1], parts if how.weighted else taus, how, seen, size)
                seen.energies[0] += sum_of_squares(merged, size)
            for k in range(results):
                lambda_, out = lambdas[k], lines[0]
                for i in range(size):
                    out[i] = narrow(base[i] + narrow(merged[i] * lambda_, kind), kind)
                found |= store(out, size, codes[1 + models + k], places[3 + models + k], start)
        return found

    return merge_slice


def averaging(kind: int) -> Entry:
    """Σ w θ, divided: rounded to 16 bits only at the end (arithmetic.average). The first place is nobody's."""

    def average_slice(pointer: Any) -> int:
        tables = carray(pointer, TABLES, numpy.int64)
        numbers = numbers_of(tables)
        models, length = numbers[Number.MODELS], numbers[Number.PARAMETERS]
        places = array_at(tables[Table.PLACES], 4 + models, numpy.int64)
        codes = array_at(tables[Table.CODES], 2 + models, numpy.int64)
        settings = array_at(tables[Table.SETTINGS], (ROWS, models), numpy.float32)
        divisor = array_at(tables[Table.SCALARS], SCALARS, numpy.float32)[Scalar.SHARE]
        work = array_at(tables[Table.WORK], (WORK_ROWS * models + LINES, BLOCK), numpy.float32)
        out, theta = work[0], work[1]
        found = 0
        for start in range(0, length, BLOCK):
            size = min(BLOCK, length - start)
            for i in range(size):
                out[i] = numpy.float32(0)
            for m in range(models):
                load(places[1 + m], codes[1 + m], start, size, kind, theta)
                add_multiple(out, settings[Row.WEIGHT, m], theta, size)
            for i in range(size):
                out[i] = narrow(out[i] / divisor, kind)
            found |= store(out, size, codes[1 + models], places[3 + models], start)
        return found

    return average_slice


def counting(kind: int) -> Entry:
    """Count a task vector's magnitudes (see trimming.count_magnitudes); in float32 its zeros and Σ τ² as well."""

    def count_slice(pointer: Any) -> int:
        tables = carray(pointer, COUNTS, numpy.int64)
        length = numbers_of(tables)[Number.PARAMETERS]
        places = array_at(tables[Count.PLACES], 2, numpy.int64)
        codes = array_at(tables[Count.CODES], 2, numpy.int64)
        counts = array_at(tables[Count.COUNTS], BINS // 2, numpy.int64)
        sums = array_at(tables[Count.SUMS], 2, numpy.float64)
        work = array_at(tables[Count.WORK], (2, BLOCK), numpy.float32)
        marks = array_at(tables[Count.MARKS], BLOCK, numpy.uint16)
        base, tau = work[0], work[1]
        for start in range(0, length, BLOCK):
            size = min(BLOCK, length - start)
            load(places[0], codes[0], start, size, kind, base)
            load_difference(places[1], codes[1], start, size, base, kind, tau)
            count_magnitudes(tau, kind, size, marks, counts)
            if kind == EXACT:
                sums[0] += count_zeros(tau, size)
                sums[1] += sum_of_squares(tau, size)
        return 0

    return count_slice


def counting_below(kind: int) -> Entry:
    """Count the lower halves of float32 magnitudes whose upper half is looked into (see trimming.count_below)."""

    def count_slice_below(pointer: Any) -> int:
        tables = carray(pointer, COUNTS, numpy.int64)
        numbers = numbers_of(tables)
        places = array_at(tables[Count.PLACES], 2, numpy.int64)
        codes = array_at(tables[Count.CODES], 2, numpy.int64)
        rows = array_at(tables[Count.ROWS], BINS // 2, numpy.int16)
        counts = array_at(tables[Count.COUNTS], (numbers[Number.LEVELS], BINS), numpy.int64)
        work = array_at(tables[Count.WORK], (2, BLOCK), numpy.float32)
        base, tau = work[0], work[1]
        for start in range(0, numbers[Number.PARAMETERS], BLOCK):
            size = min(BLOCK, numbers[Number.PARAMETERS] - start)
            load(places[0], codes[0], start, size, kind, base)
            load_difference(places[1], codes[1], start, size, base, kind, tau)
            count_below(tau, size, rows, counts)
        return 0

    return count_slice_below


def drawing(kind: int) -> Entry:
    """Draw what DARE or DELLA keeps, by the ranks of magnitudes in each row."""

    def draw_slice(pointer: Any) -> int:
        tables = carray(pointer, DRAWS, numpy.int64)
        numbers = numbers_of(tables)
        length, columns = numbers[Number.PARAMETERS], numbers[Number.COLUMNS]
        places = array_at(tables[Draw.PLACES], 2, numpy.int64)
        codes = array_at(tables[Draw.CODES], 2, numpy.int64)
        low, step = array_at(tables[Draw.SCALARS], 2, numpy.float32)
        stream = array_at(tables[Draw.STREAM], 9, numpy.uint64)
        mask = array_at(tables[Draw.MASK], length, numpy.uint8)
        sums = array_at(tables[Draw.SUMS], 2, numpy.float64)
        work = array_at(tables[Draw.WORK], (2, BLOCK), numpy.float32)
        sorting = array_at(tables[Draw.SORTING], (5, max(columns + 4, 256)), numpy.uint32)
        bins = array_at(tables[Draw.BINS], BINS // 2, numpy.int64)
        base, tau, keys, bits, ranks = work[0], work[1], sorting[0], sorting[1], sorting[2]
        exact = tables[Draw.CHANCES] != 0
        ready = draw_bits(stream, 0, 1, bits) if stream[8] != numpy.uint64(0) else 0
        ready = move_to_front(bits, 1, ready) if ready > 0 else 0
        for row in range(0, length, columns):
            for start in range(0, columns, BLOCK):
                size = min(BLOCK, columns - start)
                load(places[0], codes[0], row + start, size, kind, base)
                load_difference(places[1], codes[1], row + start, size, base, kind, tau)
                magnitude_keys(tau, kind, size, keys[start : start + size])
            ready = draw_bits(stream, ready, columns, bits)
            here = mask[row : row + columns]
            rank_row(keys, bits, low, step, kind, exact, columns, sorting[2:], bins)
            draw_row(bits, ranks, low, step, columns, here)
            if exact:
                chances = array_at(tables[Draw.CHANCES] + 4 * row, columns, numpy.float32)
                probabilities_of(ranks, low, step, columns, chances)
            if tables[Draw.SUMS] != 0:
                sum_magnitudes(keys, here, kind, columns, sums)
            ready = move_to_front(bits, columns, ready)
        return 0

    return draw_slice


def entries(kind: int) -> dict[str, Entry]:
    """All of one kind, by name."""
    found = {"merge": merging(kind), "average": averaging(kind), "count": counting(kind), "draw": drawing(kind)}
    return found | ({"count_below": counting_below(kind)} if kind == EXACT else {})
