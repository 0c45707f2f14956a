"""Batches of rows, widest first: as many rows as fit into a forward pass, and fewer if memory runs out."""

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
LOGITS_BYTES = 2 << 30  # of the logits of one forward pass; one row may have more
SLICE_BYTES = 256 << 20  # of logits that are brought to float32 at a time
OUT_OF_MEMORY_TEXTS = ("out of memory", "not enough memory", "can't allocate memory", "cublas_status_alloc_failed")
log = logging.getLogger(__name__)


@dataclass
class BatchLimits:
    """The limits of a forward pass; a single row may exceed them.

    tokens: padding included. positions: those whose logits are kept, (positions, vocabulary) numbers.
    """

    tokens: int
    positions: int

    @staticmethod
    def of(batch_tokens: int, model: Any) -> BatchLimits:
        return BatchLimits(batch_tokens, logits_positions(vocabulary_of(model), model.dtype.itemsize))

    def halve(self, tokens: int, positions: int) -> None:
        """Bring both to half of a batch that did not fit, or less."""
        self.tokens, self.positions = max(1, tokens // 2), max(1, min(self.positions, positions // 2))


def default_batch_tokens(device: str) -> int:
    """Return the default number of tokens in one forward pass, by the kind of device."""
    return BATCH_TOKENS["cpu" if device == "cpu" else "elsewhere"]


def logits_positions(vocabulary: int, itemsize: int) -> int:
    """Return the number of positions whose logits fit into LOGITS_BYTES."""
    return max(1, LOGITS_BYTES // (vocabulary * itemsize))


def vocabulary_of(model: Any) -> int:
    """Return the width of a model's logits."""
    return int(model.config.get_text_config().vocab_size)


def run_batches(
    rows: Sequence[Row],
    size: Callable[[Sequence[Row]], tuple[int, int]],
    limits: BatchLimits,
    run: Callable[[Sequence[Row]], Result],
) -> Iterator[tuple[Sequence[Row], Result]]:
    """Run batches of rows in their order; yield each with its result.

    size: returns the tokens of a batch and the positions whose logits it keeps. If a batch runs out of memory, the
    limits become half of its size, and its rows are tried again. Raises BadInput if a single row does not fit.
    """
    start = 0
    while start < len(rows):
        batch = first_that_fit(rows[start:], size, limits)
        done, result = _try_batch(run, batch)
        if done:
            assert result is not None
            yield batch, result
            start += len(batch)
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
    """Return the first rows that fit within the limits, at least one."""
    count = 1
    while count < len(rows):
        tokens, positions = size(rows[: count + 1])
        if tokens > limits.tokens or positions > limits.positions:
            break
        count += 1
    return rows[:count]


def _try_batch(run: Callable[[Sequence[Row]], Result], batch: Sequence[Row]) -> tuple[bool, Result | None]:
    """Return whether a batch fitted into memory, and its result."""
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
    """Return whether an error means that a device or the host has no memory left."""
    message = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(text in message for text in OUT_OF_MEMORY_TEXTS)
