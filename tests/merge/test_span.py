"""Coefficients from Gram matrices, against the same methods on whole vectors."""

from __future__ import annotations

import math

import numpy
import pytest

from merge import span

VECTORS = numpy.random.default_rng(0).normal(size=(3, 200)) + numpy.array([[0.5], [0.2], [0.0]])
GRAM = VECTORS @ VECTORS.T


def test_model_stock_is_nearest_to_the_base_between_two() -> None:
    """With two models the point is the foot of the perpendicular from the base onto the line between them."""
    pair = VECTORS[:2] * [[1.0], [numpy.linalg.norm(VECTORS[0]) / numpy.linalg.norm(VECTORS[1])]]  # of equal length
    point = numpy.array(span.model_stock(pair @ pair.T, (1, 1), False)) @ pair
    middle = pair.mean(axis=0)
    cosine = pair[0] @ pair[1] / (pair[0] @ pair[0])
    numpy.testing.assert_allclose(point, 2 * cosine / (1 + cosine) * middle)
    assert span.model_stock(numpy.array([[1.0, -1.0], [-1.0, 1.0]]), (1, 1), False) == [0.0, 0.0]


def test_nuslerp_turns_at_constant_speed() -> None:
    units = VECTORS[:2] / numpy.linalg.norm(VECTORS[:2], axis=1, keepdims=True)
    angle = math.acos(units[0] @ units[1])
    for share in (0.0, 0.25, 1.0):
        point = numpy.array(span.nuslerp(units @ units.T, (1 - share, share), False)) @ units
        assert numpy.linalg.norm(point) == pytest.approx(1.0)
        assert math.acos(min(1.0, point @ units[0])) == pytest.approx(share * angle, abs=1e-6)
    assert span.nuslerp(numpy.ones((2, 2)), (3.0, 1.0), False) == [0.75, 0.25]


def test_multislerp_has_the_mean_length() -> None:
    lengths = numpy.linalg.norm(VECTORS, axis=1)
    weights = numpy.array([1.0, 2.0, 1.0])
    point = numpy.array(span.multislerp(GRAM, tuple(weights), True)) @ VECTORS
    assert numpy.linalg.norm(point) == pytest.approx(lengths @ weights / 4)
    direction = (weights / lengths) @ VECTORS
    assert point @ direction == pytest.approx(numpy.linalg.norm(point) * numpy.linalg.norm(direction))


def test_at_the_karcher_mean_nothing_pulls() -> None:
    lengths = numpy.linalg.norm(VECTORS, axis=1)
    point = numpy.array(span.karcher(GRAM, (1, 1, 1), False)) @ VECTORS
    assert numpy.linalg.norm(point) == pytest.approx(lengths.mean())
    mean = point / numpy.linalg.norm(point)
    pull = numpy.zeros(200)
    for unit in VECTORS / lengths[:, None]:
        cosine = mean @ unit
        pull += math.acos(cosine) / math.sqrt(1 - cosine**2) * (unit - cosine * mean)
    assert numpy.linalg.norm(pull) < 1e-4
    zero = numpy.diag([4.0, 0.0])  # a model that is all zeros counts in the length alone
    assert span.karcher(zero, (1, 1), False) == pytest.approx([0.5, 0.0])
