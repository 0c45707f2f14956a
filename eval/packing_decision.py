"""Whether an architecture gives the same numbers from packed rows.

A model does not where it takes no 4-D mask, or has a sliding window or a recurrent state. The decision is made on a
small random model of the same config, in float32 on the CPU. So it is a fact of the architecture: neither a
checkpoint's weights nor the rounding of bfloat16 can change it, and every process decides alike.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from eval.rows import Answer, Pack, Plain

SEED, SPREAD = 0, 0.3  # weights far from the usual 0.02, so that a wrong mask or position shows in the numbers
WIDTH, VOCABULARY, WINDOW, LAYERS = 64, 64, 8, 12
CLOSE = 1e-4  # of float32; a wrong mask changes log-likelihoods by a thousand times more
LARGEST = 100_000_000  # parameters of a model that is built for the decision
log = logging.getLogger(__name__)


def is_packable(config: Any) -> bool:
    """Whether a model of this config (of transformers) scores packed rows as it scores each row alone."""
    return _holds(_Architecture(config), "choices are scored in packed rows", _packs)


def is_paddable(config: Any) -> bool:
    """Whether a model of this config gives a prompt that is padded on the left the logits that it has alone."""
    return _holds(_Architecture(config), "prompts of different lengths are generated from together", _pads)


class _Architecture:
    """A config of text, known by its class, its attention and its content."""

    def __init__(self, config: Any) -> None:
        self.config = config.get_text_config()
        sizes = {key: value for key, value in self.config.to_dict().items() if key not in ("_name_or_path", "dtype")}
        self.known = f"{type(self.config).__name__} {self.config._attn_implementation} {sizes}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Architecture) and self.known == other.known

    def __hash__(self) -> int:
        return hash(self.known)


@cache
def _holds(architecture: _Architecture, claim: str, holds: Callable[[Any], bool]) -> bool:
    """Whether a claim holds for a small model of an architecture: not where it cannot be built or raises."""
    name, why = type(architecture.config).__name__, ""
    try:
        decided = holds(small_model(architecture.config))
    except Exception as error:  # of any model's code: it cannot be made small, or takes no 4-D mask
        decided, why = False, f" ({' '.join(str(error).split())[:200]})"
    log.info("%s: %s: %s%s", name, claim, "yes" if decided else "no", why)
    return decided


def _packs(model: Any) -> bool:
    packs, rows = probes()
    packed, alone = Pack.score(model, packs), [Plain.score(model, [row]) for row in rows]
    expected: dict[int, Answer] = {number: answer for answers in alone for number, answer in answers.items()}
    return all(abs(packed[number][0] - value) <= CLOSE * (1 + abs(value)) for number, (value, _) in expected.items())


def _pads(model: Any) -> bool:
    long, short = (pack.prompt for pack in sorted(probes()[0], key=lambda pack: -len(pack.prompt))[:2])
    padding = len(long) - len(short)
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    both, mask = torch.tensor([long, [0] * padding + short]), torch.ones(2, len(long), dtype=torch.long)
    mask[1, :padding] = 0
    together = model.generate(both, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **how)
    alone = model.generate(
        both[1:, padding:], attention_mask=mask[1:, padding:], output_logits=True, return_dict_in_generate=True, **how
    )
    return all(
        torch.allclose(one[1], other[0], rtol=CLOSE, atol=10 * CLOSE)
        for one, other in zip(together.logits, alone.logits, strict=True)
    )


def small_model(config: Any) -> Any:
    """A random model of the same architecture: few layers of every kind, narrow, its windows short. In float32.

    Where it does not run that narrow, its heads, and then its layers, are as wide as the config's own. Raises whatever
    its code raises.
    """
    from transformers import AutoModelForCausalLM

    failed: Exception | None = None
    for changes in (narrow(config) | narrow_heads(config), narrow(config), {}):
        small = shrunk(config, changes)
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                with torch.device("meta"):
                    size = sum(part.numel() for part in AutoModelForCausalLM.from_config(small).parameters())
                if size > LARGEST:
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


def narrow(config: Any) -> dict[str, Any]:
    """Settings of narrow layers."""
    heads = min(getattr(config, "num_attention_heads", 4), 4)
    groups = max(
        1, getattr(config, "num_attention_heads", 4) // (getattr(config, "num_key_value_heads", None) or heads)
    )
    widths = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), WIDTH)
    return {**widths, "num_attention_heads": heads, "num_key_value_heads": max(1, heads // groups)}


def narrow_heads(config: Any) -> dict[str, Any]:
    """Settings of narrow heads, that go with narrow layers."""
    return {"head_dim": WIDTH // min(getattr(config, "num_attention_heads", 4), 4)}


def shrunk(config: Any, changes: dict[str, Any]) -> Any:
    """A copy of a config with a small vocabulary, short windows, and few layers, of every kind that it has.

    changes: further settings, which count where the config has them.
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


def probes() -> tuple[list[Pack], list[Plain]]:
    """Prompts of several lengths with choices of one to three tokens, packed, and the same as rows of their own."""
    draw = random.Random(SEED)
    packs: list[Pack] = []
    rows: list[Plain] = []
    for length in (3, 25, 14):
        pack = Pack([draw.randrange(1, VOCABULARY) for _ in range(length)], [], [])
        for size in (1, 2, 3):
            choice, number = [draw.randrange(1, VOCABULARY) for _ in range(size)], len(rows)
            pack.continuations.append(choice)
            pack.numbers.append(number)
            rows.append(Plain([*pack.prompt, *choice[:-1]], [choice], [number]))
        packs.append(pack)
    return packs, rows
