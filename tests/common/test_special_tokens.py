"""The files of a tokenizer and the tokenizer itself agree about what it puts around a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.special_tokens import (
    added_special_tokens,
    control_tokens,
    count_control_names,
    folder_adds_special_tokens,
    format_control_counts,
)


def tokenizer_with(single: str | None, **config: Any) -> Any:
    """A byte-level tokenizer, `<s>` its token 0 and `</s>` 1. single: its template, None: no post-processor."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE({token: n for n, token in enumerate(["<s>", "</s>", *alphabet])}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    bytes_alone.add_special_tokens(["<s>", "</s>"])
    if single is not None:
        special = [("<s>", 0), ("</s>", 1)]
        bytes_alone.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone, bos_token="<s>", eos_token="</s>", pad_token="</s>", **config
    )


CASES: list[tuple[str | None, dict[str, Any], tuple[list[int], list[int]]]] = [
    (None, {}, ([], [])),
    ("$A", {}, ([], [])),
    ("<s> $A", {}, ([0], [])),
    ("$A </s>", {}, ([], [1])),
    ("<s> $A </s>", {}, ([0], [1])),
    ("<s> <s> $A </s>", {}, ([0, 0], [1])),
    ("<s> $A", {"add_bos_token": False}, ([], [])),
    ("$A", {"add_bos_token": True}, ([0], [])),
    (None, {"add_eos_token": True}, ([], [1])),
]


@pytest.mark.parametrize(("single", "config", "expected"), CASES)
def test_the_tokenizer_and_its_folder_agree(
    tmp_path: Path, single: str | None, config: dict[str, Any], expected: tuple[list[int], list[int]]
) -> None:
    from transformers import AutoTokenizer

    tokenizer_with(single, **config).save_pretrained(tmp_path)
    for key, value in config.items():  # as the files of the hub have it, whatever saving leaves of it
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert added_special_tokens(AutoTokenizer.from_pretrained(tmp_path)) == expected
    assert folder_adds_special_tokens(tmp_path) is any(expected)


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_other_post_processors_are_read_inside_a_sequence_too(tmp_path: Path, kind: str) -> None:
    parts = [{"type": "ByteLevel"}, {"type": kind, "sep": ["</s>", 1], "cls": ["<s>", 0]}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"post_processor": {"type": "Sequence", "processors": parts}}))
    assert folder_adds_special_tokens(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"post_processor": parts[0]}))
    assert not folder_adds_special_tokens(tmp_path)


def test_a_folder_without_tokenizer_json_is_taken_to_add_some(tmp_path: Path) -> None:
    assert folder_adds_special_tokens(tmp_path)


def test_the_shipped_tokenizer_adds_none() -> None:
    assert not folder_adds_special_tokens(Path(__file__).parents[2] / "models" / "tiny-base")


def test_control_tokens_written_in_texts_are_counted_and_named() -> None:
    definition = json.loads(tokenizer_with(None).backend_tokenizer.to_str())
    assert control_tokens(definition) == {0: "<s>", 1: "</s>"}
    definition["model"]["unk_token"] = "<s>"  # what unknown text becomes is written by nobody
    names = control_tokens(definition).values()
    assert list(names) == ["</s>"]
    counts = count_control_names(["a </s> b</s>", "<s> </ s>"], names)
    assert format_control_counts(counts) == ", 2 control tokens written in the text (</s> 2)"
    assert (
        format_control_counts(count_control_names(["plain"], names))
        == format_control_counts(count_control_names(["</s>"], []))
        == ""
    )
