"""A Hugging Face folder -> a model and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub
from common.errors import BadInput, line_of
from eval.devices import check_device, device_names, even_split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
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
        said = line_of(error)[:300] or type(error).__name__
        raise BadInput(f"model: {checkpoint} cannot be loaded: {said}") from error
    return model, tokenizer


def _device_map(config: Any, dtype: str, gpus: int) -> dict[str, str] | None:
    """Return where the parts of a checkpoint are read to, so that no device holds it whole; None: the host."""
    if gpus == 1:
        return None
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=config.dtype if dtype == "auto" else dtype)
    empty.tie_weights()
    return even_split(empty, device_names(gpus))


def cast(model: PreTrainedModel, dtype: str) -> None:
    """Give a model's weights a dtype, in place, as loading its folder in that dtype would.

    What is not a weight stays as it is: the frequencies of rotary positions are float32 in every model.
    """
    import torch

    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
