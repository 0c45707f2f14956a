"""Where a model that is scored lies: on one device, or spread over several GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.errors import BadInput, line_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_device(device: str | None, gpus: int = 1) -> None:
    """Rejects a device that is not there, or that keeps no numbers (meta), and fewer GPUs than asked for.

    Raises BadInput.
    """
    import torch

    try:
        if device is not None:
            torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own
        raise BadInput(f"device: {device!r}: {line_of(error)[:120]}; say cpu, or a device that is here") from None
    check_gpus(device, gpus)


def check_gpus(device: str | None, gpus: int) -> None:
    """Reject more GPUs than this process sees, or than one on another device than cuda. Raises BadInput."""
    import torch

    if gpus < 1:
        raise BadInput(f"eval.gpus: must be 1 or more, got {gpus}. Set eval.gpus=1.")
    if gpus == 1:
        return
    if device != "cuda":
        raise BadInput(
            f"eval.gpus: {gpus} GPUs need device cuda, got {device or 'no device'}. Set eval.gpus=1, or use GPUs."
        )
    if (seen := torch.cuda.device_count()) < gpus:
        raise BadInput(
            f"eval.gpus: only {seen} GPUs are visible to this process, got {gpus}. Set eval.gpus={max(1, seen)}, "
            "or run where there are more."
        )


def device_names(gpus: int) -> list[str]:
    """The first GPUs."""
    return [f"cuda:{number}" for number in range(gpus)]


def even_split(model: Any, devices: Sequence[str]) -> dict[str, str]:
    """Which device each part of a model lies on, in the model's order: the devices get as many bytes as each other.

    Layers stay whole (as the model's `_no_split_modules` has them), so the shares differ by a layer. The model may be
    without weights, on the device meta.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import compute_module_sizes

    sizes = compute_module_sizes(model)
    whole = set(model._no_split_modules or ())
    largest = max((sizes[name] for name, part in model.named_modules() if type(part).__name__ in whole), default=0)
    share = sizes[""] // len(devices) + largest  # a layer that begins below the even share goes there whole
    room: dict[int | str, int | str] = dict.fromkeys(range(len(devices)), share)
    room[len(devices) - 1] = 2 * sizes[""]
    found = infer_auto_device_map(model, max_memory=room, no_split_module_classes=list(whole))
    return {name: devices[int(number)] for name, number in found.items()}


def spread(model: PreTrainedModel, devices: Sequence[str]) -> PreTrainedModel:
    """Move a model's parts to several devices; its forward pass moves what flows between them.

    Inputs belong on the first device, and outputs return there.
    """
    from accelerate import dispatch_model

    model.tie_weights()
    where: Any = even_split(model, devices)
    return dispatch_model(model, where, main_device=devices[0])  # type: ignore[no-any-return]
