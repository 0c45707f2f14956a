"""Columns of weights that do not change while a model learns a language: Source-Shielded Updates.

Yamaguchi et al. 2025 (arXiv 2512.04844): text in English shows which input features a layer depends on, and the
columns of its weights that multiply the most important ones stay as they are. It protects English during training;
slack in a merge does so after it.

Here a column's score is the sum of Wanda's scores (Sun et al. 2024, arXiv 2306.11695) over the column: the norm of the
input feature over the calibration tokens, times the sum of |weight|. Only linear layers of the decoder are frozen, as
LoRA adapts them; embeddings, norms and the output head are trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from train.data.blocks import Blocks
from train.data.packing import IGNORED
from train.settings import FrozenColumns


def linear_layers(model: transformers.PreTrainedModel) -> dict[str, nn.Module]:
    """Return the linear layers of a decoder by name, without the output head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def columns(module: nn.Module) -> Tensor:
    """Return a view of a layer's weight as [outputs, inputs]: a column multiplies one input feature."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().T if isinstance(module, Conv1D) else weight.detach()


@torch.no_grad()
def score_columns(model: transformers.PreTrainedModel, blocks: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return how important each input feature of each linear layer is for the text in `blocks`.

    blocks: rows of `train.data.blocks.Blocks`; padding does not count. Returns float64 of (inputs,) by layer:
    ||x_j||_2 * sum_i |W_ij|.
    """
    layers = linear_layers(model)
    squares = {name: torch.zeros(columns(layer).shape[1], dtype=torch.float64) for name, layer in layers.items()}
    real = torch.empty(0, dtype=torch.bool)

    def add(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            features = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            # experts get some of the tokens, in an order of their own; padding among them counts
            features = features[real.to(features.device)] if len(features) == len(real) else features
            squares[name] += features.double().square().sum(0).cpu()

        return hook

    hooks = [layer.register_forward_pre_hook(add(name)) for name, layer in layers.items()]
    training = model.training
    model.eval()
    try:
        for row in blocks:
            real = is_real(row["labels"])
            inputs = {name: row[name][None].to(model.device) for name in ("input_ids", "position_ids") if name in row}
            model(**inputs, use_cache=False)
    finally:
        for handle in hooks:
            handle.remove()
        model.train(training)
    return {name: squares[name].sqrt() * columns(layer).double().abs().sum(0).cpu() for name, layer in layers.items()}


def is_real(labels: Tensor) -> Tensor:
    """Return which positions of a block are not padding: those up to the last one with a loss. Bool of (block,)."""
    trained = (labels != IGNORED).nonzero()
    last = int(trained[-1]) if len(trained) else -1
    return torch.arange(len(labels)) <= last


def choose_columns(scores: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Return the indices of each layer's most important columns, ascending; of equal ones, the first.

    fraction: of the columns of each layer, rounded to the nearest number.
    """
    chosen = {}
    for name, score in scores.items():
        count = math.floor(fraction * len(score) + 0.5)
        chosen[name] = score.argsort(descending=True, stable=True)[:count].sort().values
    return chosen


class ColumnFreezing(transformers.TrainerCallback):
    """A callback that keeps columns of weights as they were at the start, bit for bit.

    Gradients of frozen columns are zero, so that they do not count where gradients are clipped. AdamW's weight decay
    needs no gradient, so the columns are written back after each step. That needs a copy of them.
    """

    def __init__(self, model: transformers.PreTrainedModel, frozen: Mapping[str, Tensor]) -> None:
        layers = linear_layers(model)
        self.frozen = [(layers[name], index.to(model.device)) for name, index in frozen.items()]
        self.kept = [columns(layer)[:, index].clone() for layer, index in self.frozen]
        for layer, index in self.frozen:
            layer.weight.register_hook(_without_columns(layer, index))  # type: ignore[operator, union-attr]
        self.facts = {
            "frozen_weights": sum(kept.numel() for kept in self.kept),
            "linear_weights": sum(columns(layer).numel() for layer in layers.values()),
        }

    @torch.no_grad()
    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Write the frozen columns back."""
        for (layer, index), kept in zip(self.frozen, self.kept, strict=True):
            columns(layer)[:, index] = kept


def _without_columns(layer: nn.Module, index: Tensor) -> Any:
    dimension = 0 if isinstance(layer, Conv1D) else 1
    return lambda gradient: gradient.index_fill(dimension, index, 0.0)


def important_columns(
    model: transformers.PreTrainedModel, calibration: Blocks, settings: FrozenColumns
) -> dict[str, Tensor]:
    """Return the columns that the first blocks of `calibration` need most, see `choose_columns`."""
    rows = (calibration[number] for number in range(min(settings.blocks, len(calibration))))
    return choose_columns(score_columns(model, rows), settings.fraction)
