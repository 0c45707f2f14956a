"""Load the model and tokenizer of a Hugging Face folder, onto one device or spread over several GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub
from common.errors import BadInput, line_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_checkpoint(
    checkpoint: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    gpus: int = 1,
    check: Callable[[Any], None] = lambda config: None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the causal LM of a folder, on the host or spread over GPUs, and its tokenizer.

    dtype None: float32 where `device` is the CPU or None, elsewhere that of its file. check: gets the config before
    gigabytes are read, and may raise. Raises BadInput, also for whatever the folder's files lead transformers to.
    """
    check_device(device, gpus)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not (checkpoint / "config.json").is_file():
        raise BadInput(f"model: {checkpoint} is not a Hugging Face checkpoint folder (no config.json)")
    hub.check_no_adapter(checkpoint, "model")
    dtype = dtype or ("float32" if (device or "cpu") == "cpu" else "auto")
    try:
        config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
        check(config)
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=dtype,
            device_map=_device_map(config, dtype, gpus),
            local_files_only=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)
    except BadInput:
        raise
    except Exception as error:  # a stranger's files lead transformers to anything
        reason = line_of(error)[:300] or type(error).__name__
        raise BadInput(f"model: {checkpoint} cannot be loaded: {reason}") from error
    return model, tokenizer


def _device_map(config: Any, dtype: str, gpus: int) -> dict[str, str] | None:
    """Return the device of each part of a checkpoint, so that no device has to hold all of it; None: the host."""
    if gpus == 1:
        return None
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=config.dtype if dtype == "auto" else dtype)
    empty.tie_weights()
    return even_split(empty, device_names(gpus))


def cast_weights(model: PreTrainedModel, dtype: str) -> None:
    """Cast a model's weights in place, as loading its folder in this dtype would.

    Other tensors keep their dtype: the frequencies of rotary positions are float32 in every model.
    """
    import torch

    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)


def check_device(device: str | None, gpus: int = 1) -> None:
    """Reject a device that does not exist or keeps no numbers (meta), and a number of GPUs that is not available.

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
    """Return the names of the first GPUs."""
    return [f"cuda:{number}" for number in range(gpus)]


def even_split(model: Any, devices: Sequence[str]) -> dict[str, str]:
    """Return the device of each part of a model, in the model's order, with about equal bytes on each.

    Layers are not split (as the model's `_no_split_modules` lists them), so devices differ by up to a layer. The model
    may be without weights, on the device meta.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import compute_module_sizes

    sizes = compute_module_sizes(model)
    unsplit = set(model._no_split_modules or ())
    largest = max((sizes[name] for name, part in model.named_modules() if type(part).__name__ in unsplit), default=0)
    even = sizes[""] // len(devices) + largest  # a layer that begins below the even part goes there
    limits: dict[int | str, int | str] = dict.fromkeys(range(len(devices)), even)
    limits[len(devices) - 1] = 2 * sizes[""]
    device_map = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=list(unsplit))
    return {name: devices[int(number)] for name, number in device_map.items()}


def spread_over_devices(model: PreTrainedModel, devices: Sequence[str]) -> PreTrainedModel:
    """Move a model's parts to several devices; its forward pass moves activations between them.

    Inputs belong on the first device, and outputs return there.
    """
    from accelerate import dispatch_model

    model.tie_weights()
    device_map: Any = even_split(model, devices)
    return dispatch_model(model, device_map, main_device=devices[0])  # type: ignore[no-any-return]
