"""FLOPs per token.

A forward pass multiplies and adds once for each parameter, 2N; the backward pass costs twice that: 6N in training
(Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1, which leaves out the embedding, as we do,
but not the head). Attention adds, for each layer, the products of queries with keys and of weights with values over the
T positions of a block: 12·L·H·Q·T in training, a third of it forward (Chowdhery et al. 2022, "PaLM", appendix B, whose
model FLOPs utilisation has 6N + 12·L·H·Q·T in its numerator; H·Q is the hidden width, and the causal half is not taken
off). Recomputed activations are not model FLOPs; they count in the time only.
"""

from __future__ import annotations

from pipeline.config.models import ModelShape

RECOMPUTED = 4 / 3  # what is computed with gradient checkpointing, of what is computed without: one more forward pass


def forward(shape: ModelShape, context: float) -> float:
    """FLOPs of a token in a forward pass over blocks of `context` tokens."""
    return 2 * shape.matmul_parameters + 4 * shape.layers * shape.query_width * context


def training(shape: ModelShape, context: float, frozen: bool = False) -> float:
    """FLOPs of a token in training, forward and backward.

    `frozen`: the weights get no gradients of their own (LoRA), only what passes through them does.
    """
    return (2 if frozen else 3) * forward(shape, context)
