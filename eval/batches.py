"""Rows by falling width in batches: as many as fit the tokens of a forward pass, fewer where memory runs out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from common.errors import BadInput

Row = TypeVar("Row")
Result = TypeVar("Result")
BATCH_TOKENS = {"cpu": 1024, "elsewhere": 8192}  # on a CPU what fits its caches is fastest, on a GPU what fills it
OUT_OF_MEMORY_TEXTS = ("out of memory", "not enough memory", "can't allocate memory", "cublas_status_alloc_failed")
log = logging.getLogger(__name__)


@dataclass
class BatchLimits:
    """What a forward pass may hold. One row passes in any case.

    tokens: padding included. positions: those whose logits are kept, (positions, vocabulary) numbers.
    """

    tokens: int
    positions: int

    @staticmethod
    def of(batch_tokens: int, model: Any) -> BatchLimits:
        return BatchLimits(batch_tokens, logits_positions(vocabulary_of(model), model.dtype.itemsize))

    def halve(self, tokens: int, positions: int) -> None:
        """Bring both below half of what a batch had that did not fit."""
        self.tokens, self.positions = max(1, tokens // 2), max(1, min(self.positions, positions // 2))


def default_batch_tokens(device: str) -> int:
    """Return the default number of tokens in one forward pass, by the kind of device."""
    return BATCH_TOKENS["cpu" if device == "cpu" else "elsewhere"]


def vocabulary_of(model: Any) -> int:
    """The width of a model's logits."""
    return int(model.config.get_text_config().vocab_size)


def run_batches(
    rows: Sequence[Row],
    size: Callable[[Sequence[Row]], tuple[int, int]],
    limits: BatchLimits,
    run: Callable[[Sequence[Row]], Result],
) -> Iterator[tuple[Sequence[Row], Result]]:
    """Run batches of rows in their order; yield each with its result.

    size: the tokens of a batch and the positions whose logits it keeps. Where a batch runs out of memory, the limits
    become half of what it had, and its rows are tried again. Raises BadInput where one row is too much.
    """
    at = 0
    while at < len(rows):
        batch = first_that_fit(rows[at:], size, limits)
        done, result = _try_batch(run, batch)
        if done:
            assert result is not None
            yield batch, result
            at += len(batch)
            continue
        tokens, positions = size(batch)
        if len(batch) == 1:
            raise BadInput(
                f"model: memory runs out on one row of {tokens} tokens. "
                "Set eval.gpus to spread the model, or take a larger GPU or shorter texts and prompts."
            )
        limits.halve(tokens, positions)
        log.warning("memory ran out on %d rows of %d tokens in all; the next have half", len(batch), tokens)


def first_that_fit(
    rows: Sequence[Row], size: Callable[[Sequence[Row]], tuple[int, int]], limits: BatchLimits
) -> Sequence[Row]:
    """The first rows that fit within the limits, at least one."""
    count = 1
    while count < len(rows):
        tokens, positions = size(rows[: count + 1])
        if tokens > limits.tokens or positions > limits.positions:
            break
        count += 1
    return rows[:count]


def _try_batch(run: Callable[[Sequence[Row]], Result], batch: Sequence[Row]) -> tuple[bool, Result | None]:
    """Whether a batch ran within the memory, and its result."""
    try:
        return True, run(batch)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
    gc.collect()  # after the except clause, which keeps the tensors of the frames that it left alive
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False, None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host has no memory left."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(text in said for text in OUT_OF_MEMORY_TEXTS)


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
