"""Training puts the same special tokens before a text as scoring does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import write_jsonl
from common.special_tokens import added_special_tokens
from tests.common.test_special_tokens import CASES, tokenizer_with
from train.data import packing, tokenization

TEXTS = ["Na tsiku loyamba.", "བོད་སྐད་ནི་སྙན་པོ།", "தமிழ் இனிய மொழி"]  # Chichewa, Tibetan, Tamil


def tokens_of(tokenizer: Any, rows: list[dict[str, Any]], folder: Path) -> tokenization.Tokenised:
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "rows.jsonl", rows)
    tokenization.init_worker(tokenization.TokenizerFile.of(tokenizer))
    return tokenization.Tokenised.open(tokenization.tokenise((folder / "rows.jsonl", folder / "tokens")))


@pytest.mark.parametrize(("single", "config", "around"), CASES)
def test_a_document_begins_as_the_tokenizer_begins_a_text(
    tmp_path: Path, single: str | None, config: dict[str, Any], around: tuple[list[int], list[int]]
) -> None:
    tokenizer = tokenizer_with(single, **config)
    before, after = around
    assert added_special_tokens(tokenizer) == around
    documents = tokens_of(tokenizer, [{"text": text} for text in TEXTS], tmp_path).documents()
    for text, tokens in zip(TEXTS, documents, strict=True):
        whole = tokenizer.encode(text)
        assert tokens.tolist() == whole[: len(whole) - len(after)] + [tokenizer.eos_token_id]
        assert tokens[: len(before)].tolist() == before


def test_an_instruction_begins_with_bos_which_carries_no_loss(tmp_path: Path) -> None:
    more = [{"prompt": "Ndani?", "output": "Mose"}]
    rows = [{"prompt": text, "output": "inde", **({"more": more} if text == TEXTS[0] else {})} for text in TEXTS]
    tokenizer = tokenizer_with("<s> $A")
    for row, (tokens, answers) in zip(rows, tokens_of(tokenizer, rows, tmp_path).examples(), strict=True):
        assert tokens[0] == tokenizer.bos_token_id and not answers[0]
        assert tokens.tolist().count(tokenizer.bos_token_id) == 1  # once an example, however many questions it has
        assert tokenizer.decode(tokens[answers]).endswith("</s>") and answers[-1]
        prompt = len(tokenizer.encode(row["prompt"]))
        assert not answers[:prompt].any() and answers[prompt]


def test_a_long_document_has_bos_at_its_start_only(tmp_path: Path) -> None:
    tokenizer = tokenizer_with("<s> $A")
    tokens = tokens_of(tokenizer, [{"text": text * 20} for text in TEXTS], tmp_path)
    blocks = list(packing.cut(iter([np.concatenate(tokens.documents())]), 16))
    starts = np.flatnonzero(np.concatenate(blocks) == tokenizer.bos_token_id)
    assert starts.tolist() == np.cumsum([0, *tokens.lengths[:-1]]).tolist()
