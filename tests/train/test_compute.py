"""How trainings may be computed: what is rejected, precisions, and models that are more than a language model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from common.errors import BadInput
from pipeline import inputs, sweep
from train import base_model, distributed, hf_trainer, trainer
from train.settings import BaseModelSettings, Compute, LoraSettings, TrainingSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(corpus_dir: Path, recipe: BaseModelSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    base_model.prepare(corpus_dir, recipe, folder)
    return folder


def job(training: TrainingSettings, **compute: Any) -> dict[str, Any]:
    return {"model": "m", "blocks": "b", "settings": training.model_dump(), "out": "o", "work": "w", "compute": compute}


@pytest.mark.parametrize(
    ("settings", "compute", "says"),
    [
        ({"precision": "fp8"}, {}, "settings.precision: must be 'fp32', 'bf16' or 'fp16'"),
        ({}, {"attention": "flash"}, "compute.attention: must be 'eager', 'sdpa' or 'flash_attention_2'"),
        ({}, {"device": "gpu"}, "compute.device: must be 'cpu' or 'cuda'"),
        ({}, {"strategy": "dp"}, "compute.strategy: must be 'none', 'ddp', "),
        ({}, {"precision": "bf16"}, "compute.precision: "),
    ],
)
def test_a_job_file_that_cannot_be_computed_ends_with_two(
    settings: dict[str, Any],
    compute: dict[str, Any],
    says: str,
    training: TrainingSettings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from train.__main__ import main

    content = job(training, **compute)
    content["settings"] |= settings
    (tmp_path / "job.json").write_text(json.dumps(content))
    assert main([str(tmp_path / "job.json")]) == 2
    assert says in capsys.readouterr().err.strip().split("\n")[-1]


@pytest.mark.parametrize(
    ("precision", "compute", "says"),
    [
        ("fp16", {}, r"^compute\.precision=fp16: needs a GPU, got device=cpu\. "),
        (
            "fp32",
            {"device": "cuda", "attention": "flash_attention_2"},
            r"^compute\.attention=flash_attention_2: computes in 16 ",
        ),
    ],
)
def test_a_precision_that_the_device_cannot_compute_is_rejected_in_one_line(
    precision: str, compute: dict[str, str], says: str, training: TrainingSettings, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=says):
        hf_trainer.training_arguments(Compute(**compute), tmp_path, training.replace(precision=precision), None)


@pytest.mark.parametrize("where", ["before the run", "in the training"])
def test_bf16_on_a_gpu_without_it_is_rejected(
    where: str, training: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    config = sweep.expand(["experiment=test", "compute=gpu"], multirun=False).configs[0].compute
    assert config.precision == "bf16", "the default of a GPU"
    says = r"^compute\.precision: Tesla T4 does not support bf16, got bf16\. Set compute\.precision=fp16\.$"
    with pytest.raises(BadInput, match=says):
        if where == "before the run":
            inputs.check_device(config)
        else:
            settings = training.replace(precision="bf16")
            hf_trainer.training_arguments(Compute(device="cuda"), tmp_path, settings, None)
    inputs.check_device(config.model_copy(update={"precision": "fp16"}))


def test_fp16_scales_the_loss_in_both_engines(training: TrainingSettings, tmp_path: Path) -> None:
    settings = training.replace(precision="fp16")
    made = hf_trainer.training_arguments(Compute(device="cuda"), tmp_path, settings, None)
    assert (made.mixed_precision, made.fp16, made.bf16) == ("fp16", True, False)
    from deepspeed.runtime.precision_config import get_float16_config

    described = distributed.deepspeed_config(Compute(device="cuda", strategy="zero2"), "fp16", 1, 1)
    assert described is not None and described["bf16"] == {"enabled": False}
    fp16 = get_float16_config(described)
    assert fp16.enabled and fp16.loss_scale == 0, "0 is a dynamic scale"


def small(name: str, **more: Any) -> Any:
    """A tiny model's configuration, by its type."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 300, "pad_token_id": 0}
    return AutoConfig.for_model(name, **sizes, **heads, **more)


@pytest.mark.parametrize(
    ("name", "more"), [("gemma2", {}), ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1})]
)
def test_models_without_sdpa_train_by_default(
    name: str, more: dict[str, int], prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    folder = saved(AutoModelForCausalLM.from_config(small(name, **more)), prepared, tmp_path / "base")
    settings = training.replace(tokens=256)
    out = tmp_path / "out"
    trainer.train(folder, prepared / "blocks", settings, out, work=tmp_path / "work", compute=Compute(threads=1))
    before, after = (load_file(place / "model.safetensors") for place in (folder, out / "model"))
    assert not torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def saved(model: Any, prepared: Path, folder: Path) -> Path:
    """A folder of this model with the tokenizer of the toy model."""
    model.save_pretrained(folder)
    for path in (prepared / "model").glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def seeing() -> Gemma3ForConditionalGeneration:
    """A tiny Gemma-3 with a vision tower."""
    text = Gemma3TextConfig(
        **{key: value for key, value in small("gemma3_text").to_dict().items() if key != "model_type"}
    )
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=299)
    )


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2, alpha=4, dropout=0.0, targets="all-linear")])
def test_only_what_text_reaches_is_trained(
    lora: LoraSettings | None, prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    folder = saved(seeing(), prepared, tmp_path / "base")
    model = hf_trainer.load_model(folder, training.replace(lora=lora), Compute(threads=1))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    text = {name for name, _ in model.named_parameters() if "vision" not in name and "projector" not in name}
    assert trained == ({name for name in text if "lora_" in name} if lora else text)
    assert len(trained) > 10 and len(text) < len(list(model.named_parameters()))


def test_two_processes_train_a_model_with_a_vision_tower(
    prepared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    folder = saved(seeing(), prepared, tmp_path / "base")
    compute = Compute(threads=1, strategy="ddp", processes=2)
    job = {
        "model": str(folder),
        "blocks": str(prepared / "blocks"),
        "settings": training.replace(tokens=384).model_dump(),  # three steps: the second one failed
        "out": str(tmp_path / "out"),
        "work": str(tmp_path / "work"),
        "compute": compute.model_dump(),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "train", str(tmp_path / "job.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    alone = compute.replace(strategy="none", processes=1)
    trainer.train(
        folder, prepared / "blocks", training.replace(tokens=384), tmp_path / "one", work=tmp_path / "work-one",
        compute=alone,
    )  # fmt: skip
    before, two, one = (
        load_file(place / "model.safetensors")
        for place in (folder, tmp_path / "out" / "model", tmp_path / "one" / "model")
    )
    assert two.keys() == one.keys() == before.keys()
    for name, tensor in two.items():
        torch.testing.assert_close(tensor, one[name], atol=2e-6, rtol=1e-5)
        assert torch.equal(tensor, before[name]) == ("vision" in name or "projector" in name), name
    described = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert described.get("use_cache", True) and described["text_config"].get("use_cache", True)
