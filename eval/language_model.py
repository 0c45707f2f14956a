"""lm-eval's HFLM, made cheap for many small evaluations.

A prompt runs once for all its choices, and a text is tokenised once for all models.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from common.errors import BadInput

# (context and continuation as text, or None in a rolling window; the token ids of both)
Request = tuple[Any, list[int], list[int]]
Answer = tuple[float, bool]  # log-likelihood in nats, whether greedy decoding would give the continuation
log = logging.getLogger(__name__)
# HFLM warns of every model given in memory; what a user must know is refused or logged by us.
logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)


@dataclass
class Pack:
    """One row of a batch: a prompt, then all but the last token of each continuation: `prompt | a1 a2 | b1 | c1 c2 c3`.

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


class PackedLM(HFLM):
    """HFLM whose loglikelihoods come from packed rows.

    Every continuation sees the prompt and itself, at the positions that it would have alone. The numbers are those of
    HFLM. Where a model does not give them with packed rows (it may take no 4-D mask, or have a sliding window or a
    recurrent state), HFLM's own way is taken: choices and whole texts are each checked once, on a batch with padding.

    batch_tokens: tokens in one forward pass, padding included.
    encodings: tokens by text, filled as texts are met; it may be shared by all models with the same tokenizer.
    trained_length: tokens of the blocks that the model was trained on (None: whatever it can read). A block's last
    token is predicted and never read, so a window of text reads and predicts one token less; 2 or more.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_tokens: int,
        encodings: dict[Any, list[int]],
        trained_length: int | None = None,
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer)
        if self.max_length < 1:
            raise BadInput(f"model: reads {self.max_length} tokens, as its config.json says; expected 1 or more")
        self.window = min(self.max_length, trained_length - 1) if trained_length else self.max_length
        self.batch_size_per_gpu = max(1, batch_tokens // self.max_length)
        self.batch_tokens, self.encodings = batch_tokens, encodings
        self.packable: dict[bool, bool] = {}  # of whole texts, and of choices

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        key = (string, add_special_tokens, left_truncate_len, *sorted(kwargs.items()))
        if key not in self.encodings:
            self.encodings[key] = super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs)
        return self.encodings[key]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Answer]:
        return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihoods of whole texts in nats, read in lm-eval's windows, all of which are scored in one go.

        A window begins with one token of context; the last one goes as far back as a window reaches.
        """
        windows: list[Request] = []
        texts: list[int] = []  # whose window it is
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, max_seq_len=self.window, context_len=1
            )
            pairs = [make_disjoint_window(pair) for pair in rolling]
            windows += [(None, context, continuation) for context, continuation in pairs]
            texts += [number] * len(pairs)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(texts, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[Answer]:
        packs = self._packs(requests)
        whole_texts = requests[0][0] is None
        if whole_texts not in self.packable:
            self.packable[whole_texts] = self._can_pack(packs, requests)
        if self.packable[whole_texts]:
            scored = {
                number: answer
                for batch in batches(packs, self.batch_tokens)
                for number, answer in self._score(batch).items()
            }
            answers = [scored[number] for number in range(len(requests))]
        else:
            answers = super()._loglikelihood_tokens(list(requests), True, override_bs)
        if any(isnan(value) for value, _ in answers):
            raise BadInput(
                "model: gives log-likelihoods that are not numbers (NaN); its training or merging has diverged"
            )
        return answers

    def _packs(self, requests: Sequence[Request]) -> list[Pack]:
        """Requests by prompt, cut from the left to what the model reads, as in HFLM; a rolling window stands alone."""
        packs: dict[Any, Pack] = {}
        cut = beyond = 0
        for number, (text, context, continuation) in enumerate(requests):
            prompt = (context + continuation)[-(self.max_length + 1) :][: -len(continuation)]
            if not prompt:
                limits = f"it reads {self.max_length} tokens, and a choice has {len(continuation)}"
                raise BadInput(f"model: {limits}: {str(text)[-100:]!r}")
            cut += len(prompt) < len(context)
            beyond += text is not None and len(prompt) + len(continuation) - 1 > self.window
            pack = packs.setdefault(number if text is None else tuple(prompt), Pack(prompt, [], []))
            pack.continuations.append(continuation)
            pack.numbers.append(number)
        if cut:
            log.warning(
                "%d of %d prompts were cut from the left to the model's %d tokens", cut, len(requests), self.max_length
            )
        if beyond and self.window < self.max_length:
            log.warning("%d of %d prompts are longer than the %d tokens trained on", beyond, len(requests), self.window)
        return list(packs.values())

    def _can_pack(self, packs: Sequence[Pack], requests: Sequence[Request]) -> bool:
        """Whether the extremes, the widest and the shortest and longest prompts, score in one batch as HFLM has it."""
        by_prompt = [extreme(packs, key=lambda pack: len(pack.prompt)) for extreme in (min, max)]
        extremes = (max(packs, key=lambda pack: pack.width), *by_prompt)
        batch = [pack for number, pack in enumerate(extremes) if pack not in extremes[:number]]
        numbers = [number for pack in batch for number in pack.numbers]
        expected = super()._loglikelihood_tokens([requests[number] for number in numbers], True, len(numbers))
        try:
            packed = self._score(batch)
        except (TypeError, ValueError, RuntimeError, NotImplementedError):
            return False
        close = 1e-4 if self.model.dtype == torch.float32 else 2e-2
        return all(
            abs(packed[number][0] - value) <= close * (1 + abs(value))
            for number, (value, _) in zip(numbers, expected, strict=True)
        )

    @torch.no_grad()
    def _score(self, batch: list[Pack]) -> dict[int, Answer]:
        """Log-likelihoods by the requests' numbers, from one forward pass over rows of (left + tail) tokens.

        Prompts end in one column and continuations follow, so that only the last columns need logits.
        """
        left, tail = max(len(pack.prompt) for pack in batch), max(pack.tail for pack in batch)
        tokens = torch.zeros(len(batch), left + tail, dtype=torch.long)
        positions = torch.zeros_like(tokens)
        segments = torch.full_like(tokens, -1)  # -1 padding, 0 prompt, 1.. continuations
        wanted: list[tuple[int, int, int]] = []  # (row, column among those kept, token)
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
        logits = self.model(
            input_ids=tokens.to(self.device),
            position_ids=positions.to(self.device),
            attention_mask=self._mask(segments),
            logits_to_keep=tail + 1,
            use_cache=False,
        ).logits.float()
        rows, columns, targets = torch.tensor(wanted, device=logits.device).T
        values = (logits[rows, columns, targets] - logits.logsumexp(-1)[rows, columns]).tolist()
        greedy = (logits.argmax(-1)[rows, columns] == targets).tolist()
        answers, at = {}, 0
        for pack in batch:
            for number, continuation in zip(pack.numbers, pack.continuations, strict=True):
                end = at + len(continuation)
                answers[number] = (sum(values[at:end]), all(greedy[at:end]))
                at = end
        return answers

    def _mask(self, segments: torch.Tensor) -> torch.Tensor | None:
        """Additive attention mask, (rows, 1, width, width), of segments, (rows, width).

        None where plain causal attention is the same: no padding before the prompt, one continuation.
        """
        if bool((segments[:, 0] >= 0).all()) and int(segments.max()) <= 1:
            return None
        width = segments.shape[1]
        asks, holds = segments[:, :, None], segments[:, None, :]
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        seen = causal & ((holds == 0) | (holds == asks))  # padding sees padding: no row is empty
        mask = torch.zeros(seen.shape, dtype=self.model.dtype).masked_fill(~seen, torch.finfo(self.model.dtype).min)
        return mask[:, None].to(self.device)


def batches(packs: list[Pack], batch_tokens: int) -> Iterator[list[Pack]]:
    """Packs by falling width, as many at once as fit `batch_tokens` tokens with padding (one, where one is wider)."""
    batch: list[Pack] = []
    left = tail = 0
    for pack in sorted(packs, key=lambda pack: (-pack.width, pack.numbers[0])):
        wider, longer = max(left, len(pack.prompt)), max(tail, pack.tail)
        if batch and (len(batch) + 1) * (wider + longer) > batch_tokens:
            yield batch
            batch, wider, longer = [], len(pack.prompt), pack.tail
        batch, left, tail = [*batch, pack], wider, longer
    yield batch
