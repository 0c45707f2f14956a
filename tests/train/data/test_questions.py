"""Which passages are asked about."""

import random

from train.data import questions


def test_labels_are_balanced() -> None:
    items = {
        label: [questions.genre(f"text {i}", label) for i in range(n)] for label, n in (("law", 30), ("gospel", 12))
    }
    chosen = questions.balanced(items, 60, random.Random(0))
    assert len(chosen) == 24 and sum(item.choices[item.answer] == "law" for item in chosen) == 12
