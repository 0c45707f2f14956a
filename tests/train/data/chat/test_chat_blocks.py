"""Conversations packed into blocks: from files and data sets, by any number of workers, counted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from common.errors import BadInput
from common.files import read_jsonl, write_json, write_jsonl
from tests.train.data.chat.model_templates import text, tokenizer
from train.data import chat_template, instructions, packing
from train.data.chat_template import CHATML_TEXT
from train.data.conversations import own_conversations
from train.settings import ChatSettings, InstructionSource, InstructionsSettings, SftBlocksSettings

SIZE = 384
ANSWERS = ("གནམ་ས།", "நீர் ஆறு", "Zikomo kwambiri.")


def talk(number: int, turns: int) -> dict[str, Any]:
    """A conversation of so many questions."""
    messages: list[dict[str, str]] = []
    for turn in range(turns):
        messages += [
            {"role": "user", "content": f"Q{number}.{turn} {ANSWERS[turn % 3]}?"},
            {"role": "assistant", "content": f"{ANSWERS[number % 3]} {number}.{turn}"},
        ]
    return {"messages": messages}


ROWS = [talk(number, 1 + number % 3) for number in range(12)]
ODD = [{"messages": [{"role": "tool", "content": "x"}]}, talk(99, 12), {"messages": [{"role": "user", "content": "q"}]}]
ODD += [{"messages": [{"role": "user", "content": "a<|im_end|>b"}, {"role": "assistant", "content": "c"}]}]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model whose tokenizer has ChatML's marks."""
    folder = tmp_path_factory.mktemp("chat-model")
    of = tokenizer(text("smollm2"))
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    config = LlamaConfig(vocab_size=len(of), eos_token_id=of.eos_token_id, initializer_range=0.2, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)
    of.save_pretrained(folder)
    return folder


