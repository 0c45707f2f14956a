"""The arithmetic of merges as loops over parameters, compiled by numba: today's results in a fraction of the time.

merge/methods.py, merge/election.py and merge/select.py define what is computed, on tensors; the functions here do the
same bit for bit, for a CPU, in one walk over a slice. A block of parameters goes through all steps before the next one,
so what lies between the steps never leaves the cache. Loops run over the parameters of a block: the compiler makes
vector instructions of them.

Values are float32, or float64 where the arithmetic is. Arithmetic in 16 bits is float32's, rounded after each step as
torch rounds it; `kind` says to what: EXACT, BFLOAT16 or FLOAT16. Sources: trimming, election and disjoint mean, Yadav
et al. 2023 (TIES); slack, Tao et al. 2024; the rest as merge/methods.py lists it.

Get this module from merge/compiled.py, which asks whether numba is there and compiles ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy

from merge.kernel_arguments import Combine, Rescale, Tallies, Trim

F = TypeVar("F", bound=Callable[..., Any])
Array = Any  # numpy array

EXACT, BFLOAT16, FLOAT16 = 0, 1, 2
NO_SLACK, RATIO, DIFFERENCE, INFINITE = 0, 1, 2, 3
BLOCK = 512  # parameters: what a few models' blocks take lies in the first cache
DISPATCHERS: list[Any] = []


def compiled(**options: Any) -> Callable[[F], F]:
    """Compile a function at its first call, without the interpreter's lock, and keep the result on the disk."""

    def decorate(function: F) -> F:
        try:
            dispatcher = numba.njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:  # no folder that can be written: neither beside this file nor the user's
            dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
        DISPATCHERS.append(dispatcher)
        return dispatcher

    return decorate


def forget_cache() -> None:
    """Compile without the disk from here on."""
    for dispatcher in DISPATCHERS:
        dispatcher._cache = numba.core.caching.NullCache()


def warm_up(dtype: str) -> None:
    """Compile what merges call, by calling it, for arithmetic in `dtype`."""
    real, none = numpy.dtype(dtype).type, numpy.zeros((0, 0), numpy.float32)
    thetas, rows, ones = numpy.zeros((2, 2), dtype), numpy.arange(2), numpy.ones(1, dtype)
    pairs = numpy.ones((1, 2), dtype)
    trim = Trim(pairs, pairs, numpy.zeros((1, 2), numpy.int64))
    rescale = Rescale(True, numpy.zeros((0, 0), numpy.uint8), none, ones, ones)
    how = Combine(ones, real(1), real(1), True, True, False, True, False, NO_SLACK, real(0), ones > 0, ones)
    counts, turned = numpy.zeros((1, 1, 3), numpy.int64), numpy.zeros((1, 2), numpy.int64)
    seen = Tallies(True, True, numpy.zeros((1, 0), dtype), counts, turned, numpy.zeros(2))
    merged, out = numpy.zeros(2, dtype), numpy.zeros(2, dtype)
    merge_taus(thetas, rows, EXACT, trim, rescale, how, seen, merged)
    move(thetas[0], merged, real(1), EXACT, out)
    average(thetas, rows, numpy.ones(2, dtype), real(2), EXACT, out)
    if dtype == "float32":
        for patterns in (numpy.zeros(1, numpy.int16), numpy.zeros(1, numpy.int32)):
            count_upper(patterns, 0, numpy.zeros(1 << 15, numpy.int64))
        counts, places = numpy.zeros((1, 1 << 16), numpy.int64), numpy.zeros(1 << 15, numpy.int16)
        count_below(patterns, places, counts)
        count_task_vector(out, merged, counts[0])
        count_task_vector_below(out, merged, places, counts)


