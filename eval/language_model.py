"""lm-eval's HFLM, fast for many small evaluations.

A prompt runs once for all its choices, and a text is tokenised once for all models.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from math import isnan
from typing import Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from common.chat import DEFAULT_DAY
from common.errors import BadInput
from common.special_tokens import added_special_tokens
from eval.batches import BatchLimits, run_batches
from eval.packing import LogLikelihood, PackedRow, PlainRow, is_packable, is_paddable
from eval.prompting import chat_template_of, render_chat

# (context and continuation as text, or None in a rolling window; the token ids of both)
Request = tuple[Any, list[int], list[int]]
Window = tuple[list[int], list[int]]  # context, continuation
Row = TypeVar("Row", PackedRow, PlainRow)
log = logging.getLogger(__name__)
# HFLM warns of every model given in memory; we reject or log what a user must know.
logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)


class PackedLM(HFLM):
    """HFLM whose loglikelihoods come from packed rows.

    Every continuation attends to the prompt and itself, at the positions that it would have alone. The numbers are
    those of HFLM. If an architecture does not give them with packed rows (eval/packing.py), and for running text, rows
    are plain. Two things differ from HFLM for tokenizers that put special tokens around a text: those before it are the
    context of the text's first token and are not predicted themselves, and those after it are left out.

    batch_tokens: tokens in one forward pass, padding included; in generation also those that may be generated.
    encodings: a cache of tokens by text, which models with the same tokenizer may share.
    trained_length: tokens of the blocks that the model was trained on (None: the model's context). A block's last token
    is predicted and never read, so a window of text reads and predicts one token less; 2 or more.
    day: for today in chat templates that write it.
    packed: whether choices were scored in packed rows; None before any was.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_tokens: int,
        encodings: dict[Any, list[int]],
        trained_length: int | None = None,
        day: str = DEFAULT_DAY,
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer)
        if self.max_length < 1:
            raise BadInput(f"model: reads {self.max_length} tokens, as its config.json says; expected 1 or more")
        self.window = min(self.max_length, trained_length - 1) if trained_length else self.max_length
        self.limits, self.encodings = BatchLimits.of(batch_tokens, model), encodings
        self.before, self.after = added_special_tokens(tokenizer)
        self.day = day
        self.packed: bool | None = None

    @property
    def tokenizer_name(self) -> str:
        """Return what chat prompts depend on: tasks cache their requests by it."""
        content = (
            chat_template_of(self.tokenizer),
            sorted(map(str, self.tokenizer.special_tokens_map.items())),
            self.day,
        )
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render messages by the model's chat template. HFLM would drop a system message that the template rejects."""
        return render_chat(self.tokenizer, chat_history, self.day, generation=add_generation_prompt)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """Return the ids of a text, without what the tokenizer puts after it: an EOS would end a prompt."""
        key = (string, add_special_tokens, left_truncate_len, *sorted(kwargs.items()))
        if key not in self.encodings:
            tokens: list[int] = super().tok_encode(string, add_special_tokens, None, **kwargs)
            if self.after and len(tokens) > len(super().tok_encode(string, False, None, **kwargs)):
                tokens = tokens[: -len(self.after)]
            self.encodings[key] = tokens[-left_truncate_len:] if left_truncate_len else tokens
        return self.encodings[key]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids of prompts and the mask of what is not padding, both (prompts, longest), padded on the left."""
        encoded = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        longest = max(len(tokens) for tokens in encoded)
        ids = torch.full((len(encoded), longest), self.tokenizer.pad_token_id or 0, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, longest - len(tokens) :] = torch.tensor(tokens, dtype=torch.long)
            mask[row, longest - len(tokens) :] = 1
        return ids, mask

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[LogLikelihood]:
        return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Return log-likelihoods of texts in nats. Texts are read in lm-eval's windows, which are scored together.

        The first token of a text is predicted from what the tokenizer puts before it, or else from the prefix token
        (BOS, or EOS for a tokenizer without BOS).
        """
        before = self.before or [self.prefix_token_id]
        windows: list[Request] = []
        texts: list[int] = []  # the text of each window
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            for context, continuation in rolling_windows(tokens, before, self.window):
                windows.append((None, context, continuation))
                texts.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(texts, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Return generated texts, by HFLM, in batches by the longest prompt of each.

        Prompts are padded on the left. If padding changes a model's output, as with some recurrent states, the prompts
        of a batch have one length.
        """
        answers: dict[int, str] = {}
        for group in generation_groups([request.args[1] for request in requests]):
            room = normalize_gen_kwargs(requests[group[0]].args[1], self.max_gen_toks)["max_gen_toks"]
            lengths = {number: self._prompt_length(requests[number].args[0], room) for number in group}
            may_pad = len(group) == 1 or is_paddable(self.model.config)
            for part in [group] if may_pad else by_length(group, lengths):
                ordered = sorted(part, key=lambda number: (-lengths[number], number))

                def size(batch: Sequence[int], lengths: dict[int, int] = lengths, room: int = room) -> tuple[int, int]:
                    return len(batch) * (max(lengths[number] for number in batch) + room), len(batch)

                for batch, texts in run_batches(
                    ordered, size, self.limits, lambda some: self._generate(requests, some)
                ):
                    answers |= dict(zip(batch, texts, strict=True))
        return [answers[number] for number in range(len(requests))]

    def _prompt_length(self, prompt: str, room: int) -> int:
        return min(len(self.tok_encode(prompt)), self.max_length - room)

    def _generate(self, requests: list[Any], batch: Sequence[int]) -> list[str]:
        self.batch_size_per_gpu = len(batch)
        texts: list[str] = super().generate_until([requests[number] for number in batch], True)
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[LogLikelihood]:
        if not requests:
            return []
        prompts = self._prompts(requests)
        whole_texts = requests[0][0] is None
        if not whole_texts and self.packed is None:
            self.packed = is_packable(self.model.config)
        scored: dict[int, LogLikelihood] = {}
        if whole_texts or not self.packed:
            rows = by_width(plain_rows(requests, prompts))
            for _, answers in run_batches(
                rows, PlainRow.size, self.limits, lambda some: PlainRow.score(self.model, some)
            ):
                scored |= answers
        else:
            packs = by_width(packed_rows(requests, prompts))
            for _, answers in run_batches(
                packs, PackedRow.size, self.limits, lambda some: PackedRow.score(self.model, some)
            ):
                scored |= answers
        if any(isnan(value) for value, _ in scored.values()):
            raise BadInput(
                "model: gives log-likelihoods that are not numbers (NaN); its training or merging has diverged"
            )
        return [scored[number] for number in range(len(requests))]

    def _prompts(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return the contexts of requests, cut from the left to the model's context, as in HFLM."""
        prompts: list[list[int]] = []
        cut = too_long = 0
        for text, context, continuation in requests:
            prompt = (context + continuation)[-(self.max_length + 1) :][: -len(continuation)]
            if not context:
                raise BadInput(
                    f"tasks: a prompt of spaces alone has no tokens, got {text}. Give it text, or leave it empty."
                )
            if not prompt:
                limits = f"it reads {self.max_length} tokens, and a choice has {len(continuation)}"
                raise BadInput(f"model: {limits}: {str(text)[-100:]!r}")
            cut += len(prompt) < len(context)
            too_long += text is not None and len(prompt) + len(continuation) - 1 > self.window
            prompts.append(prompt)
        if cut:
            log.warning(
                "%d of %d prompts were cut from the left to the model's %d tokens", cut, len(requests), self.max_length
            )
        if too_long and self.window < self.max_length:
            log.warning(
                "%d of %d prompts are longer than the %d tokens trained on", too_long, len(requests), self.window
            )
        return prompts


def rolling_windows(tokens: list[int], before: list[int], width: int) -> Iterator[Window]:
    """Yield a text in windows of at most `width` tokens, as (context, continuation); each token is predicted once.

    The first window begins with `before`, the special tokens before a text (the last ones, if there are more than a
    window reads). Later windows begin with one token of context, and the last one goes back as far as it can. With a
    single token in `before` the windows are those of lm-eval.
    """
    before = before[-width:]
    sequence, start = before + tokens, len(before)
    while start < len(sequence):
        first = start == len(before)
        end = min(width + 1 if first else start + width, len(sequence))
        yield sequence[0 if first else end - width - 1 : start], sequence[start:end]
        start = end


def packed_rows(requests: Sequence[Request], prompts: Sequence[list[int]]) -> list[PackedRow]:
    """Return one row per prompt, with all its continuations."""
    packs: dict[Any, PackedRow] = {}
    for number, ((_, _, continuation), prompt) in enumerate(zip(requests, prompts, strict=True)):
        pack = packs.setdefault(tuple(prompt), PackedRow(prompt, [], []))
        pack.continuations.append(continuation)
        pack.numbers.append(number)
    return list(packs.values())


def plain_rows(requests: Sequence[Request], prompts: Sequence[list[int]]) -> list[PlainRow]:
    """Return one row per sequence: requests that differ only in their last token share one."""
    rows: dict[Any, PlainRow] = {}
    for number, ((_, _, continuation), prompt) in enumerate(zip(requests, prompts, strict=True)):
        tokens = prompt + continuation[:-1]
        row = rows.setdefault(tuple(tokens), PlainRow(tokens, [], []))
        row.continuations.append(continuation)
        row.numbers.append(number)
    return list(rows.values())


def by_width(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by falling width: batches need little padding, and memory runs out at the first batch if at all."""
    return sorted(rows, key=lambda row: (-row.width, row.numbers[0]))


def generation_groups(settings: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Return groups of numbers of requests with the same settings of generation."""
    groups: dict[str, list[int]] = {}
    for number, setting in enumerate(settings):
        groups.setdefault(repr(sorted(setting.items())), []).append(number)
    return list(groups.values())


def by_length(numbers: Sequence[int], lengths: dict[int, int]) -> Iterator[list[int]]:
    """Yield groups of numbers of the same length, the longest first."""
    for length in sorted({lengths[number] for number in numbers}, reverse=True):
        yield [number for number in numbers if lengths[number] == length]
