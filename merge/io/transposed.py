"""Linear layers whose weight is stored as [inputs, outputs]: Conv1D of GPT-2 and of models derived from it.

Neither a weight's name nor an adapter's `fan_in_fan_out` is reliable: peft sets the latter from the last layer. The
bias is: it has one number per output.
"""

from __future__ import annotations

from merge.io.checkpoint import Checkpoint
from merge.per_tensor import stack_of

# Models all of whose layers are transposed, for layers without a bias.
MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


def is_transposed(checkpoint: Checkpoint, name: str) -> bool:
    """Tell whether a layer's weight is stored transposed. A square one is treated as the others of its stack."""
    own = _by_bias(checkpoint, name)
    stack = stack_of(name)
    if own is not None or stack is None:
        return own is True
    others = {_by_bias(checkpoint, other) for other in checkpoint.tensors if other.startswith(stack)} - {None}
    return others == {True} if others else checkpoint.config.get("model_type") in MODELS


def _by_bias(checkpoint: Checkpoint, name: str) -> bool | None:
    """Decide by the bias; None if there is no bias, or if it fits both ways."""
    weight, bias = (checkpoint.tensors.get(f"{name.removesuffix('weight')}{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None or len(weight.shape) != 2 or weight.shape[0] == weight.shape[1]:
        return None
    return {weight.shape[0]: False, weight.shape[1]: True}.get(bias.numel)