@compiled()
def narrow(x: Any, kind: int) -> Any:
    """x rounded to nearest even in the 16 bits of `kind`. The compiler makes a loop of its own for each kind."""
    if kind == BFLOAT16:  # the upper half of float32
        bits = numpy.float32(x).view(numpy.uint32)
        odd = (bits >> numpy.uint32(16)) & numpy.uint32(1)
        near = numpy.uint32((bits + numpy.uint32(0x7FFF) + odd) & numpy.uint32(0xFFFF0000)).view(numpy.float32)
        return numpy.float32(x) if numpy.isnan(x) else near
    if kind == FLOAT16:  # 10 bits of mantissa; below 2**-14 steps of 2**-24; infinity from 65520
        size = numpy.float32(abs(x))
        bits = size.view(numpy.uint32)
        odd = (bits >> numpy.uint32(13)) & numpy.uint32(1)
        near = numpy.uint32((bits + numpy.uint32(0xFFF) + odd) & numpy.uint32(0xFFFFE000)).view(numpy.float32)
        if size < numpy.float32(2.0**-14):
            near = (size + numpy.float32(0.5)) - numpy.float32(0.5)
        if near >= numpy.float32(65536):
            near = numpy.float32(numpy.inf)
        return numpy.float32(x) if numpy.isnan(x) else numpy.float32(numpy.copysign(near, x))
    return x


@compiled(fastmath={"contract"})
def add_multiple(out: Array, alpha: Any, x: Array, size: int) -> None:
    """out += α·x with one rounding where the processor can, as torch's add and addcmul do."""
    for i in range(size):
        out[i] = out[i] + alpha * x[i]


@compiled(fastmath={"reassoc", "nsz"})
def sum_of_squares(x: Array, size: int) -> float:
    """Σ x² in float64, in whatever order is fast."""
    energy = numpy.float64(0)
    for i in range(size):
        energy += numpy.float64(x[i]) * numpy.float64(x[i])
    return energy


@compiled()
def subtract(theta: Array, base: Array, kind: int, size: int, tau: Array) -> None:
    """τ = θ − θ0."""
    for i in range(size):
        tau[i] = narrow(theta[i] - base[i], kind)


@compiled()
def thin(tau: Array, edge: Any, below: Any, left: int, size: int, out: Array) -> int:
    """τ where |τ| is above the edge, or at it while `left` lasts; else 0. Returns what is left."""
    zero = tau.dtype.type(0)
    if edge < 0:
        for i in range(size):
            out[i] = tau[i]
        return left
    tied = 0
    if left > 0:
        for i in range(size):
            tied += abs(tau[i]) == edge
    least = below if left > 0 else edge
    for i in range(size):
        out[i] = tau[i] if abs(tau[i]) > least else zero
    if tied <= left:
        return left - tied
    for i in range(size):
        if abs(tau[i]) == edge:
            if left == 0:
                out[i] = zero
            else:
                left -= 1
    return left


@compiled()
def trimmed(tau: Array, trim: Trim, m: int, size: int, spare: Array, kept: Array) -> None:
    """What trimming keeps of model m's τ, without the largest of all where these are dropped as well."""
    trim.left[m, 0] = thin(tau, trim.edges[m, 0], trim.below[m, 0], trim.left[m, 0], size, kept)
    if trim.edges[m, 1] < numpy.inf:
        trim.left[m, 1] = thin(tau, trim.edges[m, 1], trim.below[m, 1], trim.left[m, 1], size, spare)
        for i in range(size):
            kept[i] -= spare[i]


@compiled()
def dropped(tau: Array, mask: Array, size: int, kept: Array) -> None:
    """τ where the mask is 1, else a zero with its sign."""
    for i in range(size):
        kept[i] = tau[i] * tau.dtype.type(mask[i])


@compiled()
def rescaled(kept: Array, times: Any, over: Any, kind: int, size: int, tau: Array) -> None:
    """What was kept, times or over a number: one of them is 1."""
    for i in range(size):
        tau[i] = narrow(kept[i] * times / over, kind)


@compiled()
def rescaled_by_chance(kept: Array, probability: Array, kind: int, size: int, tau: Array) -> None:
    """What was kept, over the probability that it had to be."""
    for i in range(size):
        tau[i] = narrow(kept[i] / probability[i], kind)


