"""Trainings in less memory: a frozen base in fewer bits, and AdamW's moments in 8 bits.

LoRA only reads the linear layers of the base. bfloat16 is what passes in bfloat16 round them to anyway: the result is
that of a float32 base, bit for bit. nf4 (QLoRA: Dettmers et al. 2023, arXiv 2305.14314) keeps 4 bits of a weight, and
passes compute with the rounded weights. Embeddings, norms, the head and LoRA's factors stay in float32. Published
weights are those of the base's own files plus the factors (train/lora.py).

8-bit AdamW (Dettmers et al. 2022, arXiv 2110.02861) keeps a moment as 8 bits of a weight and a scale for every 256
weights; the moments of embeddings stay in 32 bits, as transformers has it.

Both of these are bitsandbytes', on GPUs and CPUs. Importing this module imports no torch.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import BadInput
from train.settings import Compute, MemorySaving, TrainingSettings

STRATEGIES = ("none", "ddp")  # the others divide weights and moments among processes by their numbers of elements
PACKAGE = "bitsandbytes"
OPTIMIZERS = {"adamw_8bit": "adamw_bnb_8bit"}  # transformers' names of those that are not its default


def contradiction(saving: MemorySaving, lora: bool, precision: str, strategy: str) -> str | None:
    """Describe, beginning with the key, why a training cannot save memory in this way; None: it can."""
    dtype = saving.base_dtype
    if dtype != "float32" and not lora:
        return (
            f"train.base_dtype={dtype}: needs LoRA, which freezes the base, got train.lora=null."
            " Set train=lora, or train.base_dtype=float32."
        )
    if dtype == "bfloat16" and precision != "bf16":
        return (
            f"train.base_dtype=bfloat16: needs passes in bfloat16, got compute.precision={precision}."
            " Set compute.precision=bf16, or train.base_dtype=nf4."
        )
    if (names := changed(saving)) and strategy not in STRATEGIES:
        given = " and ".join(f"train.{name}={getattr(saving, name)}" for name in names)
        usual = " ".join(f"train.{name}={MemorySaving.model_fields[name].default}" for name in names)
        return f"compute.strategy={strategy}: does not support {given}. Set compute.strategy=none or ddp, or {usual}."
    return None


def changed(saving: MemorySaving) -> list[str]:
    """Return the names of the settings that differ from their defaults."""
    fields = MemorySaving.model_fields.items()
    return [name for name, field in fields if getattr(saving, name) != field.default]


def check(settings: TrainingSettings, compute: Compute) -> None:
    """Raise BadInput if a training cannot save memory as its settings ask."""
    if wrong := contradiction(settings, settings.lora is not None, settings.precision, compute.strategy):
        raise BadInput(wrong)
    check_package(settings)


def check_package(saving: MemorySaving) -> None:
    """Raise BadInput if the settings need a package that is not installed."""
    for key, needed in (("base_dtype", "nf4"), ("optimizer", "adamw_8bit")):
        if getattr(saving, key) == needed and find_spec(PACKAGE) is None:
            default = MemorySaving.model_fields[key].default
            raise BadInput(
                f"train.{key}={needed}: needs {PACKAGE}, which is not installed. Run `pip install {PACKAGE}`,"
                f" or set train.{key}={default}."
            )


# --- within a training; these functions import torch ---


def loading(settings: TrainingSettings, device: str) -> dict[str, Any]:
    """Return what `from_pretrained` needs besides a base in float32: for nf4, how to quantize it and where to."""
    if settings.base_dtype != "nf4":
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    passes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=passes[settings.precision],
    )
    # transformers would take a GPU where there is one, and every process the first
    return {
        "quantization_config": config,
        "device_map": {"": "cpu" if device == "cpu" else torch.cuda.current_device()},
    }


def leave_package_out(saving: MemorySaving, model: Path) -> None:
    """Prevent the import of bitsandbytes in this process if its training does not need it. model: the base's folder.

    transformers' Trainer imports peft, which imports bitsandbytes where it is installed: about a second of CPU. None in
    `sys.modules` prevents an import (docs.python.org/3/reference/import.html#the-module-cache).
    """
    config = model / "config.json"
    is_quantized = config.is_file() and b'"quantization_config"' in config.read_bytes()
    if not is_quantized and saving.base_dtype != "nf4" and saving.optimizer != "adamw_8bit":
        sys.modules.setdefault(PACKAGE, None)  # type: ignore[arg-type]  # None is allowed there


def round_base(model: Any, settings: TrainingSettings) -> None:
    """Bring a PeftModel's frozen linear layers, without the head, into the dtype of the settings.

    After LoRA's factors were added: peft would round their first values to the dtype of the layer. nf4 layers, which
    have their weights already, keep them in one layout: on some CPUs bitsandbytes would pack them for an evaluation, in
    a form that gives no gradients after it.
    """
    import torch
    from torch import nn

    if settings.base_dtype == "nf4":
        from bitsandbytes.nn.modules import Linear4bit

        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
    if settings.base_dtype == "bfloat16":
        head = set(model.get_base_model().get_output_embeddings().modules())
        for module in model.modules():
            if isinstance(module, nn.Linear) and module not in head and not module.weight.requires_grad:
                module.to(torch.bfloat16)


def optimizer_arguments(settings: TrainingSettings) -> dict[str, Any]:
    """Return the Trainer's arguments for another optimizer than its default."""
    return {"optim": OPTIMIZERS[settings.optimizer]} if settings.optimizer in OPTIMIZERS else {}


def forget_optimizers() -> None:
    """Drop what bitsandbytes remembers of optimizers as long as the process lives.

    These are embeddings, and the places in an optimizer whose moments stay in 32 bits: the next training of this
    process, with other weights in these places, would have them too.
    """
    from bitsandbytes.optim.optimizer import GlobalOptimManager

    GlobalOptimManager.get_instance().initialize()
