"""Rows of tokens -> log-likelihoods of their continuations, in one forward pass.

Two layouts. Packed: a prompt runs once for all its continuations, which see it and themselves alone. Plain: a
sequence as it is, padded on the right, which every causal model reads as if it stood alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eval.memory import SLICE_BYTES

Answer = tuple[float, bool]  # log-likelihood in nats, whether greedy decoding would give the continuation
Wanted = list[tuple[int, int, int]]  # (row, column among those kept, token)


@dataclass
class Pack:
    """A packed row: a prompt, then all but the last token of each continuation: `prompt | a1 a2 | b1 | c1 c2 c3`.

    numbers: those of the requests that the continuations belong to, in the order of the continuations.
    """

    prompt: list[int]
    continuations: list[list[int]]
    numbers: list[int]

    @property
    def tail(self) -> int:
        return sum(len(tokens) - 1 for tokens in self.continuations)

    @property
    def width(self) -> int:
        return len(self.prompt) + self.tail

    @staticmethod
    def size(batch: Sequence[Pack]) -> tuple[int, int]:
        """The tokens of a batch, padding included, and the positions whose logits are kept."""
        tail = max(pack.tail for pack in batch)
        return len(batch) * (max(len(pack.prompt) for pack in batch) + tail), len(batch) * (tail + 1)

    @staticmethod
    def score(model: Any, batch: Sequence[Pack]) -> dict[int, Answer]:
        """Log-likelihoods by the requests' numbers.

        Prompts end in one column and continuations follow, so that only the last columns need logits.
        """
        left, tail = max(len(pack.prompt) for pack in batch), max(pack.tail for pack in batch)
        tokens = torch.zeros(len(batch), left + tail, dtype=torch.long)
        positions = torch.zeros_like(tokens)
        segments = torch.full_like(tokens, -1)  # -1 padding, 0 prompt, 1.. continuations
        wanted: Wanted = []
        for row, pack in enumerate(batch):
            length = len(pack.prompt)
            tokens[row, left - length : left] = torch.tensor(pack.prompt)
            positions[row, left - length : left] = torch.arange(length)
            segments[row, left - length : left] = 0
            start = left
            for segment, continuation in enumerate(pack.continuations, start=1):
                end = start + len(continuation) - 1
                tokens[row, start:end] = torch.tensor(continuation[:-1], dtype=torch.long)
                positions[row, start:end] = torch.arange(length, length + end - start)
                segments[row, start:end] = segment
                columns_of = [0, *range(start - left + 1, end - left + 1)]
                wanted += zip([row] * len(continuation), columns_of, continuation, strict=True)
                start = end
        mask = mask_of(segments, model.dtype)
        with torch.no_grad():
            logits = model(
                input_ids=tokens.to(model.device),
                position_ids=positions.to(model.device),
                attention_mask=None if mask is None else mask.to(model.device),
                logits_to_keep=tail + 1,
                use_cache=False,
            ).logits
        return _answers(batch, logits, wanted)


@dataclass
class Plain:
    """A plain row: a prompt and a continuation, all but its last token.

    continuations, numbers: of the requests that have these tokens, such as choices of one token after one prompt.
    """

    tokens: list[int]
    continuations: list[list[int]]
    numbers: list[int]

    @property
    def width(self) -> int:
        return len(self.tokens)

    @property
    def start(self) -> int:
        """The first column whose logits are wanted."""
        return len(self.tokens) - max(len(tokens) for tokens in self.continuations)

    @staticmethod
    def size(batch: Sequence[Plain]) -> tuple[int, int]:
        """The tokens of a batch, padding included, and the positions whose logits are kept."""
        width = max(row.width for row in batch)
        return len(batch) * width, len(batch) * (width - min(row.start for row in batch))

    @staticmethod
    def score(model: Any, batch: Sequence[Plain]) -> dict[int, Answer]:
        """Log-likelihoods by the requests' numbers. Some models keep the logits of all positions."""
        width, start = max(row.width for row in batch), min(row.start for row in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        wanted: Wanted = []
        for number, row in enumerate(batch):
            tokens[number, : row.width] = torch.tensor(row.tokens)
            for continuation in row.continuations:
                columns = range(row.width - len(continuation) - start, row.width - start)
                wanted += zip([number] * len(continuation), columns, continuation, strict=True)
        savings = {"logits_to_keep": width - start, "use_cache": False}
        taken = inspect.signature(model.forward).parameters
        with torch.no_grad():
            logits = model(
                input_ids=tokens.to(model.device), **{key: value for key, value in savings.items() if key in taken}
            ).logits
        return _answers(batch, logits[:, -(width - start) :], wanted)


def mask_of(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """Additive attention mask, (rows, 1, width, width), of segments, (rows, width).

    None where plain causal attention is the same: no padding before the prompt, one continuation.
    """
    if bool((segments[:, 0] >= 0).all()) and int(segments.max()) <= 1:
        return None
    width = segments.shape[1]
    asks, holds = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = causal & ((holds == 0) | (holds == asks))  # padding sees padding: no row is empty
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return mask[:, None]


def _answers(batch: Sequence[Pack] | Sequence[Plain], logits: torch.Tensor, wanted: Wanted) -> dict[int, Answer]:
    """Log-likelihoods of the continuations, from logits of shape (rows, columns kept, vocabulary).

    wanted: the places of all continuations' tokens, in the order of the batch. In float32, a slice at a time.
    """
    rows, columns, targets = torch.tensor(wanted, device=logits.device).T
    values: list[float] = []
    greedy: list[bool] = []
    step = max(1, SLICE_BYTES // (4 * logits.shape[-1]))
    for first in range(0, len(wanted), step):
        some = slice(first, first + step)
        predicted, target = logits[rows[some], columns[some]].float(), targets[some]
        chosen = predicted.gather(1, target[:, None])[:, 0]
        values += (chosen - predicted.logsumexp(-1)).tolist()
        greedy += (predicted.argmax(-1) == target).tolist()
    answers, at = {}, 0
    for row in batch:
        for number, continuation in zip(row.numbers, row.continuations, strict=True):
            end = at + len(continuation)
            answers[number] = (sum(values[at:end]), all(greedy[at:end]))
            at = end
    return answers
