"""Text -> blocks of token ids, memory-mapped on disk. CT packs running text; SFT packs whole examples and masks all but the answers.

`blocks.npy` is (blocks, block_size), uint16 or uint32. SFT adds `labels.npy` (int32, −100 where there is no loss) and `positions.npy` (uint16, or
uint32 for blocks above 65,536; restarting at 0 with each example: transformers derives a block-diagonal attention mask from them, so that examples
do not see each other).

Each file of text is tokenised once, by `workers` processes, into the work folder, which outlives a kill; the blocks are then written one after the
other. Memory holds a few files, never all of them. The blocks are the same for any number of workers.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import BadInput
from train.data.blocks import BlockFile, Tokens, best_fit, cut, interleave, kind_for
from train.data.corpus.build import files_of, read_rows
from train.data.instructions import instruction_files
from train.data.processes import Workers
from train.data.tokenization import AT_ONCE, Encoder, Pass, Tokenised, batched, begin, passes, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
OPEN_BLOCKS = 64  # how many blocks of a stream of examples are filled at once: more lose less room to padding
Example = tuple[Tokens, int]  # token ids of prompt, answer and end, and how many of them are the prompt's


@dataclass
class Tally:
    """What is counted while examples are packed."""

    examples: int = 0
    too_long: int = 0
    trained: int = 0
    padding: int = 0


def ct_blocks(corpus_dir: Path, tokenizer_dir: Path, settings: dict[str, Any], out: Path, work: Path) -> None:
    """Packs the language and English, `english_share` of the blocks, up to the schedule's tokens or the end of the language's text.

    Settings: language, schedule_tokens, block_size, english_share, seed, workers (1). The language is never repeated, English is where it must be.
    `work` keeps the tokens of each file until the blocks are published.
    """
    encoder = Encoder.of(load_tokenizer(tokenizer_dir))
    size, share, language, seed = (
        settings["block_size"],
        settings["english_share"],
        settings["language"],
        settings["seed"],
    )
    wanted = -(-settings["schedule_tokens"] // size)
    blocks = BlockFile(out / "blocks.npy", size, encoder.kind)
    with Workers(settings.get("workers", 1), begin, (encoder,)) as workers:
        own = passes(files_of(corpus_dir, language), f"{seed}:{language}", workers, work, epochs=1)
        english = passes(
            files_of(corpus_dir, "en"), f"{seed}:en", workers, work, ahead=max(1, round(workers.count * share))
        )
        sources = [cut(stream(own), size), cut(stream(english), size)]
        for source in itertools.islice(interleave([1 - share, share]), wanted):
            block = next(sources[source], None)
            if block is None:
                break
            blocks.append(block)
    blocks.close()
    if not blocks.count:
        raise BadInput(f"corpus: the {language} training text is shorter than one block of ct.block_size={size} tokens")
    whole = blocks.count < wanted
    write_counts(
        out,
        blocks=blocks.count,
        tokens=blocks.count * size,
        english_share=share,
        real_token_share=1.0,
        whole_corpus=whole,
    )


def sft_blocks(
    items_dir: Path,
    tokenizer_dir: Path,
    settings: dict[str, Any],
    out: Path,
    work: Path,
    corpus_dir: Path | None = None,
) -> None:
    """Packs instruction examples, with a `replay_share` of blocks of English running text, up to `tokens`; repeats the examples where they are fewer.

    Settings: tokens, block_size, replay_share, seed, workers (1). `work` keeps the tokens of each file until the blocks are published.
    """
    encoder = Encoder.of(load_tokenizer(tokenizer_dir))
    size, share, seed, tally = settings["block_size"], settings["replay_share"], settings["seed"], Tally()
    kinds = {"blocks": encoder.kind, "labels": np.int32, "positions": kind_for(size)}
    columns = [BlockFile(out / f"{name}.npy", size, kind) for name, kind in kinds.items()]
    files = instruction_files(items_dir)
    single = files[0].suffix == ".jsonl"
    with Workers(settings.get("workers", 1), begin, (encoder,)) as workers:
        read = passes(files, f"{seed}:sft", workers, work)
        packed = one_stream(read, size, tally) if single else file_by_file(read, size, tally, len(files))
        english: Iterator[Tokens] = iter(())
        if share > 0:
            assert corpus_dir is not None
            english = cut(stream(passes(files_of(corpus_dir, "en"), f"{seed}:replay", workers, work)), size)
        for source in itertools.islice(interleave([1 - share, share]), -(-settings["tokens"] // size)):
            row = joined(next(packed), size, encoder.end, tally) if source == 0 else running(next(english), tally)
            for column, values in zip(columns, row, strict=True):
                column.append(values)
    for column in columns:
        column.close()
    tokens = columns[0].count * size
    counts: dict[str, Any] = {
        "blocks": columns[0].count,
        "tokens": tokens,
        "examples": tally.examples,
        "trained_tokens": tally.trained,
    }
    counts["real_token_share"] = (tokens - tally.padding) / tokens
    write_counts(out, **counts, **({"examples_too_long": tally.too_long} if tally.too_long else {}))


def one_stream(read: Iterable[Pass], size: int, tally: Tally) -> Iterator[list[Example]]:
    """The examples of each block, for ever, from one file that is read over and over, each time in a random order.

    Best fit over a window of open blocks, that no epoch closes: an example goes where it leaves the least room.
    """
    examples: list[Example] = []

    def arriving() -> Iterator[tuple[int, int]]:
        for file, rng in read:
            if not examples:
                examples.extend(examples_of(file))
                tally.examples = len(examples)
                longest = max(len(tokens) for tokens, _ in examples)
                if longest > size:
                    raise BadInput(f"sft.block_size={size}: the longest instruction example has {longest} tokens")
            order = list(range(len(examples)))
            rng.shuffle(order)
            yield from ((place, len(examples[place][0])) for place in order)

    for block in best_fit(arriving(), size, OPEN_BLOCKS):
        yield [examples[place] for place in block]


def file_by_file(read: Iterable[Pass], size: int, tally: Tally, files: int) -> Iterator[list[Example]]:
    """The examples of each block, for ever, from many files: best-fit decreasing within a file, its blocks in a random order.

    It pads less than a stream does. Examples longer than a block are left out, and counted.
    """
    for number, (file, rng) in enumerate(read):
        examples = examples_of(file)
        order = [place for place, (tokens, _) in enumerate(examples) if len(tokens) <= size]
        if number < files:
            tally.examples += len(order)
            tally.too_long += len(examples) - len(order)
        if number >= files and not tally.examples:
            raise BadInput(f"sft.block_size={size}: all {tally.too_long:,} instruction examples are longer")
        rng.shuffle(order)
        order.sort(key=lambda place: len(examples[place][0]), reverse=True)
        blocks = list(best_fit(((place, len(examples[place][0])) for place in order), size, None))
        rng.shuffle(blocks)
        yield from ([examples[place] for place in block] for block in blocks)


def examples_of(file: Tokenised) -> list[Example]:
    """Each instruction as prompt + answer + end token, with the length of its prompt: the loss is on the answer and the end token only."""
    return list(zip(file.documents(), file.masked.tolist(), strict=True))


def joined(examples: list[Example], size: int, end: int, tally: Tally) -> tuple[Tokens, Tokens, Tokens]:
    """A block of examples: ids, labels and positions, each of length `size`. Padding is end tokens without loss."""
    ids = np.full(size, end, np.int64)
    labels = np.full(size, IGNORED, np.int32)
    positions = np.empty(size, np.int64)
    start = 0
    for tokens, masked in examples:
        stop = start + len(tokens)
        ids[start:stop] = tokens
        labels[start + masked : stop] = tokens[masked:]
        positions[start:stop] = np.arange(len(tokens))
        tally.trained += len(tokens) - masked
        start = stop
    positions[start:] = np.arange(size - start)
    tally.padding += size - start
    return ids, labels, positions


def running(block: Tokens, tally: Tally) -> tuple[Tokens, Tokens, Tokens]:
    """A block of running text: the loss is on all of it."""
    tally.trained += len(block)
    return block, block, np.arange(len(block))


def texts(corpus_dir: Path, language: str) -> list[str]:
    """The training documents of a language, all in memory: for the small base model's recipe."""
    return [row["text"] for path in files_of(corpus_dir, language) for row in read_rows(path)]


def shuffled(documents: Sequence[str], seed: str) -> Iterator[str]:
    """The documents for ever, in an order of their own for each epoch."""
    for epoch in itertools.count():
        order = list(documents)
        random.Random(f"{seed}:{epoch}").shuffle(order)
        yield from order


def chunks(
    documents: Iterable[str], encode: Callable[[list[str]], list[Tokens]], end: int, size: int
) -> Iterator[Tokens]:
    """Documents as one stream of tokens, each followed by the end token, cut into blocks of `size`; the last, incomplete one is left out."""
    return cut((np.append(ids, end) for batch in batched(documents, AT_ONCE) for ids in encode(batch)), size)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder; refused where it has no end token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        raise BadInput(f"model: the tokenizer in {folder} has no end-of-text token, which separates documents")
    return tokenizer


def write_counts(out: Path, **counts: Any) -> None:
    """`counts.json` beside the blocks."""
    (out / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
