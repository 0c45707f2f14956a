"""How thinned task vectors become one, a block at a time."""

from __future__ import annotations

from typing import Any

import numpy

from merge.loops.formats import compiled, narrow
from merge.loops.tables import INFINITE, NO_SLACK, RATIO, Combine

Array = Any  # numpy array


@compiled(fastmath={"contract"})
def add_multiple(out: Array, alpha: Any, x: Array, size: int) -> None:
    """out += α·x with one rounding where the processor can, as torch's add and addcmul do."""
    for i in range(size):
        out[i] = out[i] + alpha * x[i]


@compiled()
def add_models(parts: Array, size: int, out: Array) -> None:
    """Σ over models."""
    for i in range(size):
        out[i] = parts[0, i]
    for m in range(1, len(parts)):
        for i in range(size):
            out[i] += parts[m, i]


@compiled()
def signs_of(balance: Array, size: int, signs: Array) -> None:
    """+1 or −1 by the sign bit."""
    one = numpy.float32(1)
    for i in range(size):
        signs[i] = numpy.copysign(one, balance[i])


@compiled()
def elect_with_slack(voters: Array, deltas: Array, how: Combine, size: int, shielded: Array, signs: Array) -> None:
    """The sign of O + (1 + ξ)·P, or of O + P + ξ·unit·sign P: see arithmetic.elected_sign.

    deltas: whole task vectors, by whose magnitudes protection may be limited to their largest.
    """
    zero, one = numpy.float32(0), numpy.float32(1)
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
    if how.form == RATIO:
        add_multiple(balance, how.slack, shielded, size)
    else:
        factor, infinite = how.slack, how.form == INFINITE
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
    zero = numpy.float32(0)
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
    zero, one = numpy.float32(0), numpy.float32(1)
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
    zero, one = numpy.float32(0), numpy.float32(1)
    signs, plain, divisor, spare = lines[0], lines[1], lines[2], lines[3]
    if how.weighted or how.both:
        weigh(taus, how.weights, kind, size, parts)
    voters = parts if how.weighted else taus
    add_models(voters, size, plain)
    signs_of(plain, size, plain)
    if how.form == NO_SLACK:
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
def combine_two(first: Array, second: Array, how: Combine, kind: int, size: int, merged: Array) -> None:
    """`combine_elected` of two models' votes where there is neither slack nor an audit, in one loop."""
    zero, one = numpy.float32(0), numpy.float32(1)
    weight, other = how.weights[0], how.weights[1]
    factor, other_factor = (one, one) if how.weighted else (weight, other)
    for i in range(size):
        sign = numpy.copysign(one, first[i] + second[i])
        a, b = first[i] * sign, second[i] * sign
        a = zero if a < zero else a  # noqa: FURB136 (a negative zero stays one)
        b = zero if b < zero else b  # noqa: FURB136
        value = narrow(narrow(a * factor, kind) + narrow(b * other_factor, kind), kind)
        value = numpy.copysign(value, sign) if how.positive else value * sign
        if how.normalize:
            below = narrow((weight if a > zero else zero) + (other if b > zero else zero), kind)
            value = narrow(
                value / ((one if below == zero else below) if how.least == zero else max(below, how.least)), kind
            )
        merged[i] = value


@compiled()
def combine_all(taus: Array, how: Combine, kind: int, size: int, parts: Array, merged: Array) -> None:
    """Σ w τ, divided by `share`."""
    weigh(taus, how.weights, kind, size, parts)
    add_models(parts, size, merged)
    share = how.share if how.normalize else numpy.float32(1)
    for i in range(size):
        merged[i] = narrow(narrow(merged[i], kind) / share, kind)


@compiled()
def combine(
    taus: Array, deltas: Array, how: Combine, kind: int, size: int, parts: Array, alive: Array, lines: Array,
    merged: Array,
) -> None:  # fmt: skip
    """τ_m of a block. parts, alive, lines: see `combine_elected`."""
    if not how.elect:
        combine_all(taus, how, kind, size, parts, merged)
    elif len(taus) == 2 and how.form == NO_SLACK and not how.audited:
        if how.weighted:
            weigh(taus, how.weights, kind, size, parts)
        voters = parts if how.weighted else taus
        combine_two(voters[0], voters[1], how, kind, size, merged)
    else:
        combine_elected(taus, deltas, how, kind, size, parts, alive, lines, merged)
