"""Training puts the same special tokens before a text as scoring does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import write_jsonl
from common.special_tokens import added_special_tokens
from pipeline.stages.data import packed
from tests.common.test_special_tokens import CASES, tokenizer_with
from train.data import packing, tokenization
from train.settings import CtBlocksSettings, SftBlocksSettings

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
    blocks = list(packing.chunk(iter([np.concatenate(tokens.documents())]), 16))
    starts = np.flatnonzero(np.concatenate(blocks) == tokenizer.bos_token_id)
    assert starts.tolist() == np.cumsum([0, *tokens.lengths[:-1]]).tolist()


def test_control_tokens_written_in_a_file_are_counted(tmp_path: Path) -> None:
    """Of the text itself: what ends documents, and BOS before them, is put there by us."""
    tokenizer = tokenizer_with("<s> $A")
    more = [{"prompt": "</s>", "output": "Mose"}]
    rows = [{"prompt": "<s>[INST] Ndani?", "output": "Mose </s></s>", "more": more}]
    assert tokens_of(tokenizer, rows, tmp_path / "sft").control == {"<s>": 1, "</s>": 3}
    texts = [{"text": f"{text} <|end|>"} for text in TEXTS]
    assert tokens_of(tokenizer, texts, tmp_path / "text").control == {}
    assert not (tmp_path / "text" / "tokens" / "control.json").exists()


def test_blocks_say_which_control_tokens_their_text_has(tmp_path: Path) -> None:
    tokenizer_with("<s> $A").save_pretrained(tmp_path / "model")
    (tmp_path / "items").mkdir()
    rows = [{"prompt": f"Q{n} ", "output": "yes </s>" if n == 3 else "no"} for n in range(9)]
    for name, instructions in (("plain", rows[:3]), ("marked", rows)):
        write_jsonl(tmp_path / "items" / "sft.jsonl", instructions)
        settings = SftBlocksSettings(tokens=2000, block_size=32, replay_fraction=0.0, seed=0)
        where = tmp_path / name, tmp_path / f"{name}-work"
        packing.sft_blocks(tmp_path / "items", None, tmp_path / "model", settings, *where)
    counts = [json.loads((tmp_path / name / "counts.json").read_text()) for name in ("plain", "marked")]
    assert [one.get("control_tokens") for one in counts] == [None, {"</s>": 1}]  # once, however often it is repeated
    assert packed(tmp_path / "marked").endswith(" real tokens, 1 control token written in the text (</s> 1)")
    assert packed(tmp_path / "plain").endswith(" real tokens")


def test_ct_blocks_count_the_text_of_both_languages(tmp_path: Path) -> None:
    tokenizer_with(None).save_pretrained(tmp_path / "model")
    (tmp_path / "corpus" / "text").mkdir(parents=True)
    for language, text in (("xx", "Na </s> tsiku"), ("en", "In <s> the beginning")):
        rows = [{"id": f"{n}", "text": text} for n in range(30)]
        write_jsonl(tmp_path / "corpus" / "text" / f"{language}.train.jsonl", rows)
    settings = CtBlocksSettings(language="xx", schedule_tokens=320, block_size=32, english_fraction=0.2, seed=0)
    packing.ct_blocks(tmp_path / "corpus", tmp_path / "model", settings, tmp_path / "out", tmp_path / "work")
    assert json.loads((tmp_path / "out" / "counts.json").read_text())["control_tokens"] == {"</s>": 30, "<s>": 30}
