"""Special tokens that a tokenizer adds around a text: Llama, Mistral and Gemma begin every text with BOS.

They are not part of the text. Code that trains on a text or scores it adds them once, and needs to know which they are.
A text may also contain their names, such as `<|endoftext|>`. Tokenizers read these as control tokens, and so does
lm-eval. We do the same, as instructions may mean them, and count them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.validation import read_json

PROBES = ("a", "1", ".", "the")  # any text that has tokens: one of them does in every tokenizer
TEMPLATES = {"BertProcessing", "RobertaProcessing"}  # post-processors that always put a token before and after


def added_special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Find the token ids that a tokenizer of transformers puts before and after a text.

    Both are empty for a tokenizer that adds none. A probe decides, not a list of models.
    """
    for probe in PROBES:
        plain, full = list(tokenizer.encode(probe, add_special_tokens=False)), list(tokenizer.encode(probe))
        for start in range(len(full) - len(plain) + 1 if plain else 0):
            if full[start : start + len(plain)] == plain:
                return full[:start], full[start + len(plain) :]
    return [], []


def control_tokens(definition: Mapping[str, Any]) -> dict[int, str]:
    """Return the special tokens of a tokenizer.json's content, by id, except the unknown token."""
    unknown = (definition["model"].get("unk_token"), definition["model"].get("unk_id"))
    return {
        token["id"]: token["content"]
        for token in definition["added_tokens"]
        if token["special"] and token["content"] != unknown[0] and token["id"] != unknown[1]
    }


def count_control_names(texts: Iterable[str], names: Iterable[str]) -> Counter[str]:
    """Count the names of control tokens in texts."""
    longest_first = sorted(names, key=len, reverse=True)
    if not longest_first:
        return Counter()
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    return Counter(name for text in texts for name in pattern.findall(text))


def format_control_counts(counts: Mapping[str, int]) -> str:
    """Format counts as `, 3 control tokens written in the text (</s> 2, <s> 1)`; empty if there are none."""
    total = sum(counts.values())
    listed = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda c: (-c[1], c[0]))[:3])
    more = ", ..." if len(counts) > 3 else ""
    return f", {total:,} control token{'s' * (total != 1)} written in the text ({listed}{more})" if total else ""


def folder_adds_special_tokens(folder: Path) -> bool:
    """Find out from a checkpoint's files whether its tokenizer puts special tokens around a text, without torch.

    transformers follows `add_bos_token` and `add_eos_token` of tokenizer_config.json if one of them is there, else the
    post-processor of tokenizer.json. A folder without tokenizer.json is taken to add some, as tokenizers of
    SentencePiece do. Raises BadInput for files that are not JSON.
    """
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    flags = [config[key] for key in ("add_bos_token", "add_eos_token") if key in config]
    if flags:
        return any(flags)
    if not (folder / "tokenizer.json").is_file():
        return True
    return _adds(read_json(folder / "tokenizer.json").get("post_processor"))


def _adds(post_processor: Any) -> bool:
    """Tell whether a post-processor of tokenizer.json adds special tokens around a single text."""
    if not isinstance(post_processor, dict):
        return False
    kind = post_processor.get("type")
    if kind == "Sequence":
        return any(_adds(part) for part in post_processor.get("processors", ()))
    if kind == "TemplateProcessing":
        return any("SpecialToken" in piece for piece in post_processor.get("single", ()))
    return kind in TEMPLATES
