"""What DARE and DELLA keep: random numbers, ranks of magnitudes in rows, and the comparison of the two.

A value stays if its random number is below low + rank · step (arithmetic.keep_probabilities), so its rank matters only
as far as it decides that. Ranks are counted and not sorted: by the upper bits of a magnitude and, among equal ones, by
position. If a bin has several magnitudes, the few values whose random number lies between the probabilities of the
bin's first and last rank are ranked one by one; a row with many of these is sorted.
"""

from __future__ import annotations

from typing import Any

import numpy
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic

from merge.loops.formats import bits_of, compiled, from_bfloat16, from_bits, from_float16, to_bfloat16, to_float16
from merge.loops.tables import BFLOAT16, BINS, FLOAT16

Array = Any  # numpy array
COUNT = (1 << 32) - 1  # the lower half of a bin: how many values it has, then the rank of the next one
MIXED = 1 << 32  # the upper half: how many of them have bits below those of the bin, by which they may differ
SPREAD = 4  # bins a value of the row: with more, clearing and adding up would take longer than sorting
DOUBTFUL = 64  # values of a row that are ranked one by one
RUN = 32  # values that are examined together


@intrinsic  # type: ignore[untyped-decorator]
def _next_state(_: Any, state: Any, step: Any) -> Any:
    """Return state · multiplier + increment mod 2¹²⁸. Numbers are pairs of 64 bits, the upper half first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half, full = ir.IntType(64), ir.IntType(128)

        def joined(upper: Any, lower: Any) -> Any:
            return builder.or_(builder.shl(builder.zext(upper, full), full(64)), builder.zext(lower, full))

        parts = [part for pair in arguments for part in cgutils.unpack_tuple(builder, pair)]
        number, multiplier, increment = (joined(*parts[i : i + 2]) for i in (0, 2, 4))
        number = builder.add(builder.mul(number, multiplier), increment)
        parts = [builder.trunc(each, half) for each in (builder.lshr(number, full(64)), number)]
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(types.uint64, 2)(state, step), generate


@compiled()
def word_of(state: Any) -> Any:
    """Return the 64 bits that PCG64 makes of a state (XSL-RR)."""
    mixed, turn = state[0] ^ state[1], state[0] >> numpy.uint64(58)
    return (mixed >> turn) | (mixed << ((numpy.uint64(64) - turn) & numpy.uint64(63)))


@compiled()
def draw_bits(stream: Array, ready: int, size: int, bits: Array) -> int:
    """Fill `bits` from the place `ready` on until at least `size` are there; return how many are.

    stream: see tables.Draw. Its two states are every second one of PCG64's, so that neither waits for the other.
    """
    first, second = (stream[0], stream[1]), (stream[2], stream[3])
    step = (stream[4], stream[5], stream[6], stream[7])
    while ready < size:
        one, other = word_of(first), word_of(second)
        bits[ready], bits[ready + 1] = numpy.uint32(one), numpy.uint32(one >> numpy.uint64(32))
        bits[ready + 2], bits[ready + 3] = numpy.uint32(other), numpy.uint32(other >> numpy.uint64(32))
        first = _next_state(first, step)  # type: ignore[call-arg]
        second = _next_state(second, step)  # type: ignore[call-arg]
        ready += 4
    stream[0], stream[1], stream[2], stream[3] = first[0], first[1], second[0], second[1]
    return ready


@compiled()
def move_to_front(bits: Array, start: int, stop: int) -> int:
    """Move what is ready in `bits` from `start` on to its front; return how many there are."""
    for i in range(start, stop):
        bits[i - start] = bits[i]
    return stop - start


@compiled()
def uniform(bits: Any) -> Any:
    """Return the float32 in [0, 1) that NumPy makes of 32 random bits."""
    return numpy.float32(numpy.int32(bits >> numpy.uint32(8))) * numpy.float32(2.0**-24)


@compiled()
def magnitude_keys(tau: Array, kind: int, size: int, keys: Array) -> None:
    """Write the bit patterns of |τ| in the format `kind`, which grow with it: 15 bits in 16-bit arithmetic, else 31."""
    for i in range(size):
        if kind == BFLOAT16:
            keys[i] = numpy.uint32(to_bfloat16(tau[i])) & numpy.uint32(0x7FFF)
        elif kind == FLOAT16:
            keys[i] = numpy.uint32(to_float16(tau[i])) & numpy.uint32(0x7FFF)
        else:
            keys[i] = bits_of(tau[i]) & numpy.uint32(0x7FFFFFFF)


@compiled()
def magnitude_of(key: Any, kind: int) -> Any:
    """Return |τ| of a key."""
    if kind == BFLOAT16:
        return from_bfloat16(key)
    return from_float16(key) if kind == FLOAT16 else from_bits(key)


@compiled()
def lower_bits(kind: int) -> Any:
    """Return how many bits of a key do not matter for its bin, which has 7 bits of mantissa."""
    if kind == BFLOAT16:
        return numpy.uint32(0)
    return numpy.uint32(3) if kind == FLOAT16 else numpy.uint32(16)


@compiled()
def bins_of(keys: Array, kind: int, size: int, places: Array) -> tuple[Any, Any]:
    """Write each value's bin to `places`; return the first bin that is used and the last, apart from bin 0 (zeros)."""
    before_first, last = numpy.uint32(BINS), numpy.uint32(0)
    for i in range(size):
        place = numpy.uint32(keys[i] >> lower_bits(kind))
        places[i] = place
        before_first = min(before_first, numpy.uint32(place - numpy.uint32(1)))  # of 0 the largest number
        last = max(last, place)
    return numpy.int64(before_first) + 1, numpy.int64(last)


