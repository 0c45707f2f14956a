"""The mean of a training's last checkpoints, in place of a decay of its learning rate.

Under `decay_shape: average` a branch keeps the constant rate of its trunk, and the published weights are the mean of
those at the ends of equal parts of the branch. That is the simple moving average of checkpoints at a fixed interval of
PMA (Li et al. 2025, arXiv 2505.12082), and WSM's mean over a merge window of n intervals (Tian et al. 2025, arXiv
2507.17634). Neither counts the checkpoint before the first interval, so the start of the branch is left out. WSM shows
that this equals a decay: the step i of the branch counts by the fraction of the averaged checkpoints that come after
it, so n checkpoints are a linear decay in n stairs.

Bits per byte on dev and the state are those of the current weights: only published weights are averaged. Importing
this module imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import BadInput
from train.memory_saving import STRATEGIES
from train.settings import Compute, TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE = "weight_average.safetensors"  # in a checkpoint


def contradiction(lora: bool, strategy: str) -> str | None:
    """Describe, beginning with the key, why a training cannot average its weights; None: it can."""
    if lora:
        return (
            "ct.decay_shape=average: averages whole weights, and the mean of LoRA's factors is not the mean of their"
            " products, got train.lora. Set train=full, or ct.decay_shape=linear or 1-sqrt."
        )
    if strategy not in STRATEGIES:
        return (
            f"ct.decay_shape=average: needs all weights in each process, got compute.strategy={strategy}."
            " Set compute.strategy=none or ddp, or ct.decay_shape=linear or 1-sqrt."
        )
    return None


def check(settings: TrainingSettings, compute: Compute) -> None:
    """Raise BadInput if a training should average its weights and cannot."""
    if settings.averaged_steps and (wrong := contradiction(settings.lora is not None, compute.strategy)):
        raise BadInput(wrong)


class WeightAverage:
    """The running mean of a model's trained weights after some steps, in float32 in main memory.

    In the first process only. A mean that is updated, unlike a sum that is divided in the end, keeps weights that do
    not change as they are, bit for bit: columns that are frozen, and embeddings of tokens that the text does not have.
    """

    def __init__(self, steps: Sequence[int], start: Path | None) -> None:
        """Begin a mean over the weights after `steps`. start: the state that the training resumes from."""
        self.steps, self.start = steps, start
        self.mean: dict[str, Tensor] = {}

    def resume(self, step: int) -> None:
        """Read the mean that the state after `step` has. Raises BadInput if it is not the mean of this training."""
        due = [each for each in self.steps if each <= step]
        if not due:
            return
        from safetensors import safe_open

        assert self.start is not None
        file, found = self.start / FILE, None
        if file.exists():
            with safe_open(file, framework="pt") as tensors:
                found = json.loads(tensors.metadata()["steps"])
                self.mean = {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118
        if found != due:
            raise BadInput(
                f"{self.start}: must have the mean of the weights after steps {due}, got {found or 'none'}."
                f" Resume from a state before step {due[0]}."
            )

    def update(self, step: int, model: nn.Module) -> None:
        """Count the weights after `step`, one of the steps."""
        import torch

        count = self.steps.index(step) + 1
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            weight = parameter.detach().to("cpu", torch.float32, copy=count == 1)
            self.mean[name] = self.mean[name].lerp_(weight, 1 / count) if count > 1 else weight

    def write(self, checkpoint: Path, step: int) -> None:
        """Write the mean so far as a part of the checkpoint after `step`."""
        if not self.mean:
            return
        from safetensors.torch import save_file

        done = [each for each in self.steps if each <= step]
        save_file(self.mean, checkpoint / FILE, {"steps": json.dumps(done)})

    def averaged(self, weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Return the weights with their means, under each name of a tied one."""
        means = {id(parameter): self.mean.get(name) for name, parameter in model.named_parameters()}
        every = {name: means[id(each)] for name, each in model.named_parameters(remove_duplicate=False)}
        return weights | {name: mean for name, mean in every.items() if mean is not None and name in weights}