def made(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The instructions of a user's file of conversations, as the items stage leaves them."""
    folder.mkdir(parents=True)
    write_jsonl(folder / "mine.jsonl", rows)
    kept, counts = own_conversations(str(folder / "mine.jsonl"), "auto")
    write_jsonl(folder / "sft.jsonl", kept)
    write_json(folder / "counts.json", {instructions.COUNTED: counts})
    return folder


def blocks(items: Path, model: Path, out: Path, tokens: int = 12_288, workers: int = 1, **chat: Any) -> dict[str, Any]:
    """Packs instructions; their counts."""
    settings = SftBlocksSettings(
        tokens=tokens,
        block_size=SIZE,
        replay_fraction=0.0,
        seed=0,
        chat=ChatSettings(**{"template": "tokenizer", **chat}),
    )
    packing.sft_blocks(items, None, model, settings, out, out / "work", workers)
    counts: dict[str, Any] = json.loads((out / "counts.json").read_text())
    return counts


def spans(out: Path, of: Any) -> set[tuple[str, ...]]:
    """The trained texts of each sequence in the blocks."""
    ids, labels, positions = (np.load(out / f"{name}.npy") for name in ("blocks", "labels", "positions"))
    seen = set()
    for block, label, position in zip(ids, labels, positions, strict=True):
        starts = np.flatnonzero(position == 0)
        for of_one, loss in zip(np.split(block, starts)[1:], np.split(label, starts)[1:], strict=True):
            answers = loss != packing.IGNORED
            assert (loss[answers] == of_one[answers]).all()
            runs = np.split(np.arange(len(answers)), np.flatnonzero(np.diff(answers)) + 1)
            seen.add(tuple(of.decode(of_one[run].tolist()) for run in runs if answers[run[0]]))
    return seen - {()}  # padding


def test_conversations_in_blocks(chat_model: Path, tmp_path: Path) -> None:
    counts = blocks(made(tmp_path / "items", ROWS + ODD), chat_model, tmp_path / "out")
    of = tokenizer(text("smollm2"))
    answers = [tuple(f"{m['content']}<|im_end|>" for m in row["messages"] if m["role"] == "assistant") for row in ROWS]
    found = spans(tmp_path / "out", of)
    assert len(found & set(answers)) >= 6  # others are in blocks that are still open
    [long] = found - set(answers)
    assert 0 < len(long) < 12 and all(span.endswith("<|im_end|>") for span in long)
    chat = counts["chat"]
    assert chat["left_out"] == {"tools": 1, "no_answer": 1, "special_token": 1}
    assert (chat["conversations"], chat["sequences"], chat["cut"]) == (13, 13, 1) and "unrolled" not in chat
    assert chat["answers"] == 24 + len(long)
    labels = np.load(tmp_path / "out" / "labels.npy")
    assert counts["trained_tokens"] == (labels != packing.IGNORED).sum()
    shown = read_jsonl(tmp_path / "out" / "examples.jsonl")
    assert [row["trained"] for row in shown] == [list(each) for each in answers[:5]]
    assert all(row["text"].startswith("<|im_start|>system\nYou are a helpful AI assistant named Smol") for row in shown)
    assert chat_template.TrainedTemplate.read(tmp_path / "out") == chat_template.TrainedTemplate(
        text("smollm2"), "<|im_end|>"
    )


def test_other_settings_of_the_template(chat_model: Path, tmp_path: Path) -> None:
    items = made(tmp_path / "items", [*ROWS, talk(99, 12)])
    dropped = blocks(items, chat_model, tmp_path / "drop", too_long="drop", template=CHATML_TEXT, system="Sys.")
    assert dropped["chat"]["left_out"] == {"too_long": 1} and "cut" not in dropped["chat"]
    first = read_jsonl(tmp_path / "drop" / "examples.jsonl")[0]["text"]
    assert first.startswith("<|im_start|>system\nSys.<|im_end|>\n<|im_start|>user\nQ0.0")
    with pytest.raises(BadInput, match=r"^sft: none of 13 conversations can be trained on \(13 special token\)"):
        # a template that a special token stands for nothing but text in
        broken = [{"messages": [dict(m, content="<|eot_id|>" + m["content"]) for m in row["messages"]]} for row in ROWS]
        blocks(made(tmp_path / "odd", [*broken, broken[0]]), chat_model, tmp_path / "none")


def test_four_conversations_in_a_block_are_computed_as_alone(chat_model: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(chat_model, use_cache=False)
    blocks(made(tmp_path / "items", [talk(number, 1) for number in range(4)]), chat_model, tmp_path / "out", tokens=768,
           template=CHATML_TEXT)  # fmt: skip
    ids, positions = (torch.from_numpy(np.load(tmp_path / "out" / f"{name}.npy").astype(np.int64))
                      for name in ("blocks", "positions"))  # fmt: skip
    row = next(number for number, each in enumerate(positions) if (each == 0).sum() >= 3)
    starts = [*torch.nonzero(positions[row] == 0)[:, 0].tolist(), SIZE]
    with torch.no_grad():
        packed = model(input_ids=ids[row : row + 1], position_ids=positions[row : row + 1]).logits[0]
        for start, end in itertools.pairwise(starts):
            alone = model(input_ids=ids[row : row + 1, start:end]).logits[0]
            torch.testing.assert_close(packed[start:end], alone, atol=1e-4, rtol=1e-4)
        changed = ids[row : row + 1].clone()
        changed[0, starts[0] + 2] = 5
        others = model(input_ids=changed, position_ids=positions[row : row + 1]).logits[0][starts[1] :]
    assert (others - packed[starts[1] :]).abs().max() == 0.0


@pytest.mark.parametrize("layout", ["messages", "columns"])
def test_a_data_set_in_the_layout_of_the_hub(layout: str, chat_model: Path, tmp_path: Path) -> None:
    """Two files; of conversations, or of prompts and answers in named columns."""
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "set").mkdir()
    for part in range(2):
        rows = ROWS[part * 6 : part * 6 + 6]
        if layout == "messages":
            odd = [{"messages": [{"role": "user", "content": "in vain"}]}] if part else []
            table = {"messages": [row["messages"] for row in [*rows, *odd]]}
        else:
            table = {
                "asked": [r["messages"][0]["content"] for r in rows],
                "said": [r["messages"][1]["content"] for r in rows],
            }
        parquet.write_table(pyarrow.table(table), tmp_path / "set" / f"part.{part}.parquet")
    prompt, answer = ("asked", "said") if layout == "columns" else (None, None)
    source = InstructionSource(
        dataset=None, subset=None, files=None, split="train", revision=None, prompt=prompt, answer=answer, bytes=None
    )
    items = tmp_path / "items"
    instructions.from_hub(InstructionsSettings(hub=source, seed=0), items, tmp_path / "work", str(tmp_path / "set"))
    counts = blocks(items, chat_model, tmp_path / "out")
    whole = layout == "messages"
    answers = {tuple(f"{m['content']}<|im_end|>" for m in row["messages"] if m["role"] == "assistant") for row in ROWS}
    assert spans(tmp_path / "out", tokenizer(text("smollm2"))) == (answers if whole else {each[:1] for each in answers})
    assert counts["chat"]["conversations"] == 12
    assert counts["chat"]["left_out"] == ({"no_answer": 1} if whole else {})
    again = blocks(items, chat_model, tmp_path / "two", workers=2)
    assert again == counts
    for name in ("blocks", "labels", "positions"):
        assert (tmp_path / "two" / f"{name}.npy").read_bytes() == (tmp_path / "out" / f"{name}.npy").read_bytes()


def test_a_tree_that_two_parts_would_cut_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.data.corpus import hub

    monkeypatch.setattr(hub, "SHARD_BYTES", 1)  # one shard per conversation
    (tmp_path / "set").mkdir()
    rows = []
    for tree in range(3):
        for number, (role, said) in enumerate((("prompter", f"q{tree}"), ("assistant", f"a{tree}"))):
            names = {"message_id": f"{tree}.{number}", "parent_id": f"{tree}.0" if number else None}
            rows.append({**names, "message_tree_id": f"{tree}", "role": role, "text": said, "rank": None})
    write_jsonl(tmp_path / "set" / "all.jsonl", rows)
    source = InstructionSource(
        dataset=None, subset=None, files=None, split="train", revision=None, prompt=None, answer=None, bytes=None
    )
    settings = InstructionsSettings(hub=source, seed=0, format="oasst")
    instructions.from_hub(settings, tmp_path / "items", tmp_path / "work", str(tmp_path / "set"))
    files = instructions.instruction_files(tmp_path / "items")
    said_by_file = [[m["content"] for m in row["messages"]] for f in files for row in packing.read_rows(f)]
    assert len(files) == 3 and said_by_file == [[f"q{tree}", f"a{tree}"] for tree in range(3)]
    for note in (tmp_path / "work").rglob("0000[1-9]*"):  # a kill after the first part
        note.unlink()
    instructions.from_hub(settings, tmp_path / "again", tmp_path / "work", str(tmp_path / "set"))
    again = [row for f in instructions.instruction_files(tmp_path / "again") for row in packing.read_rows(f)]
    assert [[m["content"] for m in row["messages"]] for row in again] == said_by_file
