"""The fraction of a device's peak that a training reached."""

from __future__ import annotations

from pathlib import Path

from common.errors import BadInput
from common.parsing import read_json
from pipeline.cost import flops, hardware
from pipeline.cost.model_shape import from_config_json
from train.performance import Performance
from train.settings import TrainingSettings


def mfu(measured: Performance, config_json: Path, settings: TrainingSettings, precision: str) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, "PaLM", appendix B): recomputed activations do not count.

    config_json: of the model that was trained. None if the device's peak is not known, or the model's FLOPs: of
    models that are not like Llama, and of mixtures of experts, which use a part of their weights for each token.
    """
    gpu, described = hardware.of_device(measured.device), read_json(config_json)
    described |= described.get("text_config") or {}
    if gpu is None or any("expert" in key and value for key, value in described.items()):
        return None
    try:
        shape = from_config_json(config_json)
    except BadInput:
        return None
    of_a_token = flops.training(shape, settings.block_size, frozen=settings.lora is not None)
    return round(measured.tokens_per_second_per_device * of_a_token / gpu.peak(precision), 4)
