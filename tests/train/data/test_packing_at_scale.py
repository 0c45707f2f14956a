"""Blocks from many files of text.

Any number of workers, kills, exact budgets, little padding, and examples that do not see each other.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM

from common.errors import BadInput
from tests.toy_text import WORDS, sentences
from train import trainer
from train.data import packing
from train.data.blocks import Blocks, interleave
from train.data.corpus.documents import read_rows, training_files
from train.settings import CtBlocksSettings, SftBlocksSettings, TrainingSettings


def settings(**changes: Any) -> CtBlocksSettings:
    return CtBlocksSettings(language="xx", schedule_tokens=64_000, block_size=64, english_fraction=0.2, seed=0).replace(
        **changes
    )


def pack_sft(items: Path, model_dir: Path, out: Path, tokens: int, block_size: int) -> None:
    """SFT blocks without replay."""
    wanted = SftBlocksSettings(tokens=tokens, block_size=block_size, replay_fraction=0.0, seed=0)
    packing.sft_blocks(items, None, model_dir, wanted, out, out.with_name("work"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in Parquet files, as one from the hub has them; English is too short and must be repeated."""
    folder = tmp_path_factory.mktemp("sharded")
    for language, files in (("xx", 7), ("en", 2)):
        (folder / "text" / f"{language}.train").mkdir(parents=True)
        for number in range(files):
            texts = sentences(100 * number + len(language) + ord(language[0]), 90 if language == "xx" else 30)
            rows = {"id": [str(i) for i in range(len(texts))], "text": texts}
            parquet.write_table(pyarrow.table(rows), folder / "text" / f"{language}.train" / f"{number:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instructions of very different lengths, in Parquet files; a few are longer than any block."""
    folder = tmp_path_factory.mktemp("items")
    (folder / "sft").mkdir()
    rng = random.Random(0)
    for number in range(3):
        words = [min(60, 1 + int(rng.lognormvariate(2.0, 1))) for _ in range(400)] + [2000]
        rows = {
            "prompt": ["Say " + " ".join(rng.choices(WORDS, k=count)) + "?" for count in words],
            "output": [" ".join(rng.choices(WORDS, k=1 + count // 6)) for count in words],
            "family": ["hub"] * len(words),
        }
        parquet.write_table(pyarrow.table(rows), folder / "sft" / f"{number:05d}.parquet")
    return folder


def test_a_budget_is_met_exactly_with_nothing_but_tokens(sharded: Path, model_dir: Path, tmp_path: Path) -> None:
    packing.ct_blocks(sharded, model_dir, settings(), tmp_path / "a", tmp_path / "work")
    blocks, counts = (
        np.load(tmp_path / "a" / "blocks.npy", mmap_mode="r"),
        json.loads((tmp_path / "a" / "counts.json").read_text()),
    )
    assert blocks.shape == (1000, 64) and counts["tokens"] == 64_000 and not counts["whole_corpus"]
    assert counts["real_token_share"] >= 0.995
    packing.ct_blocks(sharded, model_dir, settings(schedule_tokens=32_000), tmp_path / "b", tmp_path / "work")
    assert (
        np.load(tmp_path / "b" / "blocks.npy") == blocks[:500]
    ).all()  # a longer schedule has the shorter one's data first


def test_the_language_comes_once_and_whole_and_english_is_repeated(
    sharded: Path, model_dir: Path, tmp_path: Path
) -> None:
    packing.ct_blocks(sharded, model_dir, settings(schedule_tokens=10**9), tmp_path / "a", tmp_path / "work")
    tokenizer = packing.load_tokenizer(model_dir)
    assert tokenizer.eos_token_id is not None
    blocks = np.load(tmp_path / "a" / "blocks.npy")
    source = np.array([s for s, _ in zip(interleave([0.8, 0.2]), blocks, strict=False)])
    for number, language in enumerate(("xx", "en")):
        texts = [row["text"] for path in training_files(sharded, language) for row in read_rows(path)]
        ids = blocks[source == number].ravel()
        documents = [
            tokenizer.decode(part[:-1])
            for part in np.split(ids, np.flatnonzero(ids == tokenizer.eos_token_id) + 1)[:-1]
        ]
        assert set(documents) <= set(texts)
        if language == "xx":
            assert (
                len(set(documents)) == len(documents) > 0.95 * len(texts)
            )  # the end, shorter than a block, is left out
        else:
            assert set(documents[: len(texts)]) == set(texts) and len(documents) > 1.5 * len(texts)


def test_the_same_blocks_for_any_number_of_workers(
    sharded: Path, instructions: Path, model_dir: Path, tmp_path: Path
) -> None:
    sft = SftBlocksSettings(tokens=40_000, block_size=512, replay_fraction=0.25, seed=0)
    for workers in (1, 3):
        out, work = tmp_path / f"ct{workers}", tmp_path / f"w{workers}"
        packing.ct_blocks(sharded, model_dir, settings(), out, work, workers)
        out, work = tmp_path / f"sft{workers}", tmp_path / f"v{workers}"
        packing.sft_blocks(instructions, sharded, model_dir, sft, out, work, workers)
    assert contents(tmp_path / "ct1") == contents(tmp_path / "ct3")
    assert contents(tmp_path / "sft1") == contents(tmp_path / "sft3")
    packing.ct_blocks(sharded, model_dir, settings(seed=1), tmp_path / "other", tmp_path / "w1")
    assert contents(tmp_path / "ct1") != contents(tmp_path / "other")


KILLED = """
import json, os, signal, sys
from pathlib import Path
from train.data import packing, tokenization
from train.settings import CtBlocksSettings
rename, left = os.rename, 5
def watched(*paths):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
tokenization.os.rename = watched
settings = CtBlocksSettings(**json.loads(sys.argv[3]))
packing.ct_blocks(Path(sys.argv[1]), Path(sys.argv[2]), settings, Path(sys.argv[4]), Path(sys.argv[5]))
"""


def test_a_kill_costs_the_file_that_was_being_tokenised(sharded: Path, model_dir: Path, tmp_path: Path) -> None:
    folders = [str(sharded), str(model_dir)], [str(tmp_path / "killed"), str(tmp_path / "work")]
    arguments = [*folders[0], json.dumps(settings().model_dump()), *folders[1]]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True).returncode == -9
    done = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "work").glob("*/tokens.npy")
        if path.parent.suffix[1:].isdigit()
    }
    packing.ct_blocks(sharded, model_dir, settings(), tmp_path / "out", tmp_path / "work")
    assert len(done) >= 4 and all(
        path.stat().st_mtime_ns == time for path, time in done.items() if len(path.parent.suffixes) == 2
    )
    packing.ct_blocks(sharded, model_dir, settings(), tmp_path / "straight", tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_instructions_of_all_lengths_lose_little_room(instructions: Path, model_dir: Path, tmp_path: Path) -> None:
    pack_sft(instructions, model_dir, tmp_path / "sft", tokens=51_200, block_size=512)
    blocks, labels, positions = (
        np.load(tmp_path / "sft" / f"{name}.npy") for name in ("blocks", "labels", "positions")
    )
    counts = json.loads((tmp_path / "sft" / "counts.json").read_text())
    assert blocks.shape == (100, 512) and counts["real_token_share"] >= 0.97 and counts["examples_too_long"] > 0
    end = packing.load_tokenizer(model_dir).eos_token_id
    padding = sum(512 - (np.flatnonzero(label != packing.IGNORED)[-1] + 1) for label in labels)
    assert counts["real_token_share"] == pytest.approx(1 - padding / blocks.size)
    assert counts["trained_tokens"] == (labels != packing.IGNORED).sum()
    assert (blocks[labels != packing.IGNORED] == labels[labels != packing.IGNORED]).all()
    starts = positions == 0
    assert (blocks[:, :-1][starts[:, 1:]] == end).all()  # before each example stands the end of another
    assert len({tuple(np.flatnonzero(row)) for row in starts[:20]}) > 10  # blocks are not in the order of their lengths


def test_examples_longer_than_every_block_are_refused(instructions: Path, model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="sft.block_size=3: all .* instruction examples are longer"):
        pack_sft(instructions, model_dir, tmp_path / "sft", tokens=30, block_size=3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_packed_example_has_the_logits_that_it_has_alone(
    instructions: Path, model_dir: Path, tmp_path: Path, attention: str
) -> None:
    pack_sft(instructions, model_dir, tmp_path / "sft", tokens=1280, block_size=128)
    rows = Blocks(tmp_path / "sft")
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, attn_implementation=attention, use_cache=False
    ).eval()  # as the trainer sets it
    batch = {name: torch.stack([rows[index][name] for index in range(4)]) for name in ("input_ids", "position_ids")}
    compared = 0
    with torch.no_grad():
        together = model(**batch).logits
        for ids, positions, logits in zip(batch["input_ids"], batch["position_ids"], together, strict=True):
            starts = [*torch.nonzero(positions == 0).flatten().tolist(), len(ids)]
            for start, stop in itertools.pairwise(starts):
                torch.testing.assert_close(
                    logits[start:stop], model(input_ids=ids[None, start:stop]).logits[0], atol=1e-5, rtol=1e-5
                )
                compared += 1
    assert compared > 8


def test_the_trainer_sees_each_example_alone(instructions: Path, model_dir: Path, tmp_path: Path) -> None:
    """The first loss that the trainer reports is that of the same examples one by one.

    Its own call of the model keeps them apart.
    """
    pack_sft(instructions, model_dir, tmp_path / "sft", tokens=512, block_size=128)
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    rows, total, count = Blocks(tmp_path / "sft"), 0.0, 0
    for row in (rows[index] for index in range(4)):
        starts = [*torch.nonzero(row["position_ids"] == 0).flatten().tolist(), 128]
        for start, stop in itertools.pairwise(starts):
            labels = row["labels"][start + 1 : stop]
            with torch.no_grad():
                logits = model(input_ids=row["input_ids"][None, start:stop]).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(
                logits, labels, ignore_index=packing.IGNORED, reduction="sum"
            ).item()
            count += int((labels != packing.IGNORED).sum())
    described = TrainingSettings(
        tokens=512,
        schedule_tokens=512,
        batch_tokens=512,
        block_size=128,
        learning_rate=1e-3,
        min_lr_ratio=0.1,
        warmup_ratio=0.1,
        weight_decay=0.0,
        seed=0,
    )
    trainer.train(model_dir, tmp_path / "sft", described, tmp_path / "out", work=tmp_path / "training")
    first = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(total / count, abs=1e-4)
