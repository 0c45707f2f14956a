import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from common.errors import BadInput
from common.files import read_jsonl, write_jsonl
from tests.toy_text import sentences
from train import base_model
from train.data import instructions, packing
from train.data.blocks import Tokens, interleave, text_seen
from train.settings import CtBlocksSettings, ItemsSettings, SftBlocksSettings


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.integers(0, 500), st.integers(1, 300))
def test_every_window_has_the_mixture(weights: list[float], start: int, length: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    order = [source for source, _ in zip(interleave(shares), range(start + length), strict=False)][start:]
    for source, share in enumerate(shares):
        assert abs(order.count(source) - share * length) <= len(shares)


def test_four_to_one_is_exact_over_a_thousand_blocks() -> None:
    order = [source for source, _ in zip(interleave([0.8, 0.2]), range(5000), strict=False)]
    assert all(sum(order[start : start + 1000]) == 200 for start in range(0, 4000, 7))


def test_chunks_are_the_documents_with_end_tokens() -> None:
    def encode(texts: Sequence[str]) -> list[Tokens]:
        return [np.array([ord(c) for c in text]) for text in texts]

    blocks = [block.tolist() for block in packing.chunks(["abc", "de", "fghij"], encode, 0, 4)]
    assert blocks == [[97, 98, 99, 0], [100, 101, 0, 102], [103, 104, 105, 106]]


def ct_settings(**changes: Any) -> CtBlocksSettings:
    return CtBlocksSettings(language="xx", schedule_tokens=6400, block_size=32, english_fraction=0.2, seed=0).replace(
        **changes
    )


def test_ct_blocks(corpus_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    packing.ct_blocks(corpus_dir, model_dir, ct_settings(), tmp_path / "a", tmp_path / "work")
    blocks = np.load(tmp_path / "a" / "blocks.npy")
    assert blocks.shape == (200, 32) and blocks.dtype == np.uint16
    packing.ct_blocks(corpus_dir, model_dir, ct_settings(schedule_tokens=3200), tmp_path / "b", tmp_path / "work")
    assert (
        np.load(tmp_path / "b" / "blocks.npy") == blocks[:100]
    ).all()  # a longer schedule has the shorter one's data first
    packing.ct_blocks(corpus_dir, model_dir, ct_settings(schedule_tokens=10**9), tmp_path / "c", tmp_path / "work")
    counts = json.loads((tmp_path / "c" / "counts.json").read_text())
    assert counts["whole_corpus"] and counts["tokens"] < 10**6
    assert abs(text_seen(counts, counts["tokens"])["xx"].epochs - 1) < 0.01  # to the last, incomplete block
    with pytest.raises(BadInput, match="must fill one block of ct.block_size=1000000"):
        packing.ct_blocks(corpus_dir, model_dir, ct_settings(block_size=1_000_000), tmp_path / "d", tmp_path / "work")


def test_sft_blocks_train_answers_only_and_lose_little_room(corpus_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    items = tmp_path / "items"
    settings = ItemsSettings(language="xx", families=("next", "blank", "lookup"), sft_items=60, eval_items=5, seed=0)
    instructions.build(corpus_dir, settings, items)
    wanted = SftBlocksSettings(tokens=51_200, block_size=512, replay_fraction=0.0, seed=0)
    packing.sft_blocks(items, None, model_dir, wanted, tmp_path / "sft", tmp_path / "work")
    blocks, labels, positions = (
        np.load(tmp_path / "sft" / f"{name}.npy") for name in ("blocks", "labels", "positions")
    )
    assert blocks.shape == labels.shape == positions.shape == (100, 512)
    tokenizer = packing.load_tokenizer(model_dir)
    spans = np.split(blocks[0], np.flatnonzero(positions[0] == 0)[1:])
    label_spans = np.split(labels[0], np.flatnonzero(positions[0] == 0)[1:])
    for ids, label in zip(spans[:-1], label_spans[:-1], strict=True):
        question, answer = tokenizer.decode(ids[label == -100]), tokenizer.decode(label[label != -100])
        assert question.endswith("Answer:") or question.startswith("Which word comes next?\n")
        assert answer.startswith(" ") and answer.endswith(base_model.END)
    assert json.loads((tmp_path / "sft" / "counts.json").read_text())["real_token_share"] > 0.97
    replayed = SftBlocksSettings(tokens=5120, block_size=512, replay_fraction=0.5, seed=0)
    packing.sft_blocks(items, corpus_dir, model_dir, replayed, tmp_path / "replay", tmp_path / "work")
    assert ((np.load(tmp_path / "replay" / "labels.npy") != -100).all(axis=1)).sum() == 5


def test_sft_blocks_without_instructions_are_rejected(model_dir: Path, tmp_path: Path) -> None:
    settings = SftBlocksSettings(tokens=1024, block_size=512, replay_fraction=0.0, seed=0)
    with pytest.raises(BadInput, match="^eval.families: the en training text gives no instructions."):
        packing.sft_blocks(tmp_path / "items", None, model_dir, settings, tmp_path / "sft", tmp_path / "work")


def test_different_text_is_stated_apart_from_the_tokens_seen(model_dir: Path, tmp_path: Path) -> None:
    """English is short here and repeated; the language never is."""
    (tmp_path / "text").mkdir()
    for language, documents in (("xx", 400), ("en", 12)):
        rows = ({"id": str(n), "text": text} for n, text in enumerate(sentences(5, documents)))
        write_jsonl(tmp_path / "text" / f"{language}.train.jsonl", rows)
    packing.ct_blocks(tmp_path, model_dir, ct_settings(english_fraction=0.5), tmp_path / "out", tmp_path / "work")
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    tokenizer = packing.load_tokenizer(model_dir)
    for language, tokens in counts["text_tokens"].items():
        texts = [row["text"] for row in read_jsonl(tmp_path / "text" / f"{language}.train.jsonl")]
        assert tokens == sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])
    english = counts["text_tokens"]["en"]
    assert english < 1600
    half, whole = (text_seen(counts, budget) for budget in (3200, 6400))
    assert (half["xx"].tokens, half["xx"].unique_tokens) == (1600, 1600)
    assert (whole["xx"].tokens, whole["xx"].unique_tokens) == (3200, 3200) and whole["xx"].epochs < 1
    assert (half["en"].tokens, half["en"].unique_tokens) == (1600, english)
    assert whole["en"].unique_tokens == english and whole["en"].epochs == 3200 / english
    assert text_seen({**counts, "text_tokens": {}}, 3200) == {}  # of an older entry


def test_sources_have_their_fractions_and_repeat(model_dir: Path, tmp_path: Path) -> None:
    """Each text is one letter repeated, so that blocks show where they are from. Only the language ends."""
    letters = {"xx": ("x", 400), "en": ("e", 12), "b": ("b", 3), "a": ("a", 700)}
    folders = {name: tmp_path / (name if name in "ab" else "corpus") for name in letters}
    for name, (letter, documents) in letters.items():
        (folders[name] / "text").mkdir(parents=True, exist_ok=True)
        rows = ({"id": str(number), "text": " ".join([letter] * 30)} for number in range(documents))
        write_jsonl(folders[name] / "text" / f"{name}.train.jsonl", rows)
    settings = ct_settings(schedule_tokens=None, sources={"b": 0.1, "a": 0.3}, epochs=2)
    sources = {name: folders[name] for name in "ab"}
    for workers in (1, 2):
        out = tmp_path / f"out-{workers}"
        packing.ct_blocks(folders["xx"], model_dir, settings, out, tmp_path / f"work-{workers}", workers, sources)
    assert (tmp_path / "out-1" / "blocks.npy").read_bytes() == (tmp_path / "out-2" / "blocks.npy").read_bytes()
    blocks = np.load(tmp_path / "out-1" / "blocks.npy")
    counts = json.loads((tmp_path / "out-1" / "counts.json").read_text())
    tokenizer = packing.load_tokenizer(model_dir)
    tokens = {
        name: documents * (len(tokenizer.encode(" ".join([letter] * 30))) + 1)
        for name, (letter, documents) in letters.items()
    }
    texts = [tokenizer.decode(block).replace(tokenizer.eos_token, "") for block in blocks]
    found = {name: sum(set(text) == {letter, " "} for text in texts) for name, (letter, _) in letters.items()}
    assert sum(found.values()) == len(blocks) and found["xx"] == 2 * tokens["xx"] // 32
    for name, fraction in {"xx": 0.4, "en": 0.2, "a": 0.3, "b": 0.1}.items():
        assert abs(found[name] - fraction * len(blocks)) <= 1
    seen = text_seen(counts, counts["tokens"])
    assert {name: text.tokens for name, text in seen.items()} == {name: 32 * found[name] for name in letters}
    assert {name: seen[name].unique_tokens for name in ("xx", "en", "b")} == {n: tokens[n] for n in ("xx", "en", "b")}
    assert seen["a"].epochs < 1 and seen["xx"].epochs == 2 < seen["b"].epochs
    assert counts["sources"] == {"a": 0.3, "b": 0.1} and list(counts["text_tokens"]) == ["xx", "en", "a", "b"]


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_of_several_questions_only_the_answers_carry_the_loss(
    model_dir: Path, corpus_dir: Path, tmp_path: Path, share: float
) -> None:
    """Labels are the answers and the end; positions go through the example; replay has its share of the blocks."""
    rows = [
        {
            "prompt": f"a text {n}\nQ one?\nAnswer:",
            "output": f"first {n}",
            "family": "a",
            "more": [{"prompt": "\nQ two?\nAnswer:", "output": f"second {n}", "family": "b"}],
        }
        for n in range(20)
    ]
    (tmp_path / "items").mkdir()
    write_jsonl(tmp_path / "items" / "sft.jsonl", [*rows, {"prompt": "alone", "output": "yes", "family": "a"}])
    settings = SftBlocksSettings(tokens=16_384, block_size=256, replay_fraction=share, seed=0)
    packing.sft_blocks(tmp_path / "items", corpus_dir, model_dir, settings, tmp_path / "out", tmp_path / "work")
    blocks, labels, positions = (
        np.load(tmp_path / "out" / f"{name}.npy") for name in ("blocks", "labels", "positions")
    )
    replay = (labels != packing.IGNORED).all(axis=1)
    assert replay.sum() == share * len(blocks) == share * 64
    tokenizer = packing.load_tokenizer(model_dir)
    known = {(f" first {n}", f" second {n}{base_model.END}") for n in range(20)} | {(f" yes{base_model.END}",)}
    seen = set()
    for ids, label, position in zip(blocks[~replay], labels[~replay], positions[~replay], strict=True):
        starts = np.flatnonzero(position == 0)
        for of_example, its_labels in zip(np.split(ids, starts)[1:], np.split(label, starts)[1:], strict=True):
            answers = its_labels != packing.IGNORED
            assert (its_labels[answers] == of_example[answers]).all()
            runs = np.split(np.arange(len(answers)), np.flatnonzero(np.diff(answers)) + 1)
            texts = tuple(tokenizer.decode(of_example[run]) for run in runs if answers[run[0]])
            assert texts in known or not texts  # none: padding
            seen.add(texts)
    assert seen >= known
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())
    assert counts["trained_tokens"] == (labels != packing.IGNORED).sum()


