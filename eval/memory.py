"""Bytes that scoring needs beside a model's weights. Pure arithmetic, for plans too."""

from __future__ import annotations

from dataclasses import dataclass

LOGITS_BYTES = 2 << 30  # of the logits of one forward pass; one row may have more
SLICE_BYTES = 256 << 20  # of logits that are brought to float32 at a time


@dataclass(frozen=True)
class ScoringMemory:
    """Bytes on the device at the peak of scoring. They do not fall together: a plan takes the larger of two.

    logits: the logits of a forward pass, in the model's dtype, and a slice of them in float32. A model that changes
    its logits (Gemma 2 caps them) holds them twice for a moment.
    cache: the keys and values of generation.
    """

    logits: int
    cache: int

    @property
    def peak(self) -> int:
        return max(self.logits, self.cache)


def scoring_memory(
    vocabulary: int, layers: int, key_value_width: int, batch_tokens: int, longest_row: int, itemsize: int
) -> ScoringMemory:
    """The memory of scoring and generating in batches of `batch_tokens` tokens.

    key_value_width: key-value heads times the width of a head. longest_row: tokens of the longest text window, prompt
    or prompt with what is generated: one row passes whatever its size. itemsize: bytes of a number, 2 in bfloat16.

    logits = max(min(batch_tokens, LOGITS_BYTES / (vocabulary itemsize)), longest_row) vocabulary itemsize
             + 3 SLICE_BYTES
    cache  = max(batch_tokens, longest_row) 2 layers key_value_width itemsize
    """
    positions = max(min(batch_tokens, logits_positions(vocabulary, itemsize)), longest_row)
    kept = max(batch_tokens, longest_row)
    return ScoringMemory(
        positions * vocabulary * itemsize + 3 * SLICE_BYTES, kept * 2 * layers * key_value_width * itemsize
    )


def logits_positions(vocabulary: int, itemsize: int) -> int:
    """How many positions' logits fit into LOGITS_BYTES."""
    return max(1, LOGITS_BYTES // (vocabulary * itemsize))