@compiled()
def first_rank(bins: Array, place: int, first: int) -> int:
    """Return the first rank of a bin, after `rank_by_bin`: where the bin before it ends."""
    if place == 0:
        return 0
    return (bins[place - 1] if place > first else bins[0]) & COUNT


@compiled()
def rank_by_bin(
    keys: Array, places: Array, kind: int, size: int, first: int, last: int, bins: Array, ranks: Array
) -> int:
    """Rank by bin and, in a bin, by position; return the size of the largest bin whose values may differ, or 0.

    bins: zeros at first, and afterwards the ends of their ranks, with MIXED where their values may differ.
    """
    lower = (numpy.uint32(1) << lower_bits(kind)) - numpy.uint32(1)
    for i in range(size):
        bins[places[i]] += 1 + (MIXED if keys[i] & lower != numpy.uint32(0) else 0)
    start, largest = bins[0] & COUNT, bins[0] & COUNT if bins[0] > COUNT else 0
    bins[0] -= start
    ends = bins[first : last + 1]
    for i in range(len(ends)):
        before, count = ends[i], ends[i] & COUNT
        if kind != BFLOAT16:
            largest = max(largest, count if before > COUNT else 0)
        ends[i] = before + (start - count)
        start += count
    for i in range(size):
        rank = bins[places[i]]
        bins[places[i]] = rank + 1
        ranks[i] = numpy.uint32(rank)
    return largest if largest > 1 else 0


@compiled()
def rank_of(keys: Array, place: int, size: int) -> Any:
    """Count the values that are smaller, or equal and earlier."""
    key, rank = keys[place], numpy.uint32(0)
    for i in range(place):
        rank = numpy.uint32(rank + numpy.uint32(keys[i] <= key))  # numba adds in 64 bits
    for i in range(place, size):
        rank = numpy.uint32(rank + numpy.uint32(keys[i] < key))
    return rank


@compiled()
def settle_doubts(
    keys: Array, bits: Array, places: Array, bins: Array, first: int, largest: int, low: Any, step: Any, size: int,
    ranks: Array,
) -> bool:  # fmt: skip
    """Rank one by one the values whose bin does not decide whether they stay; return False if there are too many.

    largest: see `rank_by_bin`. Only a value whose random number is near the probability of its rank can be one.
    """
    near, left = numpy.float32(largest) * step + numpy.float32(1e-6), DOUBTFUL
    for start in range(0, size, RUN):
        stop = min(start + RUN, size)
        found = numpy.uint32(0)
        for i in range(start, stop):
            found |= numpy.uint32(abs(uniform(bits[i]) - (low + numpy.float32(ranks[i]) * step)) <= near)
        if found == numpy.uint32(0):
            continue
        for i in range(start, stop):
            place: Any = numpy.int64(places[i])
            apart = abs(uniform(bits[i]) - (low + numpy.float32(ranks[i]) * step))
            if apart > near or bins[place] < MIXED:
                continue
            least, most = first_rank(bins, place, first), (bins[place] & COUNT) - 1
            stays_anyway = uniform(bits[i]) < low + numpy.float32(least) * step
            may_stay = uniform(bits[i]) < low + numpy.float32(most) * step
            if may_stay and not stays_anyway:
                if left == 0:
                    return False
                left -= 1
                ranks[i] = rank_of(keys, i, size)
    return True


