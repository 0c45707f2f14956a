"""Rows of tokens -> log-likelihoods of their continuations, and whether an architecture allows packed rows.

Two layouts. Packed: a prompt runs once for all its continuations, which attend to it and themselves only. Plain: one
sequence, padded on the right, which every causal model reads as if it were alone.
"""

from __future__ import annotations

import copy
import inspect
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from eval.batches import SLICE_BYTES

LogLikelihood = tuple[float, bool]  # log-likelihood in nats, whether greedy decoding would give the continuation
Targets = list[tuple[int, int, int]]  # (row, column among those kept, token)


@dataclass
class PackedRow:
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
    def size(batch: Sequence[PackedRow]) -> tuple[int, int]:
        """Return the tokens of a batch, padding included, and the positions whose logits are kept."""
        tail = max(pack.tail for pack in batch)
        return len(batch) * (max(len(pack.prompt) for pack in batch) + tail), len(batch) * (tail + 1)

    @staticmethod
    def score(model: Any, batch: Sequence[PackedRow]) -> dict[int, LogLikelihood]:
        """Return log-likelihoods by the requests' numbers.

        Prompts end in one column and continuations follow, so that only the last columns need logits.
        """
        left, tail = max(len(pack.prompt) for pack in batch), max(pack.tail for pack in batch)
        tokens = torch.zeros(len(batch), left + tail, dtype=torch.long)
        positions = torch.zeros_like(tokens)
        segments = torch.full_like(tokens, -1)  # -1 padding, 0 prompt, 1.. continuations
        wanted: Targets = []
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
        mask = packed_mask(segments, model.dtype)
        with torch.no_grad():
            logits = model(
                input_ids=tokens.to(model.device),
                position_ids=positions.to(model.device),
                attention_mask=None if mask is None else mask.to(model.device),
                logits_to_keep=tail + 1,
                use_cache=False,
            ).logits
        return _loglikelihoods(batch, logits, wanted)


