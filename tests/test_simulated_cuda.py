"""Merging, its audit, and scoring run with `cuda` in simulation and give the CPU's numbers; no GPU has run this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import merge
from eval import harness, task_set
from tests.common.test_special_tokens import tokenizer_with
from tests.eval.conftest import make_items, tiny_model, write_jsonl
from tests.merge.conftest import Keep, make_folders, recipe
from tests.simulated_cuda import Simulated, simulated_cuda

HALF = {"ct": {"density": 0.5}, "sft": {"density": 0.5}}
METHODS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {  # settings of the models, of the method
    "linear": (None, {}),
    "karcher": (None, {}),
    "task_arithmetic": (None, {"lambda": 0.7}),
    "ties": (HALF, {}),
    "ties_sv": (HALF, {"slack": 1.0, "protect": ["sft"]}),
    "dare_ties": (HALF, {"seed": 3}),
    "della": (HALF, {"seed": 3}),
    "breadcrumbs": (HALF, {}),
    "sce": (None, {}),
}


def test_what_cuda_refuses_is_refused() -> None:
    with simulated_cuda():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert isinstance(there, Simulated) and there.device == torch.device("cuda:0") and there.is_cuda
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="same device"):
            here[torch.tensor([0], device="cuda")]
        assert torch.equal((there + 1).cpu(), torch.full((3,), 2.0))
        assert (there * torch.tensor(2.0)).tolist() == [2.0, 2.0, 2.0]
        view = there.view(3, 1)
        view += 1
        assert there.tolist() == [2.0, 2.0, 2.0]


def merged(wanted: merge.Recipe, device: str) -> dict[str, torch.Tensor]:
    """The merge by the engine itself."""
    from merge.stream.engine import run
    from merge.stream.tensor_plan import make_plan
    from merge.stream.threads import Workers

    class Fetch(Keep):
        def write(self, output: Any, start: int, values: torch.Tensor) -> None:
            super().write(output, start, values.cpu())

    plan, sink = make_plan([wanted]), Fetch()
    try:
        run(plan, [sink], workers=Workers(device))
    finally:
        plan.close()
    return sink.tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_the_engine_gives_the_cpu_s_numbers(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    models, settings = METHODS[method]
    wanted = recipe(make_folders(tmp_path, dtype), method, models, **settings)
    expected = merged(wanted, "cpu")
    with simulated_cuda():
        found = merged(wanted, "cuda:0")
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_merge_in_memory_is_scored_on_the_device(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "ct", "sft")):
        tiny_model(seed).save_pretrained(tmp_path / name)
        tokenizer_with("$A").save_pretrained(tmp_path / name)
    models = {name: {"path": tmp_path / name, "density": 0.5} for name in ("ct", "sft")}
    wanted = merge.Recipe.from_dict({"method": "ties", "base": tmp_path / "base", "models": models})
    write_jsonl(tmp_path / "items" / "next_nya.test.jsonl", make_items("next", "nya", 4, 0))
    write_jsonl(tmp_path / "text" / "nya.test.jsonl", [{"id": "a", "text": "dziko lapansi " * 6}])
    tasks, tokenizer = task_set.prepare(tmp_path / "items", tmp_path / "text"), tokenizer_with("<s> $A")
    expected = harness.evaluate(merge.load(wanted), tokenizer, tasks)
    with simulated_cuda():
        model = merge.load(wanted, "cuda:0")
        assert all(tensor.device.type == "cuda" for tensor in model.state_dict().values())
        found = harness.evaluate(model, tokenizer, tasks, device="cuda:0", batch_tokens=1024)
    assert [row["value"] for row in found.records] == pytest.approx([row["value"] for row in expected.records])


def test_the_audit_counts_what_the_cpu_counts(tmp_path: Path) -> None:
    from merge.auditing import audit_many
    from merge.stream.threads import Workers

    wanted = recipe(make_folders(tmp_path), "ties", {"ct": {"density": 0.3}, "sft": {"density": 0.3}})
    expected = audit_many([wanted])
    with simulated_cuda():
        found = audit_many([wanted], Workers("cuda:0"))
    assert found == expected and expected
