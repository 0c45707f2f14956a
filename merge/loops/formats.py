"""Numbers as files have them, in 16 or 32 bits, and as loops compute with them, in float32; how loops are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from merge.loops.tables import BFLOAT16, EXACT, FLOAT16

Array = Any  # numpy array
F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """Compile a function into its callers: what is constant there, such as `kind`, then is so in its loops."""
    return numba.njit(error_model="numpy", forceinline=True, **options)  # type: ignore[no-any-return]


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_: Any, address: Any) -> Any:
    """A pointer from a whole number: carray takes only pointers."""

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


@compiled()
def array_at(address: int, shape: Any, dtype: Any) -> Array:
    """The array that lies at an address."""
    return carray(_pointer(address), shape, dtype)  # type: ignore[call-arg]


@compiled()
def bits_of(x: Any) -> Any:
    """The bit pattern of a float32."""
    return numpy.float32(x).view(numpy.uint32)


@compiled()
def from_bits(bits: Any) -> Any:
    """The float32 of a bit pattern."""
    return numpy.uint32(bits).view(numpy.float32)


@compiled()
def narrow(x: Any, kind: int) -> Any:
    """x rounded to nearest even in the 16 bits of `kind`."""
    if kind == BFLOAT16:  # the upper half of float32
        bits = bits_of(x)
        odd = (bits >> numpy.uint32(16)) & numpy.uint32(1)
        near = from_bits((bits + numpy.uint32(0x7FFF) + odd) & numpy.uint32(0xFFFF0000))
        return numpy.float32(x) if numpy.isnan(x) else near
    if kind == FLOAT16:  # 10 bits of mantissa; below 2**-14 steps of 2**-24; infinity from 65520
        size = numpy.float32(abs(x))
        bits = bits_of(size)
        odd = (bits >> numpy.uint32(13)) & numpy.uint32(1)
        near = from_bits((bits + numpy.uint32(0xFFF) + odd) & numpy.uint32(0xFFFFE000))
        if size < numpy.float32(2.0**-14):
            near = (size + numpy.float32(0.5)) - numpy.float32(0.5)
        if near >= numpy.float32(65536):
            near = numpy.float32(numpy.inf)
        return numpy.float32(x) if numpy.isnan(x) else numpy.float32(numpy.copysign(near, x))
    return x


@compiled()
def from_bfloat16(bits: Any) -> Any:
    """The float32 of a bfloat16's bit pattern: its upper half."""
    return from_bits(numpy.uint32(bits) << numpy.uint32(16))


@compiled()
def from_float16(bits: Any) -> Any:
    """The float32 of a float16's bit pattern: exponent and mantissa moved into place, scaled by what biases differ by.

    Subnormal numbers come out right, since the product is exact; infinity and NaN need their exponent.
    """
    wide = numpy.uint32(bits)
    size = (wide & numpy.uint32(0x7FFF)) << numpy.uint32(13)
    scaled = bits_of(from_bits(size) * numpy.float32(2.0**112))
    whole = numpy.uint32(size | numpy.uint32(0x7F800000)) if size >= numpy.uint32(0x7C00 << 13) else scaled
    return from_bits(whole | ((wide & numpy.uint32(0x8000)) << numpy.uint32(16)))


@compiled()
def to_bfloat16(x: Any) -> Any:
    """The bit pattern of a bfloat16 that float32 holds."""
    return numpy.uint16(bits_of(x) >> numpy.uint32(16))


@compiled()
def to_float16(x: Any) -> Any:
    """The bit pattern of a float16 that float32 holds: the inverse of `from_float16`."""
    bits = bits_of(x)
    size = bits_of(from_bits(bits & numpy.uint32(0x7FFFFFFF)) * numpy.float32(2.0**-112)) >> numpy.uint32(13)
    size = min(numpy.uint32(size), numpy.uint32(0x7C00))  # infinity; no merge that holds NaN is written
    return numpy.uint16(size | ((bits >> numpy.uint32(16)) & numpy.uint32(0x8000)))


@compiled()
def load(address: int, code: int, start: int, size: int, kind: int, out: Array) -> None:
    """Weights [start, start + size) of a slice that is stored as `code`, rounded to `kind`."""
    if code == BFLOAT16:
        halves = array_at(address + 2 * start, size, numpy.uint16)
        for i in range(size):
            out[i] = narrow(from_bfloat16(halves[i]), FLOAT16 if kind == FLOAT16 else EXACT)
    elif code == FLOAT16:
        halves = array_at(address + 2 * start, size, numpy.uint16)
        for i in range(size):
            out[i] = narrow(from_float16(halves[i]), BFLOAT16 if kind == BFLOAT16 else EXACT)
    else:
        values = array_at(address + 4 * start, size, numpy.float32)
        for i in range(size):
            out[i] = narrow(values[i], kind)


@compiled()
def load_difference(address: int, code: int, start: int, size: int, base: Array, kind: int, out: Array) -> None:
    """θ − θ0 of a block, rounded to `kind`; base: θ0 as `load` gives it."""
    if code == BFLOAT16 and kind != FLOAT16:
        halves = array_at(address + 2 * start, size, numpy.uint16)
        for i in range(size):
            out[i] = narrow(from_bfloat16(halves[i]) - base[i], kind)
        return
    load(address, code, start, size, kind, out)
    for i in range(size):
        out[i] = narrow(out[i] - base[i], kind)


@compiled()
def store(values: Array, size: int, code: int, address: int, start: int) -> int:
    """Write a block as `code`, rounded; returns 1 where the result holds infinity or NaN, 3 where `values` do."""
    largest = numpy.uint32(0)
    for i in range(size):
        largest = max(largest, numpy.uint32(bits_of(values[i]) & numpy.uint32(0x7FFFFFFF)))
    if code == BFLOAT16:
        halves = array_at(address + 2 * start, size, numpy.uint16)
        for i in range(size):
            halves[i] = to_bfloat16(narrow(values[i], BFLOAT16))
    elif code == FLOAT16:
        halves = array_at(address + 2 * start, size, numpy.uint16)
        for i in range(size):
            halves[i] = to_float16(narrow(values[i], FLOAT16))
    else:
        plain = array_at(address + 4 * start, size, numpy.float32)
        for i in range(size):
            plain[i] = values[i]
    if largest >= numpy.uint32(0x7F800000):
        return 3
    edge = narrow(from_bits(largest), BFLOAT16) if code == BFLOAT16 else from_bits(largest)
    edge = narrow(edge, FLOAT16) if code == FLOAT16 else edge
    return 0 if edge < numpy.float32(numpy.inf) else 1
