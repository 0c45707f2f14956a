"""Selection as a GPU does it, against selection on the host; on the CPU, and on a simulated GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge.engine.outputs import Output
from merge.engine.passes import Workers, run, survey
from merge.engine.plan import make_plan
from merge.select import Counting, DeviceCounting, NotFinite, Ranking, TopK, magnitude_bits, rank
from tests.merge.conftest import make_folders, recipe
from tests.simulated_cuda import simulated_cuda

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
VALUES = st.lists(
    st.one_of(
        st.floats(-(2.0**15), 2.0**15, width=16),
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-24, -(2.0**-140), 2.0**-149, 65504.0]),
    ),
    min_size=2,
    max_size=60,
)


def on_device(slices: list[torch.Tensor], ranks: list[int]) -> Ranking:
    counting = DeviceCounting(slices[0].dtype, ranks, sum(map(len, slices)))
    for _ in range(5):
        for tau in slices:
            counting.update(tau)
        if not counting.another():
            return counting.ranking()
    raise AssertionError("more passes than a number has digits")


def on_host(slices: list[torch.Tensor], ranks: list[int]) -> Ranking:
    if slices[0].dtype.itemsize > 2:
        return rank(lambda: map(magnitude_bits, slices), ranks, sum(map(len, slices)), resident=0)
    counting = Counting(slices[0].dtype)
    for tau in slices:
        counting.update(magnitude_bits(tau))
    return counting.ranking(ranks)


@given(VALUES, st.sampled_from(DTYPES), st.data())
@settings(max_examples=150, deadline=None)
def test_thresholds_are_those_of_the_host(values: list[float], dtype: torch.dtype, data: st.DataObject) -> None:
    tau = torch.tensor(values, dtype=torch.float64)
    if dtype.itemsize > 2:  # by what 16 bits could not tell apart
        tau = tau * (1 + torch.arange(len(values)) * 2.0 ** (-20 if dtype == torch.float32 else -50))
    cut = data.draw(st.integers(1, len(values) - 1))
    slices = [tau.to(dtype)[:cut], tau.to(dtype)[cut:]]
    ranks = data.draw(st.lists(st.integers(1, len(values) + 1), max_size=4, unique=True))
    mine, theirs = on_device(slices, ranks), on_host(slices, ranks)
    assert mine.thresholds == theirs.thresholds
    assert mine.nonzero == theirs.nonzero
    assert mine.energy == pytest.approx(theirs.energy, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(dtype: torch.dtype, wrong: float) -> None:
    with pytest.raises(NotFinite):
        on_device([torch.tensor([1.0, wrong], dtype=dtype)], [1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_nothing_but_counts_comes_to_the_host(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tau = torch.tensor([0.5, -2.0, 2.0, 0.0, 2.0, -1.0, 2.0], dtype=dtype)
    here = on_host([tau], [3])
    kept = TopK(here.thresholds[3]).take(tau, lambda: magnitude_bits(tau))
    with simulated_cuda():
        there = tau.to("cuda:0")
        found = on_device([there], [3])

        def host() -> None:
            raise AssertionError("magnitudes are brought to the host")

        thinned = TopK(found.thresholds[3]).take(there, host)  # type: ignore[arg-type]
        assert found.thresholds == here.thresholds
        assert thinned.device.type == "cuda"
        assert thinned.cpu().tolist() == kept.tolist() == [0, -2, 2, 0, 2, 0, 0]


class Kept:
    """A sink that keeps what is written, as numbers."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def write(self, output: Output, start: int, values: torch.Tensor) -> None:
        self.found.setdefault(output.name, []).extend(values.cpu().tolist())


def merged(folders: dict[str, Path], device: str, dtype: str) -> dict[str, list[float]]:
    models = {name: {"density": 0.3} for name in ("ct", "sft")}
    plan, sink = make_plan([recipe(folders, "ties", models, compute_dtype=dtype, tokenizer="optional")]), Kept()
    try:
        workers = Workers(device, threads=1)
        run(plan, [sink], None, workers, survey(plan, [None], workers))
    finally:
        plan.close()
    return sink.found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_on_a_simulated_gpu_is_that_of_the_cpu(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = make_folders(tmp_path, torch.bfloat16)
    here = merged(folders, "cpu", dtype)

    def host(_: torch.Tensor) -> None:
        raise AssertionError("magnitudes are brought to the host")

    monkeypatch.setattr("merge.engine.pieces.magnitude_bits", host)
    with simulated_cuda():
        assert merged(folders, "cuda:0", dtype) == here
