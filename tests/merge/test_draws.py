"""What compiled loops draw against the definition: NumPy's numbers below the probabilities of exact ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from merge.arithmetic import keep_line, keep_probabilities, row_ranks
from merge.loops.machine_code import OFF, compiled_loops
from merge.loops.tables import BFLOAT16, EXACT, FLOAT16, KINDS, Stored, draw_slice, stream_from

pytest.importorskip("numba")

DTYPES = {kind: dtype for dtype, kind in KINDS.items()}
SEED = 7


@pytest.fixture(scope="module")
def loops() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(OFF, raising=False)
        yield compiled_loops([EXACT, BFLOAT16, FLOAT16], tell=False)


def numbers_from(start: int, size: int) -> torch.Tensor:
    generator = numpy.random.Generator(numpy.random.PCG64(SEED))
    generator.random(start, dtype=numpy.float32)
    return torch.from_numpy(generator.random(size, dtype=numpy.float32))


def task_vector(shape: str, rows: int, columns: int, seed: int) -> torch.Tensor:
    """float32, of values that rank in different ways."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, columns, generator=generator)
    if shape == "few":  # many ties
        return (noise * 2).round() / 4
    if shape == "zeros":
        return noise * (torch.rand(rows, columns, generator=generator) < 0.3)
    if shape == "crowded":  # one bin has most of them, in float32 all different
        return 1 + noise * 1e-4
    if shape == "wide":  # from subnormal numbers to infinity, and more bins than a row may have
        exponents = torch.randint(-149, 130, (rows, columns), generator=generator)
        return torch.ldexp(noise.sign(), exponents)
    if shape == "signs":
        return torch.copysign(torch.zeros(()), noise)
    return noise


@given(
    kind=st.sampled_from([EXACT, BFLOAT16, FLOAT16]),
    shape=st.sampled_from(["smooth", "few", "zeros", "crowded", "wide", "signs"]),
    rows=st.integers(1, 5),
    columns=st.one_of(st.integers(1, 80), st.sampled_from([511, 1024, 1500])),
    start=st.one_of(st.integers(0, 9), st.integers(0, 3000)),
    density=st.sampled_from([0.5, 0.9, 0.2]),
    epsilon=st.sampled_from([0.0, 0.05, 0.099]),
    exact=st.booleans(),
    seed=st.integers(0, 2**16),
)
@example(EXACT, "crowded", 3, 1500, 1, 0.5, 0.45, False, 0)  # too many doubts
@example(EXACT, "smooth", 3, 1500, 1, 0.5, 0.45, False, 0)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_draws_are_those_on_tensors(
    loops: Any, kind: int, shape: str, rows: int, columns: int, start: int, density: float, epsilon: float,
    exact: bool, seed: int,
) -> None:  # fmt: skip
    dtype = DTYPES[kind]
    model = task_vector(shape, rows, columns, seed).to(dtype)
    base = torch.zeros_like(model)
    probabilities = keep_probabilities(row_ranks(model.abs()), density, epsilon)
    kept = numbers_from(start, model.numel()).view(model.shape) < probabilities
    line = keep_line(columns, density, epsilon)
    stream = stream_from(numpy.random.PCG64(SEED), start)
    drawn = draw_slice(loops[kind]["draw"], Stored(base), Stored(model), columns, stream, *line, exact)
    assert torch.equal(drawn.mask.bool(), kept)
    assert torch.equal(drawn.chances, probabilities) if exact else drawn.chances is None
    if model.isfinite().all():
        magnitudes = model.abs().double()
        assert drawn.sums == pytest.approx((float(magnitudes.sum()), float((magnitudes * kept).sum())), rel=1e-12)


def test_a_density_alone_needs_no_ranks(loops: Any) -> None:
    """DARE: every value stays with the same probability."""
    model = Stored(torch.randn(4, 33))
    stream = stream_from(numpy.random.PCG64(SEED), 5)
    drawn = draw_slice(loops[EXACT]["draw"], Stored(torch.zeros(4, 33)), model, 33, stream, 0.3, 0.0, False)
    assert torch.equal(drawn.mask.bool(), numbers_from(5, 4 * 33).view(4, 33) < 0.3)