@compiled()
def add_models(parts: Array, size: int, out: Array) -> None:
    """Σ over models. −0 is where the sum begins, since it changes nothing that is added to it."""
    out[:] = -out.dtype.type(0)
    for m in range(len(parts)):
        for i in range(size):
            out[i] += parts[m, i]


@compiled()
def signs_of(balance: Array, size: int, signs: Array) -> None:
    """+1 or −1 by the sign bit."""
    one = balance.dtype.type(1)
    for i in range(size):
        signs[i] = numpy.copysign(one, balance[i])


@compiled()
def elect_with_slack(voters: Array, deltas: Array, how: Combine, size: int, shielded: Array, signs: Array) -> None:
    """The sign of O + (1 + ξ)·P, or of O + P + ξ·unit·sign P: see election.elected_sign.

    deltas: whole task vectors, by whose magnitudes protection may be limited to their largest.
    """
    zero, one = signs.dtype.type(0), signs.dtype.type(1)
    balance = signs
    shielded[:] = -zero
    balance[:] = -zero
    for m in range(len(voters)):
        if not how.protected[m]:
            for i in range(size):
                balance[i] += voters[m, i]
        elif how.scope[m] < 0:
            for i in range(size):
                shielded[i] += voters[m, i]
        else:
            least = how.scope[m]
            for i in range(size):
                inside = one if abs(deltas[m, i]) >= least else zero
                balance[i] += voters[m, i] * (one - inside)
                shielded[i] += voters[m, i] * inside
    if how.mode == RATIO:
        add_multiple(balance, how.slack, shielded, size)
    else:
        factor, infinite = how.slack, how.mode == INFINITE
        for i in range(size):
            side = one if shielded[i] > zero else (-one if shielded[i] < zero else zero)
            both = balance[i] + shielded[i]
            if infinite:
                both = one if both > zero else (-one if both < zero else zero)
            balance[i] = both + factor * side
    add_multiple(balance, one / (1 << 60), shielded, size)  # decides zeros only
    signs_of(balance, size, signs)


@compiled()
def weigh(taus: Array, weights: Array, kind: int, size: int, out: Array) -> None:
    """Each model's weight · τ."""
    for m in range(len(weights)):
        weight = weights[m]
        for i in range(size):
            out[m, i] = narrow(taus[m, i] * weight, kind)


@compiled()
def add_survivors(
    votes: Array, signs: Array, plain: Array, both: bool, weight: Any, factor: Any, kind: int, size: int,
    alive: Array, merged: Array, divisor: Array,
) -> None:  # fmt: skip
    """Add one model's |vote| where it has the elected sign, times `factor`, and its weight.

    both: also where slack turned the election, so that `plain` differs. alive: takes |vote|, or 0.
    """
    zero = votes.dtype.type(0)
    for i in range(size):
        vote = votes[i] * signs[i]
        size_alive = zero if vote < zero else vote  # noqa: FURB136 (a negative zero stays one)
        if both:
            size_alive = abs(vote) if plain[i] != signs[i] else size_alive
        alive[i] = size_alive
        merged[i] += narrow(size_alive * factor, kind)
        divisor[i] += weight if size_alive > zero else zero


@compiled()
def finish_mean(
    merged: Array, signs: Array, divisor: Array, least: Any, positive: bool, divided: bool, kind: int, size: int
) -> None:
    """Give the sum of sizes its sign, and divide it by the weights of what survived, 1 where nothing did.

    positive: no weight is negative, so that no size is. least: of all weights where they are positive, else 0.
    """
    zero, one = merged.dtype.type(0), merged.dtype.type(1)
    for i in range(size):
        value = narrow(merged[i], kind)
        merged[i] = numpy.copysign(value, signs[i]) if positive else value * signs[i]
    if divided:
        for i in range(size):
            below = narrow(divisor[i], kind)
            divisor[i] = (one if below == zero else below) if least == zero else max(below, least)


