"""Text of no language for tests: seeded, with words of very different frequencies."""

from __future__ import annotations

import random

WORDS = [
    a + b + c for a in ("ba", "ko", "mi", "tu", "se") for b in ("la", "ri", "no", "fu") for c in ("", "ka", "de", "s")
]
EVEN_WORDS = [
    first + last
    for first in ("ba", "ko", "mi", "tu", "se", "wa", "ri", "no")
    for last in ("la", "ri", "no", "fu", "ke", "ndi", "mba", "zo", "ta")
]


def sentences(seed: int, count: int) -> list[str]:
    """`count` documents of 60 words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, weights=range(1, len(WORDS) + 1), k=60)) + "." for _ in range(count)]


def random_words(rng: random.Random, count: int) -> str:
    """`count` words out of 72, each as likely."""
    return " ".join(rng.choices(EVEN_WORDS, k=count))
