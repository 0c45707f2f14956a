"""Methods whose result is in the span of their inputs: Σ c·x, with coefficients c from the tensor's Gram matrix.

x are a tensor's task vectors if there is a base, else its weights; the Gram matrix has their dot products, float64
[models, models], over the whole tensor. So no method needs a tensor in memory, and iterations are free. Every function
takes (gram, weights, normalize) and returns one coefficient per model. Formulas as in mergekit, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy
import numpy.typing

Gram = numpy.typing.NDArray[numpy.float64]


def model_stock(gram: Gram, weights: Sequence[float], normalize: bool) -> list[float]:
    """Compute Jang et al. 2024: the mean, drawn to the base by N cos / (1 + (N − 1) cos); cos: mean over pairs."""
    count, norms = len(gram), numpy.sqrt(gram.diagonal())
    cosines = (gram / numpy.maximum(numpy.outer(norms, norms), 1e-6)).clip(-1, 1)
    cosine = float(cosines[numpy.triu_indices(count, 1)].mean())
    below = 1 + (count - 1) * cosine
    return [(cosine / below if abs(below) >= 1e-6 else 0.0)] * count


def nuslerp(gram: Gram, weights: Sequence[float], normalize: bool) -> list[float]:
    """Interpolate along the arc between two, to w₂ / (w₁ + w₂); linear where they are parallel."""
    share = weights[1] / sum(weights) if abs(sum(weights)) >= 1e-6 else 0.5
    first, second = numpy.maximum(numpy.sqrt(gram.diagonal()), 1e-7)
    cosine = float(numpy.clip(gram[0, 1] / (first * second), -1, 1))
    if 1 - cosine**2 <= 1e-12:  # mergekit's bound is below what float32 resolves
        return [1 - share, share]
    angle = math.acos(cosine)
    return [math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)]


def multislerp(gram: Gram, weights: Sequence[float], normalize: bool) -> list[float]:
    """Compute Goddard 2025: the weighted mean of the directions, at the weighted mean of the lengths.

    The original continues in the tangent space at that mean, where the weighted sum of its directions is zero.
    """
    if len(gram) == 1:
        return [1.0]
    shares = numpy.array(weights) / (sum(weights) if normalize else 1.0)
    lengths = numpy.sqrt(gram.diagonal())
    scale = 1 / (lengths + 1e-8)
    mean = shares * scale
    norm = math.sqrt(max(0.0, float(mean @ gram @ mean)))
    if norm < 1e-8:  # opposite directions that cancel out
        return [float(share) for share in shares]
    return [float(part) for part in mean / norm * float(lengths @ shares)]


def karcher(gram: Gram, weights: Sequence[float], normalize: bool, steps: int = 10, small: float = 1e-5) -> list[float]:
    """Find the point of the sphere that is nearest to all directions (Karcher mean), at the mean of the lengths."""
    lengths = numpy.sqrt(gram.diagonal())
    alive = lengths > small
    if len(gram) == 1 or not alive.any():
        return [1.0] * len(gram)
    units = gram[numpy.ix_(alive, alive)] / numpy.outer(lengths[alive], lengths[alive])
    count = len(units)

    def norm(point: Gram) -> float:
        return math.sqrt(max(0.0, float(point @ units @ point)))

    mean = numpy.full(count, 1 / count)
    mean = mean / norm(mean) if norm(mean) >= small else numpy.eye(count)[0]
    for _ in range(steps):
        cosines = (units @ mean).clip(-1, 1)
        angles = numpy.arccos(cosines)
        far = angles >= small
        pull = numpy.where(far, angles / numpy.where(far, numpy.sin(angles), 1.0), 0.0) / count
        tangent = pull - float(pull @ cosines) * mean
        length = norm(tangent)
        if length < small:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * tangent
        mean = mean / norm(mean)
    coefficients = numpy.zeros(len(gram))
    coefficients[alive] = mean * float(lengths.mean()) / lengths[alive]
    return [float(part) for part in coefficients]
