"""Simulated frontiers: right answers as thresholded normal scores with crossed effects of item, document and seed.

The shares of variance reproduce what was measured at five seeds and 800 items: two methods differ in 0.17 of a seed's
items, with a paired standard error of 0.0065 over seeds and 0.010 crossed. Both frontiers rise by 0.2 in accuracy per
bit, and their gap is 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from pipeline.report.frontier import Frontiers, cell_of
from pipeline.report.inference import Estimate
from pipeline.report.paired import Evidence, Measured
from pipeline.report.records import FrontierPoint

DOCUMENTS, ITEMS, BUDGET = 118, {"dev": 500, "test": 800}, 450_000
ITEM, DOCUMENT, ITEM_SEED, ITEM_METHOD, DOCUMENT_METHOD, ITEM_METHOD_SEED, REST = (
    part**0.5 for part in (0.60, 0.08, 0.14, 0.07, 0.005, 0.03, 0.075)
)
GRIDS = {"merge": (2.33, 2.39, 2.48), "ct_then_sft": (2.30, 2.35, 2.47)}  # bits per byte at each knob value
NAMES = tuple(f"d{number}" for number in range(DOCUMENTS))
Floats = Any


def answered(rng: Any, accuracy: Floats, documents: Floats) -> Floats:
    """Right answers (methods, seeds, knobs, items) of these accuracies (methods, seeds, knobs)."""
    methods, seeds, knobs = accuracy.shape
    items = len(documents)

    def normal(*shape: int) -> Floats:
        return rng.standard_normal(shape, dtype=np.float32)

    base = ITEM * normal(items) + DOCUMENT * normal(DOCUMENTS)[documents] + ITEM_SEED * normal(seeds, items)
    of_method = ITEM_METHOD * normal(methods, items) + DOCUMENT_METHOD * normal(methods, DOCUMENTS)[:, documents]
    score = base + of_method[:, None] + ITEM_METHOD_SEED * normal(methods, seeds, items)
    score = score[:, :, None] + REST * normal(methods, seeds, knobs, items)
    return score > ndtri(1 - np.clip(accuracy, 0.02, 0.98))[..., None]


def of_items(right: Floats, documents: Floats) -> Measured:
    """The accuracy of one checkpoint, and what each document moves it."""
    value = float(right.mean())
    moves = np.bincount(documents, right - value, DOCUMENTS) / len(right)
    return Measured(value, moves, len(right), NAMES)


def world(rng: Any, seeds: int) -> Frontiers:
    """One run of these seeds, as a report would find it."""
    truth = np.array([GRIDS[method] for method in GRIDS])
    shape = (2, seeds, 3)
    shift = rng.normal(0, 0.01, (1, seeds, 1)) + rng.normal(0, 0.005, (2, seeds, 1)) + rng.normal(0, 0.003, shape)
    accuracy = 0.3 + 0.2 * (truth - 2.30)[:, None] + shift
    bits = truth[:, None] + rng.normal(0, 0.02, (1, seeds, 1)) + rng.normal(0, 0.014, (2, seeds, 1))
    bits = bits + rng.normal(0, 0.004, shape)
    points = [
        FrontierPoint(method=method, ct_tokens=BUDGET, seed=seed, settings={"lambda": knob}, dev=Path(), folder=Path())
        for method in GRIDS
        for seed in range(seeds)
        for knob in range(3)
    ]
    frontiers = Frontiers(points, "nya")
    splits: dict[str, Evidence] = {"dev": frontiers.dev, "test": frontiers.test}
    for split, evidence in splits.items():
        documents = rng.integers(0, DOCUMENTS, ITEMS[split])
        right = answered(rng, accuracy, documents)
        moves = rng.normal(0, 0.004 * DOCUMENTS**-0.5, (2, DOCUMENTS))
        drawn = bits + moves.sum(axis=1)[:, None, None] + rng.normal(0, 0.002, (2, 1, 3))
        for m, method in enumerate(GRIDS):
            for seed in range(seeds):
                for knob in range(3):
                    of_bits = Measured(float(drawn[m, seed, knob]), moves[m] - moves[m].mean(), DOCUMENTS, NAMES)
                    scored = of_items(right[m, seed, knob].astype(float), documents)
                    evidence._measured[*cell_of(method, BUDGET, {"lambda": knob}), seed] = {
                        ("accuracy", None): scored,
                        ("bits", None): of_bits,
                    }
    return frontiers


def estimates(seeds: int, runs: int, seed: int = 0) -> list[Estimate]:
    """The gap of the two frontiers, whose truth is 0, in many runs."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(runs):
        estimate = world(rng, seeds).gap(*GRIDS, BUDGET).estimate
        assert estimate is not None
        found.append(estimate)
    return found
