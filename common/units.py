"""Numbers of tokens and bytes as people write them."""

from __future__ import annotations

import re
from decimal import Decimal

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parse_tokens(value: object) -> object:
    """Parse a number of tokens: `32k`, `1.5M`, `2B` or an integer; k, M and B are 10^3, 10^6 and 10^9."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmbt]?)", str(value).strip().lower().replace("_", ""))
    if isinstance(value, bool) or match is None:
        raise ValueError("must be a number of tokens such as 32k, 1.5M or 2B.")
    count = Decimal(match[1]) * UNITS[match[2]]
    if count != int(count) or count < 1:
        raise ValueError("must be a whole, positive number of tokens such as 32k, 1.5M or 2B.")
    return int(count)


def parse_bytes(value: object) -> object:
    """Parse a number of bytes: `500MB`, `1.5GB` or an integer; kB, MB, GB and TB are powers of 1,000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|m|g|t|)b?", str(value).strip().lower())
    if isinstance(value, bool) or match is None:
        raise ValueError("must be a number of bytes such as 500MB or 20GB.")
    return int(Decimal(match[1]) * 1000 ** ("", "k", "m", "g", "t").index(match[2]))


def format_tokens(count: int) -> str:
    """Format a number of tokens in the shortest exact way: `32k` for 32000, `1.5M` for 1500000, `1234`."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if size <= count < 1000 * size and count % (size // 100) == 0:
            return f"{Decimal(count) / size:f}{unit}"
    return str(count)


def counted(count: int, noun: str) -> str:
    """Format a number with its noun: `1 cell`, `2 cells`."""
    return f"{count:,} {noun if count == 1 else f'{noun}s'}"


def duration(seconds: float) -> str:
    """Format seconds for people: `4 s`, `2 min`, `1 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
