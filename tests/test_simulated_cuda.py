"""Merging, its audit, and scoring run with `cuda` in simulation and give the CPU's numbers; no GPU has run this."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import merge
from eval import harness, loading, task_set
from eval.language_model import PackedLM
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
        other = there.to("cuda:1")
        assert other.device == torch.device("cuda:1") and (other + 1).device == other.device
        with pytest.raises(RuntimeError, match="same device, got cuda:0 and cuda:1"):
            there + other
        assert there.copy_(other + 1).device == there.device and there.tolist() == [3.0, 3.0, 3.0]


def merged(wanted: merge.Recipe, device: str) -> dict[str, torch.Tensor]:
    """The merge by the engine itself."""
    from merge.engine.passes import Workers, run
    from merge.engine.plan import make_plan

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


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("from_folder", [False, True])
def test_a_model_that_is_spread_over_two_gpus_scores_as_on_the_cpu(
    tmp_path: Path, from_folder: bool, tied: bool
) -> None:
    """accelerate's own hooks move what flows from one GPU to the other, which refuse each other's tensors."""
    model, tokenizer = tiny_model(0, num_hidden_layers=4, tie_word_embeddings=tied), tokenizer_with("<s> $A")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_jsonl(tmp_path / "items" / "next_nya.test.jsonl", make_items("next", "nya", 4, 0))
    write_jsonl(tmp_path / "text" / "nya.test.jsonl", [{"id": "a", "text": "dziko lapansi " * 6}])
    tasks = task_set.prepare(tmp_path / "items", tmp_path / "text")
    how: dict[str, Any] = {"batch_tokens": 512, "dtype": "float32"}
    prompts = [SimpleNamespace(args=(prompt, {"until": ["\n"], "max_gen_toks": 5})) for prompt in ("Mulungu", "dziko")]
    expected = harness.evaluate(model, tokenizer, tasks, **how)
    generated = PackedLM(model, tokenizer, 512, {}).generate_until(prompts)
    seen: list[Any] = []
    with simulated_cuda(2), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # transformers' threads would not see the simulation
        patch.setattr(loading, "_device_map", watched(loading._device_map, seen))
        if from_folder:
            found = harness.evaluate_folder(tmp_path / "model", tasks, device="cuda", gpus=2, **how)
            assert set(seen[0].values()) == {"cuda:0", "cuda:1"}
        else:
            found = harness.evaluate(model, tokenizer, tasks, device="cuda", gpus=2, **how)
            assert {str(parameter.device) for parameter in model.parameters()} == {"cuda:0", "cuda:1"}
            assert PackedLM(model, tokenizer, 512, {}).generate_until(prompts) == generated
    assert [row["value"] for row in found.records] == pytest.approx([row["value"] for row in expected.records])


def watched(function: Any, seen: list[Any]) -> Any:
    """A function that leaves what it returns."""

    def call(*arguments: Any) -> Any:
        seen.append(function(*arguments))
        return seen[-1]

    return call


def test_the_audit_counts_what_the_cpu_counts(tmp_path: Path) -> None:
    from merge.auditing import audit_many
    from merge.engine.passes import Workers

    wanted = recipe(make_folders(tmp_path), "ties", {"ct": {"density": 0.3}, "sft": {"density": 0.3}})
    expected = audit_many([wanted])
    with simulated_cuda():
        found = audit_many([wanted], Workers("cuda:0"))
    assert alike(found, expected) and expected


def alike(found: Any, expected: Any) -> bool:
    """Counts are equal. Norms are sums in float32 on a CPU and in float64 on a device."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[key], value) for key, value in expected.items())
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return bool(found == (pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else expected))