@dataclass
class PlainRow:
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
        """Return the first column whose logits are needed."""
        return len(self.tokens) - max(len(tokens) for tokens in self.continuations)

    @staticmethod
    def size(batch: Sequence[PlainRow]) -> tuple[int, int]:
        """Return the tokens of a batch, padding included, and the positions whose logits are kept."""
        width = max(row.width for row in batch)
        return len(batch) * width, len(batch) * (width - min(row.start for row in batch))

    @staticmethod
    def score(model: Any, batch: Sequence[PlainRow]) -> dict[int, LogLikelihood]:
        """Return log-likelihoods by the requests' numbers. Some models keep the logits of all positions."""
        width, start = max(row.width for row in batch), min(row.start for row in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        wanted: Targets = []
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
        return _loglikelihoods(batch, logits[:, -(width - start) :], wanted)


def packed_mask(segments: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """Return the additive attention mask, (rows, 1, width, width), of segments, (rows, width).

    None if plain causal attention is the same: no padding before the prompt, one continuation.
    """
    if bool((segments[:, 0] >= 0).all()) and int(segments.max()) <= 1:
        return None
    width = segments.shape[1]
    queries, keys = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = causal & ((keys == 0) | (keys == queries))  # padding attends to padding: no row is empty
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    return mask[:, None]


def _loglikelihoods(
    batch: Sequence[PackedRow] | Sequence[PlainRow], logits: torch.Tensor, wanted: Targets
) -> dict[int, LogLikelihood]:
    """Return log-likelihoods of the continuations, from logits of shape (rows, columns kept, vocabulary).

    wanted: the row, column and id of all continuations' tokens, in the order of the batch. In float32, by slices.
    """
    rows, columns, targets = torch.tensor(wanted, device=logits.device).T
    values: list[float] = []
    greedy: list[bool] = []
    step = max(1, SLICE_BYTES // (4 * logits.shape[-1]))
    for first in range(0, len(wanted), step):
        part = slice(first, first + step)
        predicted, target = logits[rows[part], columns[part]].float(), targets[part]
        chosen = predicted.gather(1, target[:, None])[:, 0]
        values += (chosen - predicted.logsumexp(-1)).tolist()
        greedy += (predicted.argmax(-1) == target).tolist()
    answers, start = {}, 0
    for row in batch:
        for number, continuation in zip(row.numbers, row.continuations, strict=True):
            end = start + len(continuation)
            answers[number] = (sum(values[start:end]), all(greedy[start:end]))
            start = end
    return answers


# --- Whether an architecture gives the same numbers from packed rows ---
#
# It does not if it takes no 4-D mask, or has a sliding window or a recurrent state. A small random model of the same
# config decides, in float32 on the CPU. So it is a fact of the architecture: neither a checkpoint's weights nor the
# rounding of bfloat16 can change it, and every process gets the same answer.

SEED, SPREAD = 0, 0.3  # weights far from the usual 0.02, so that a wrong mask or position shows in the numbers
WIDTH, VOCABULARY, WINDOW, LAYERS = 64, 64, 8, 12
TOLERANCE = 1e-4  # of float32; a wrong mask changes log-likelihoods by a thousand times more
MAX_PARAMETERS = 100_000_000  # parameters of a model that is built for the decision
log = logging.getLogger(__name__)


def is_packable(config: Any) -> bool:
    """Return whether a model of this config of transformers scores packed rows as it scores each row alone."""
    return _check_on_small_model(_Architecture(config), "choices are scored in packed rows", _scores_packed_rows)


def is_paddable(config: Any) -> bool:
    """Return whether a model of this config gives the same logits for a prompt with padding on the left."""
    return _check_on_small_model(
        _Architecture(config),
        "prompts of different lengths are generated from together",
        _generates_from_padded_prompts,
    )


class _Architecture:
    """A config of text, compared by its class, its attention and its content."""

    def __init__(self, config: Any) -> None:
        self.config = config.get_text_config()
        sizes = {key: value for key, value in self.config.to_dict().items() if key not in ("_name_or_path", "dtype")}
        self.known = f"{type(self.config).__name__} {self.config._attn_implementation} {sizes}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Architecture) and self.known == other.known

    def __hash__(self) -> int:
        return hash(self.known)


@cache
def _check_on_small_model(architecture: _Architecture, claim: str, holds: Callable[[Any], bool]) -> bool:
    """Whether a claim holds for a small model of an architecture: not where it cannot be built or raises."""
    name, why = type(architecture.config).__name__, ""
    try:
        decided = holds(small_model(architecture.config))
    except Exception as error:  # of any model's code: it cannot be made small, or takes no 4-D mask
        decided, why = False, f" ({' '.join(str(error).split())[:200]})"
    log.info("%s: %s: %s%s", name, claim, "yes" if decided else "no", why)
    return decided


def _scores_packed_rows(model: Any) -> bool:
    packs, rows = probe_rows()
    packed, alone = PackedRow.score(model, packs), [PlainRow.score(model, [row]) for row in rows]
    expected: dict[int, LogLikelihood] = {number: answer for answers in alone for number, answer in answers.items()}
    return all(
        abs(packed[number][0] - value) <= TOLERANCE * (1 + abs(value)) for number, (value, _) in expected.items()
    )


def _generates_from_padded_prompts(model: Any) -> bool:
    long, short = (pack.prompt for pack in sorted(probe_rows()[0], key=lambda pack: -len(pack.prompt))[:2])
    padding = len(long) - len(short)
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    both, mask = torch.tensor([long, [0] * padding + short]), torch.ones(2, len(long), dtype=torch.long)
    mask[1, :padding] = 0
    together = model.generate(both, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **how)
    alone = model.generate(
        both[1:, padding:], attention_mask=mask[1:, padding:], output_logits=True, return_dict_in_generate=True, **how
    )
    return all(
        torch.allclose(padded[1], unpadded[0], rtol=TOLERANCE, atol=10 * TOLERANCE)
        for padded, unpadded in zip(together.logits, alone.logits, strict=True)
    )


def small_model(config: Any) -> Any:
    """Return a random model of the same architecture in float32: few, narrow layers of every kind, short windows.

    If it does not run with these widths, its heads, and then its layers, are as wide as in the config. Raises what its
    code raises.
    """
    from transformers import AutoModelForCausalLM

    failed: Exception | None = None
    for changes in (narrow_layers(config) | narrow_heads(config), narrow_layers(config), {}):
        small = shrink_config(config, changes)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                with torch.device("meta"):
                    size = sum(part.numel() for part in AutoModelForCausalLM.from_config(small).parameters())
                if size > MAX_PARAMETERS:
                    raise ValueError(f"a model of {size:,} parameters is too large to decide by")
                torch.manual_seed(SEED)
                model = AutoModelForCausalLM.from_config(
                    small, dtype=torch.float32, attn_implementation=config._attn_implementation
                ).eval()
                for part in model.parameters():
                    if part.dim() > 1:
                        torch.nn.init.normal_(part, std=SPREAD)
                model(torch.ones(1, 2, dtype=torch.long))
            return model
        except Exception as error:  # of any model's code: sizes that do not go together
            failed = failed or error
    assert failed is not None
    raise failed


def narrow_layers(config: Any) -> dict[str, Any]:
    """Return settings of narrow layers."""
    heads = min(getattr(config, "num_attention_heads", 4), 4)
    groups = max(
        1, getattr(config, "num_attention_heads", 4) // (getattr(config, "num_key_value_heads", None) or heads)
    )
    widths = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), WIDTH)
    return {**widths, "num_attention_heads": heads, "num_key_value_heads": max(1, heads // groups)}


def narrow_heads(config: Any) -> dict[str, Any]:
    """Return settings of narrow heads, to go with narrow layers."""
    return {"head_dim": WIDTH // min(getattr(config, "num_attention_heads", 4), 4)}


def shrink_config(config: Any, changes: dict[str, Any]) -> Any:
    """Return a copy of a config with a small vocabulary, short windows, and few layers of each kind.

    changes: further settings, for those that the config has.
    """
    small, layers = copy.deepcopy(config), config.num_hidden_layers
    lists = {key: value for key, value in vars(config).items() if isinstance(value, list) and len(value) == layers}
    count = next(
        n
        for n in range(min(2, layers), layers + 1)
        if n >= LAYERS or all({*map(str, value[:n])} == {*map(str, value)} for value in lists.values())
    )
    changes = {**changes, "vocab_size": VOCABULARY, "num_hidden_layers": count}
    changes |= {key: value[:count] for key, value in lists.items()}
    changes |= {
        key: WINDOW
        for key, value in vars(config).items()
        if type(value) is int and value > WINDOW and ("window" in key or "chunk" in key)
    }
    changes |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    for key, value in changes.items():
        if getattr(config, key, None) is not None:
            with suppress(AttributeError):  # what follows from other settings
                setattr(small, key, value)
    return small


def probe_rows() -> tuple[list[PackedRow], list[PlainRow]]:
    """Return prompts of several lengths with choices of one to three tokens, as packed and as plain rows."""
    draw = random.Random(SEED)
    packs: list[PackedRow] = []
    rows: list[PlainRow] = []
    for length in (3, 25, 14):
        pack = PackedRow([draw.randrange(1, VOCABULARY) for _ in range(length)], [], [])
        for size in (1, 2, 3):
            choice, number = [draw.randrange(1, VOCABULARY) for _ in range(size)], len(rows)
            pack.continuations.append(choice)
            pack.numbers.append(number)
            rows.append(PlainRow([*pack.prompt, *choice[:-1]], [choice], [number]))
        packs.append(pack)
    return packs, rows