@compiled()
def combine_elected(
    taus: Array, deltas: Array, how: Combine, kind: int, size: int, parts: Array, alive: Array, lines: Array,
    merged: Array,
) -> None:  # fmt: skip
    """The disjoint mean Σ w τ / Σ w over the models whose vote has the elected sign.

    parts, alive: [models, parameters] to work in; alive is left with |vote| of what survived, lines[1] with what ξ = 0
    would elect.
    """
    zero, one = merged.dtype.type(0), merged.dtype.type(1)
    signs, plain, divisor, spare = lines[0], lines[1], lines[2], lines[3]
    if how.weighted or how.both:
        weigh(taus, how.weights, kind, size, parts)
    voters = parts if how.weighted else taus
    add_models(voters, size, plain)
    signs_of(plain, size, plain)
    if how.mode == NO_SLACK:
        signs = plain
    else:
        elect_with_slack(voters, deltas, how, size, spare, signs)
    merged[:], divisor[:] = -zero, zero
    for m in range(len(taus)):
        factor = one if how.weighted else how.weights[m]
        add_survivors(
            voters[m], signs, plain, how.both, how.weights[m], factor, kind, size, alive[m], merged, divisor
        )  # fmt: skip
    finish_mean(merged, signs, divisor, how.least, how.positive, how.normalize, kind, size)
    if how.both:
        add_models(parts, size, spare)
        for i in range(size):
            merged[i] = narrow(spare[i], kind) if plain[i] != signs[i] else merged[i]
    if how.normalize:
        for i in range(size):
            merged[i] = narrow(merged[i] / divisor[i], kind)


@compiled()
def combine_all(taus: Array, how: Combine, kind: int, size: int, parts: Array, merged: Array) -> None:
    """Σ w τ, divided by `share`."""
    weigh(taus, how.weights, kind, size, parts)
    add_models(parts, size, merged)
    share = how.share if how.normalize else merged.dtype.type(1)
    for i in range(size):
        merged[i] = narrow(narrow(merged[i], kind) / share, kind)


@compiled()
def tally(
    kept: Array, alive: Array, plain: Array, voters: Array, how: Combine, seen: Tallies, size: int, spare: Array
) -> None:
    """Count a block for the audit. plain: what ξ = 0 elects."""
    zero = kept.dtype.type(0)
    fought = numpy.zeros(size, numpy.uint8)  # 1: some model lost; 2: some value is above zero; 4: below
    for m in range(len(kept)):
        for i in range(size):
            gone = (kept[m, i] != zero) & how.elect & (not alive[m, i] > zero)
            fought[i] |= gone + 2 * (kept[m, i] > zero) + 4 * (kept[m, i] < zero)
    for m in range(len(kept)):
        for row in range(seen.counts.shape[1]):
            least = zero if row == 0 else seen.levels[m, row - 1]
            here = conflict = lost = 0
            for i in range(size):
                inside = (kept[m, i] != zero) & (abs(kept[m, i]) >= least)
                other = 2 if kept[m, i] < zero else 4
                bits = 1 if how.elect & seen.own_signs else other
                here += inside
                conflict += inside & ((fought[i] & bits) != 0)
                lost += inside & how.elect & (not alive[m, i] > zero)
            seen.counts[m, row, 0] += here
            seen.counts[m, row, 1] += conflict
            seen.counts[m, row, 2] += lost
        if how.mode != NO_SLACK:
            regained = given_up = 0
            for i in range(size):
                now = alive[m, i] > zero
                before = voters[m, i] * plain[i] > zero
                regained += now & (not before)
                given_up += before & (not now)
            seen.turned[m, 0] += regained
            seen.turned[m, 1] += given_up
        for i in range(size):
            spare[i] = kept[m, i] if (not how.elect) | (alive[m, i] > zero) else zero
        seen.energies[1 + m] += sum_of_squares(spare, size)


