"""Where the tensors of a checkpoint's files lie in a model in memory.

Files may call a tensor otherwise than the model does, and hold in parts what is one tensor in the model, such as the
experts of a layer. transformers has a table of these conversions. Here it is applied to the tensors of the model
without copying them, so that a tensor of the files is a part of the model's memory, and writing it fills the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]


class _NoCopies(TorchFunctionMode):
    """Leaves a part of a tensor where it lies: conversions call `contiguous`, which may copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.contiguous else func(*args, **(kwargs or {}))


def find_places(model: PreTrainedModel, shapes: Shapes) -> dict[str, torch.Tensor] | None:
    """Find the part of a model's memory, contiguous, for each tensor of files of these shapes, by its name.

    None if the files' tensors are not such parts, or do not fill the model: transformers may compute with them as it
    loads them.
    """
    state = model.state_dict(keep_vars=True)
    for named in (state, _as_saved(model, state)):
        if any(name not in named or tuple(named[name].shape) != shape for name, shape in shapes.items()):
            continue
        places = {name: named[name] for name in shapes}
        if all(place.is_contiguous() for place in places.values()) and _spans(places.values()) == _spans(
            state.values()
        ):
            return places
    return None


def _as_saved(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The tensors of a model as `save_pretrained` would name and divide them, uncopied; empty if that fails."""
    from transformers.core_model_loading import revert_weight_conversion

    try:
        with torch.no_grad(), _NoCopies():
            saved: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(state))
    except Exception:  # of any model's conversions, which may need copies
        return {}
    return saved


def _spans(tensors: Iterable[torch.Tensor]) -> list[tuple[int, int]]:
    """The ranges of addresses that contiguous tensors take, joined if they touch or overlap."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted({(each.data_ptr(), each.data_ptr() + each.nbytes) for each in tensors if each.numel()}):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
