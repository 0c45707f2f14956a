"""LoRA by peft: W + (alpha / rank)·B·A (Hu et al. 2022, arXiv 2106.09685).

The adapter and the full weights are both published.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from common.errors import BadInput
from train.settings import LoraSettings

PREFIX = "base_model.model."  # that peft puts before the names of a model's parameters
FROZEN, IN_FULL = ".original_module.", ".modules_to_save.default."  # inside those of a module that is trained in full


def add_adapter(
    model: PreTrainedModel, lora: LoraSettings, left_out: Sequence[str] = (), embeddings: bool = False
) -> Any:
    """Return a PeftModel around `model`, in which only the factors are trained. Raises BadInput for unknown targets.

    left_out: names of modules in which no layer gets factors. embeddings: train embedding and head too, in full.
    """
    from peft import LoraConfig, get_peft_model

    tied = bool(model.config.get_text_config().tie_word_embeddings)
    tables = [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])] if embeddings else []
    in_full = [name for name, module in model.named_modules() if any(module is table for table in tables)]
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number is accepted, unlike its type
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules="|".join(rf"{re.escape(name)}(\..*)?" for name in left_out) or None,
        modules_to_save=in_full or None,
        ensure_weight_tying=tied and embeddings,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft imports a deprecated name of transformers
            return check_mergeable(get_peft_model(model, config))
    except ValueError as error:
        raise BadInput(f"train.lora.targets={targets}: {' '.join(str(error).split())}") from None


def check_mergeable(model: Any) -> Any:
    """Return a PeftModel if `merge_adapter` and merge/ can merge its factors. Raises BadInput."""
    from transformers.pytorch_utils import Conv1D

    kind = model.config.model_type
    if any(config.target_parameters for config in model.peft_config.values()):
        raise BadInput(
            f"train.lora.targets: model_type {kind!r} keeps all experts of a layer in one tensor, "
            "and LoRA factors of it cannot be merged. Set train.lora.targets=[q_proj,k_proj,v_proj,o_proj]."
        )
    if any(isinstance(getattr(module, "base_layer", None), Conv1D) for module in model.modules()):
        raise BadInput(
            f"train.lora: model_type {kind!r} keeps its matrices transposed (Conv1D), "
            "and LoRA factors of them cannot be merged. Set train=full."
        )
    return model


def merge_adapter(
    weights: Mapping[str, torch.Tensor], lora: LoraSettings, base: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Return the weights of the plain model with the factors merged in: sums in float32, rounded to each dtype.

    base: weights by the plain model's names in place of frozen ones that were rounded; None: these are exact. Sums are
    on the CPU, so that a GPU that was full in training does not have to hold a second model.
    """
    scale = lora.alpha / lora.rank
    plain = {}
    for name, tensor in weights.items():
        module, is_adapted, rest = name.partition(".base_layer.")
        if ".lora_" in name or FROZEN in name:
            continue
        if base is not None and IN_FULL not in name:
            if plain_name(name) not in base:  # constants of quantization
                continue
            tensor = base[plain_name(name)]
        if is_adapted and rest == "weight":
            a, b = (weights[f"{module}.lora_{side}.default.weight"].float() for side in "AB")
            tensor = (tensor.float() + ((b @ a) * scale).to(tensor.device)).to(tensor.dtype).cpu()
        plain[plain_name(name)] = tensor
    return plain


def plain_name(name: str) -> str:
    """Return the plain model's name for a weight of a PeftModel that is not a LoRA factor."""
    name = name.removeprefix(PREFIX)
    for inner in (".base_layer.", FROZEN, IN_FULL):
        name = name.replace(inner, ".")
    return name


def save_adapter(model: Any, weights: Mapping[str, torch.Tensor], base: Path, folder: Path) -> None:
    """Save the factors as a folder that peft and merge/ read; its config names the base's folder."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = str(base)
    model.save_pretrained(folder, state_dict=dict(weights))
    (folder / "README.md").unlink(missing_ok=True)  # peft's form of a model card, not filled in