@compiled()
def merge_taus(
    thetas: Array, rows: Array, kind: int, trim: Trim, rescale: Rescale, how: Combine, seen: Tallies, merged: Array
) -> None:
    """τ_m of a slice: the models' task vectors, trimmed or dropped, rescaled, and brought to one; λ is not in it.

    thetas: [parents, parameters]; rows: of the base and of the models.
    """
    models, length = len(rows) - 1, thetas.shape[1]
    work = numpy.empty((5, models, BLOCK), thetas.dtype)
    deltas, kept, parts, alive = work[0], work[1], work[2], work[3]
    taus = work[4] if rescale.needed else kept
    lines = numpy.empty((4, BLOCK), thetas.dtype)
    for start in range(0, length, BLOCK):
        size = min(BLOCK, length - start)
        base, out = thetas[rows[0], start : start + size], merged[start : start + size]
        for m in range(models):
            subtract(thetas[rows[1 + m], start : start + size], base, kind, size, deltas[m])
            if len(rescale.masks):
                dropped(deltas[m], rescale.masks[m, start : start + size], size, kept[m])
            else:
                trimmed(deltas[m], trim, m, size, lines[0], kept[m])
            if len(rescale.probabilities):
                rescaled_by_chance(kept[m], rescale.probabilities[m, start : start + size], kind, size, taus[m])
            elif rescale.needed:
                rescaled(kept[m], rescale.times[m], rescale.over[m], kind, size, taus[m])
        if how.elect:
            combine_elected(taus, deltas, how, kind, size, parts, alive, lines, out)
        else:
            combine_all(taus, how, kind, size, parts, out)
        if seen.wanted:
            tally(kept, alive, lines[1], parts if how.weighted else taus, how, seen, size, lines[2])
            seen.energies[0] += sum_of_squares(out, size)


@compiled()
def move(base: Array, merged: Array, lambda_: Any, kind: int, out: Array) -> None:
    """θ0 + λ·τ_m."""
    for i in range(len(out)):
        out[i] = narrow(base[i] + narrow(merged[i] * lambda_, kind), kind)


@compiled()
def average(thetas: Array, rows: Array, weights: Array, divisor: Any, kind: int, out: Array) -> None:
    """Σ w θ, divided: rounded to 16 bits only at the end (methods.linear)."""
    for start in range(0, len(out), BLOCK):
        block = out[start : start + BLOCK]
        size = len(block)
        block[:] = out.dtype.type(0)
        for m in range(len(rows)):
            add_multiple(block, weights[m], thetas[rows[m], start : start + size], size)
        for i in range(size):
            block[i] = narrow(block[i] / divisor, kind)


@compiled()
def count_upper(patterns: Array, shift: int, counts: Array) -> int:
    """Count magnitudes by their bits above `shift`, 15 of them; returns how many of 32 bits are zero."""
    zeros = 0
    for i in range(len(patterns)):
        counts[(patterns[i] >> shift) & 0x7FFF] += 1
        zeros += (patterns[i] & 0x7FFFFFFF) == 0
    return zeros


@compiled()
def count_below(patterns: Array, places: Array, counts: Array) -> None:
    """Count float32's magnitudes by their lower 16 bits, in a row of `counts` for each of some upper 15.

    places: by the upper bits, the row; -1 for those that are not looked into.
    """
    for i in range(len(patterns)):
        row = places[(patterns[i] >> 16) & 0x7FFF]
        if row >= 0:
            counts[row, patterns[i] & 0xFFFF] += 1


@compiled()
def count_task_vector(theta: Array, base: Array, counts: Array) -> tuple[int, float]:
    """`count_upper` of θ − θ0, float32; returns how many are zero, and Σ τ²."""
    zeros, energy = 0, 0.0
    block = numpy.empty(BLOCK, numpy.float32)
    for start in range(0, len(theta), BLOCK):
        size = min(BLOCK, len(theta) - start)
        subtract(theta[start : start + size], base[start : start + size], EXACT, size, block)
        zeros += count_upper(block[:size].view(numpy.int32), 16, counts)
        energy += sum_of_squares(block, size)
    return zeros, energy


@compiled()
def count_task_vector_below(theta: Array, base: Array, places: Array, counts: Array) -> None:
    """`count_below` of θ − θ0, float32."""
    block = numpy.empty(BLOCK, numpy.float32)
    for start in range(0, len(theta), BLOCK):
        size = min(BLOCK, len(theta) - start)
        subtract(theta[start : start + size], base[start : start + size], EXACT, size, block)
        count_below(block[:size].view(numpy.int32), places, counts)
