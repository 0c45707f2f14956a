"""Sizes as people write them."""

from __future__ import annotations

import pytest

from common.units import counted, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500MB", 500 * 10**6), ("1.5gb", 1_500_000_000), ("20 kB", 20_000), ("2t", 2 * 10**12), (1234, 1234)],
)
def test_bytes_in_powers_of_a_thousand(text: object, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["much", "", "-5MB", True, "5 MiB"])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a number of bytes"):
        parse_bytes(text)


def test_one_thing_is_not_plural() -> None:
    assert [counted(count, "cell") for count in (0, 1, 2, 1200)] == ["0 cells", "1 cell", "2 cells", "1,200 cells"]