def test_packed_examples_do_not_see_each_other(model_dir: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, use_cache=False
    )  # as the trainer sets it: a cache switches the mask off
    first, second = torch.arange(5, 17), torch.arange(40, 60)
    packed = torch.cat([first, second])[None]
    positions = torch.cat([torch.arange(12), torch.arange(20)])[None]
    with torch.no_grad():
        together = model(input_ids=packed, position_ids=positions).logits[0]
        alone = model(input_ids=second[None]).logits[0]
    torch.testing.assert_close(together[12:], alone, atol=1e-5, rtol=1e-5)


def test_every_pass_has_its_own_order(corpus_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    whole = ct_settings(schedule_tokens=None, english_fraction=0.0)
    for name, settings in (("once", whole), ("twice", whole.replace(epochs=2))):
        packing.ct_blocks(corpus_dir, model_dir, settings, tmp_path / name, tmp_path / "work")
    once, twice = (np.load(tmp_path / name / "blocks.npy").ravel() for name in ("once", "twice"))
    assert (twice[: len(once)] == once).all()
    end = packing.load_tokenizer(model_dir).eos_token_id
    counts = json.loads((tmp_path / "twice" / "counts.json").read_text())
    tokens = counts["text_tokens"]["xx"]
    assert abs(len(twice) - 2 * tokens) < 32 and counts["whole_corpus"]

    def documents(stream: Tokens) -> list[tuple[int, ...]]:
        ends = np.flatnonzero(stream == end)
        return [tuple(part.tolist()) for part in np.split(stream, ends + 1)[: len(ends)]]

    first, second = documents(twice[:tokens]), documents(twice[tokens:])
    assert set(second) <= set(first) and second != first[: len(second)]


def test_a_document_ends_as_it_is_said(corpus_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    tokenizer = packing.load_tokenizer(model_dir)
    other = next(token for token in tokenizer.get_vocab() if token not in tokenizer.all_special_tokens)
    for name, end in (("eos", None), ("other", other)):
        settings = ct_settings(document_end=end, english_fraction=0.0)
        packing.ct_blocks(corpus_dir, model_dir, settings, tmp_path / name, tmp_path / f"work-{name}")
    eos, ended = (np.load(tmp_path / name / "blocks.npy") for name in ("eos", "other"))
    ends = eos == tokenizer.eos_token_id
    assert ends.any() and (ended[ends] == tokenizer.convert_tokens_to_ids(other)).all()
    assert (ended[~ends] == eos[~ends]).all()
    with pytest.raises(BadInput, match=r"ct\.document_end: .* got <\|none\|>"):
        wrong = ct_settings(document_end="<|none|>")
        packing.ct_blocks(corpus_dir, model_dir, wrong, tmp_path / "wrong", tmp_path / "work-wrong")
