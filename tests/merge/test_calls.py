"""What loops are called with."""

from __future__ import annotations

import ctypes

import numpy

from merge.loops.tables import Count, call


def test_the_list_of_addresses_lives_as_long_as_the_call() -> None:
    numbers, sums = numpy.zeros(3, numpy.int64), numpy.zeros(2)
    tables = {Count.NUMBERS: numbers, Count.SUMS: sums}
    wanted = [tables[name].ctypes.data if name in tables else 0 for name in Count]

    def loop(address: int) -> int:
        others = [numpy.full(len(Count), -1, numpy.int64) for _ in range(100)]  # what is free would be theirs
        found = list((ctypes.c_int64 * len(Count)).from_address(address))
        assert found == wanted
        return len(others)

    assert call(loop, tables, Count) == 100
