"""YAML that people write: numbers with colons are no numbers of base 60, and other scalars stay what they were."""

from __future__ import annotations

import pytest

from common.validation import parse_yaml


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("4:30", "4:30"), ("24:00:00", "24:00:00"), ("-1:30", "-1:30"), ("1:30.5", "1:30.5"),
        ("30", 30), ("1_000", 1000), ("0x10", 16), ("010", 8), ("1.5", 1.5), ("yes", True), ("off", False), ("~", None),
    ],
)  # fmt: skip
def test_scalars(written: str, value: object) -> None:
    assert parse_yaml(f"key: {written}") == {"key": value}
