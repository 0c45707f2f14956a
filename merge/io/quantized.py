"""Quantized checkpoints, which cannot be merged. Their tensors identify them, as a config may be out of date."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import BadInput
from merge.io.checkpoint import Checkpoint

REMEDY = "Merge the 16-bit weights that it was made from, or dequantize it and save it again"
KEYS = ("quantization_config", "compression_config")
# What quantizers write beside a weight, or in its place: GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8, MXFP4, HQQ,
# AQLM, VPTQ, quanto.
_TENSORS = re.compile(
    r".*(?:\.(?:qweight|qzeros|g_idx|SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+"
    r"|weight_packed|weight_scale|weight_scale_inv|weight_scale_2|weight_global_scale|weight_zero_point|W_q|codebooks"
    r"|centroids|weight\._data|weight_u?int\d)|_(?:blocks|packed))"
)
_CODES = ("U8", "I8", "I32")  # dtypes of packed weights


def settings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return the quantization settings of a config, or of a part."""
    for part in (config, *(value for key, value in config.items() if key.endswith("_config"))):
        if isinstance(part, Mapping):
            yield from (part[key] for key in KEYS if isinstance(part.get(key), Mapping))


def method(config: Mapping[str, Any]) -> str | None:
    """Return the name of the quantizer, if a config has one."""
    return next((str(each.get("quant_method") or "a quantizer") for each in settings(config)), None)


def without_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the same weights without quantization."""
    return {
        key: without_settings(value) if isinstance(value, dict) and key.endswith("_config") else value
        for key, value in config.items()
        if key not in KEYS
    }


def check_not_quantized(checkpoint: Checkpoint) -> None:
    """Raise BadInput for a checkpoint whose weights are quantized, or are quantized at run time."""
    named = method(checkpoint.config)
    for name, info in checkpoint.tensors.items():
        packed = info.dtype in _CODES and len(info.shape) > 1 and (named is not None or name.endswith(".weight"))
        if packed or _TENSORS.fullmatch(name):
            by = f" by {named}" if named else ""
            raise BadInput(
                f"{checkpoint.folder}: its weights are quantized{by} (tensor {name} is {info.dtype} "
                f"{list(info.shape)}) and cannot be merged. {REMEDY}."
            )
    if named == "bitnet":
        raise BadInput(
            f"{checkpoint.folder / 'config.json'}: quantization_config: a model that quantizes its weights at "
            "run time (bitnet) cannot be merged: the result would not be such a model. Merge models without it."
        )