@compiled()
def sort_by_byte(keys: Array, order: Array, byte: int, size: int, starts: Array, out: Array) -> None:
    """Sort `order` by one byte of the keys, stably (a step of radix sort)."""
    shift = numpy.uint32(8 * byte)
    for value in range(256):
        starts[value] = 0
    for i in range(size):
        starts[(keys[i] >> shift) & numpy.uint32(255)] += 1
    total = 0
    for value in range(256):
        total, starts[value] = total + starts[value], total
    for i in range(size):
        place = (keys[order[i]] >> shift) & numpy.uint32(255)
        out[starts[place]] = order[i]
        starts[place] += 1


@compiled()
def rank_by_sorting(keys: Array, kind: int, size: int, order: Array, starts: Array, ranks: Array) -> None:
    """Rank by magnitude, equal ones by position."""
    for i in range(size):
        order[i] = i
    for byte in range(0, 2 if kind in (BFLOAT16, FLOAT16) else 4, 2):  # an even number: they end in `order`
        sort_by_byte(keys, order, byte, size, starts, ranks)
        sort_by_byte(keys, ranks, byte + 1, size, starts, order)
    for rank in range(size):
        ranks[order[rank]] = rank


@compiled()
def clear(bins: Array) -> None:
    """Set all to 0."""
    for i in range(len(bins)):
        bins[i] = 0


@compiled()
def rank_row(
    keys: Array, bits: Array, low: Any, step: Any, kind: int, exact: bool, size: int, work: Array, bins: Array
) -> None:
    """Rank the values of a row, in work[0]: exactly, or so that the same values stay.

    work: uint32 [3, at least the row and 256].
    """
    ranks, places, starts = work[0], work[1], work[2]
    if step == numpy.float32(0):
        for i in range(size):
            ranks[i] = 0
        return
    if size <= RUN:
        for i in range(size):
            ranks[i] = rank_of(keys, i, size)
        return
    settled = False
    first, last = bins_of(keys, kind, size, places)
    if last - first <= SPREAD * size:
        largest = rank_by_bin(keys, places, kind, size, first, last, bins, ranks)
        settled = largest == 0
        if not settled and not exact:
            settled = settle_doubts(keys, bits, places, bins, first, largest, low, step, size, ranks)
        clear(bins[:1])
        clear(bins[first : last + 1])
    if not settled:
        rank_by_sorting(keys, kind, size, places, starts, ranks)


@compiled()
def draw_row(bits: Array, ranks: Array, low: Any, step: Any, size: int, mask: Array) -> None:
    """Write 1 where the random number is below the probability low + rank · step, else 0."""
    for i in range(size):
        mask[i] = numpy.uint8(uniform(bits[i]) < low + numpy.float32(ranks[i]) * step)


@compiled()
def probabilities_of(ranks: Array, low: Any, step: Any, size: int, probabilities: Array) -> None:
    """Write low + rank · step."""
    for i in range(size):
        probabilities[i] = low + numpy.float32(ranks[i]) * step


@compiled(fastmath={"reassoc", "nsz"})
def sum_magnitudes(keys: Array, mask: Array, kind: int, size: int, sums: Array) -> None:
    """Add Σ|τ|, and that of what stays, in float64, in whatever order is fast."""
    total, kept = numpy.float64(0), numpy.float64(0)
    for i in range(size):
        magnitude = numpy.float64(magnitude_of(keys[i], kind))
        total += magnitude
        kept += magnitude * numpy.float64(mask[i])
    sums[0] += total
    sums[1] += kept
