"""Folders of frontiers whose numbers are known: knob values by bits and share of right answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.report.records import FrontierPoint

DOCUMENTS, EACH = 40, 10
Right = Any  # (items,) of 0 and 1


def write(folder: Path, right: Mapping[str, Right], bits: Sequence[float], language: str = "nya") -> Path:
    """By family which items are right, and the bits per byte of each document. Items of one place share a document."""
    folder.mkdir(parents=True, exist_ok=True)
    scores, samples = [], []
    for family, answers in right.items():
        task = f"{family}_{language}"
        scores.append({"task": task, "family": family, "language": language})
        samples += [
            {"task": task, "id": str(i), "document": f"buku {i % len(bits)}", "metric": "acc", "score": float(score)}
            for i, score in enumerate(answers)
        ]
    task = f"bits_per_byte_{language}"
    scores.append({"task": task, "family": "text", "language": language})
    for place, value in enumerate(bits):
        name = f"buku {place}"
        sample = {"task": task, "id": name, "document": name, "metric": "bits_per_byte", "bits": value * 100}
        samples.append({**sample, "bytes": 100})
    for name, rows in (("scores", scores), ("samples", samples)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return folder


def share(value: float, items: int = DOCUMENTS * EACH) -> Right:
    """As many of the items as the share says: the same ones for every share, as far as it goes."""
    order = (np.arange(items) * 37) % items
    return (order < round(value * items)).astype(float)


def point(
    root: Path,
    method: str,
    knob: float,
    bits: float,
    accuracy: float,
    *,
    budget: int = 450_000,
    seed: int = 0,
    dev: tuple[float, float] | None = None,
    key: str = "lambda",
    family: str = "next",
) -> FrontierPoint:
    """A point of these bits and this accuracy; on dev the same, or `dev` (bits, accuracy)."""
    folder = root / f"{method}-{budget}-{knob}-{seed}"
    for split, (b, a) in (("dev", dev or (bits, accuracy)), ("test", (bits, accuracy))):
        write(folder / split, {family: share(a)}, [b] * DOCUMENTS)
    return FrontierPoint(
        method=method, ct_tokens=budget, seed=seed, settings={key: knob}, dev=folder / "dev", folder=folder / "test"
    )


def frontier(
    root: Path, method: str, places: Sequence[tuple[float, float]], seeds: Sequence[int] = (0, 1), **more: Any
) -> list[FrontierPoint]:
    """Points at these (bits, accuracy), the same for every seed; the knob counts them."""
    return [
        point(root, method, place + 1, bits, accuracy, seed=seed, **more)
        for seed in seeds
        for place, (bits, accuracy) in enumerate(places)
    ]
