"""Text -> blocks of token ids, memory-mapped on disk. CT packs running text; SFT packs whole examples and masks all but the answers.

`blocks.npy` is (blocks, block_size), uint16 or uint32. SFT adds `labels.npy` (int32, −100 where there is no loss) and `positions.npy` (uint16, restarting
at 0 with each example: transformers derives a block-diagonal attention mask from them, so that examples do not see each other).
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from train.corpus import read_jsonl
from train.errors import BadInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
OPEN_BLOCKS = 64  # how many blocks are filled at once: more lose less room to padding
Example = tuple[list[int], list[int]]  # token ids and labels of one example


def interleave(shares: Sequence[float]) -> Iterator[int]:
    """Which source the next block comes from: always the one furthest behind its share, so that every window has the mixture within one block."""
    counts = [0] * len(shares)
    for total in itertools.count(1):
        behind = [share * total - count for share, count in zip(shares, counts, strict=True)]
        chosen = max(range(len(shares)), key=behind.__getitem__)
        counts[chosen] += 1
        yield chosen


def chunks(documents: Iterable[str], encode: Callable[[list[str]], list[list[int]]], end: int, size: int) -> Iterator[list[int]]:
    """Documents as one stream of tokens, each followed by the end token, cut into blocks of `size`; the last, incomplete one is left out."""
    buffer: list[int] = []
    for batch in _batched(documents, 64):
        for ids in encode(list(batch)):
            buffer += [*ids, end]
            while len(buffer) >= size:
                yield buffer[:size]
                del buffer[:size]


def _batched(items: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    iterator = iter(items)
    while batch := tuple(itertools.islice(iterator, size)):
        yield batch


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Texts to token ids, without special tokens."""
    return lambda texts: tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def shuffled(documents: Sequence[str], seed: str, epochs: int | None = None) -> Iterator[str]:
    """The documents in an order of their own for each epoch; for ever where `epochs` is None."""
    for epoch in itertools.count() if epochs is None else range(epochs):
        order = list(documents)
        random.Random(f"{seed}:{epoch}").shuffle(order)
        yield from order


def ct_blocks(corpus_dir: Path, tokenizer_dir: Path, settings: dict[str, Any], out: Path) -> None:
    """Packs the language and English, `english_share` of the blocks, up to the schedule's tokens or the end of the language's text.

    Settings: language, schedule_tokens, block_size, english_share, seed. The language is never repeated, English is where it must be.
    """
    tokenizer = load_tokenizer(tokenizer_dir)
    size, share, language = settings["block_size"], settings["english_share"], settings["language"]
    sources = [
        chunks(shuffled(texts(corpus_dir, language), f"{settings['seed']}:{language}", epochs=1), encoder(tokenizer), tokenizer.eos_token_id, size),
        chunks(shuffled(texts(corpus_dir, "en"), f"{settings['seed']}:en"), encoder(tokenizer), tokenizer.eos_token_id, size),
    ]
    wanted = -(-settings["schedule_tokens"] // size)
    blocks = []
    for source in itertools.islice(interleave([1 - share, share]), wanted):
        block = next(sources[source], None)
        if block is None:
            break
        blocks.append(block)
    if not blocks:
        raise BadInput(f"corpus: the {language} training text is shorter than one block of ct.block_size={size} tokens")
    save(out, "blocks", blocks, len(tokenizer))
    write_counts(out, blocks=len(blocks), tokens=len(blocks) * size, english_share=share, real_token_share=1.0, whole_corpus=len(blocks) < wanted)


def sft_blocks(items_dir: Path, tokenizer_dir: Path, settings: dict[str, Any], out: Path, corpus_dir: Path | None = None) -> None:
    """Packs instruction examples, with a `replay_share` of blocks of English running text, up to `tokens`; repeats the examples where they are fewer.

    Settings: tokens, block_size, replay_share, seed.
    """
    tokenizer = load_tokenizer(tokenizer_dir)
    size, end = settings["block_size"], tokenizer.eos_token_id
    examples = encode_examples(read_jsonl(items_dir / "sft.jsonl"), tokenizer)
    longest = max(len(ids) for ids, _ in examples)
    if longest > size:
        raise BadInput(f"sft.block_size={size}: the longest instruction example has {longest} tokens")
    packed = pack(examples, size, end, settings["seed"])
    replay: Iterator[list[int]] = iter(())
    if settings["replay_share"] > 0:
        assert corpus_dir is not None
        replay = chunks(shuffled(texts(corpus_dir, "en"), f"{settings['seed']}:replay"), encoder(tokenizer), end, size)
    rows = []
    for source in itertools.islice(interleave([1 - settings["replay_share"], settings["replay_share"]]), -(-settings["tokens"] // size)):
        if source == 0:
            rows.append(next(packed))
        else:
            block = next(replay)
            rows.append((block, block, list(range(size))))
    save(out, "blocks", [row[0] for row in rows], len(tokenizer))
    np.save(out / "labels.npy", np.array([row[1] for row in rows], dtype=np.int32))
    np.save(out / "positions.npy", np.array([row[2] for row in rows], dtype=np.uint16))
    answers = sum(label != IGNORED for row in rows for label in row[1])
    real = sum(sum(token != end or label == end for token, label in zip(row[0], row[1], strict=True)) for row in rows)
    write_counts(out, blocks=len(rows), tokens=len(rows) * size, examples=len(examples), trained_tokens=answers, real_token_share=real / (len(rows) * size))


def encode_examples(rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Each instruction as prompt + answer + end token; the loss is on the answer and the end token only."""
    encode = encoder(tokenizer)
    prompts = encode([row["prompt"] for row in rows])
    answers = encode([" " + row["output"] for row in rows])
    return [
        (question + [*answer, tokenizer.eos_token_id], [IGNORED] * len(question) + [*answer, tokenizer.eos_token_id])
        for question, answer in zip(prompts, answers, strict=True)
    ]


def pack(examples: list[Example], size: int, end: int, seed: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Blocks of whole examples for ever, reshuffled each epoch: (token ids, labels, positions), each of length `size`.

    Best fit over a window of open blocks: an example goes where it leaves the least room. Padding is end tokens without loss.
    """
    window: list[tuple[int, list[Example]]] = []  # room left, examples
    for epoch in itertools.count():
        order = list(examples)
        random.Random(f"{seed}:sft:{epoch}").shuffle(order)
        for example in order:
            length = len(example[0])
            fitting = [place for place, (room, _) in enumerate(window) if room >= length]
            if fitting:
                place = min(fitting, key=lambda place: window[place][0])
                room, block = window[place]
                window[place] = (room - length, [*block, example])
            else:
                window.append((size - length, [example]))
            if len(window) > OPEN_BLOCKS:
                yield _joined(window.pop(min(range(len(window)), key=lambda place: window[place][0]))[1], size, end)


def _joined(examples: list[Example], size: int, end: int) -> tuple[list[int], list[int], list[int]]:
    ids = [token for tokens, _ in examples for token in tokens]
    labels = [label for _, own in examples for label in own]
    positions = [position for tokens, _ in examples for position in range(len(tokens))]
    padding = size - len(ids)
    return ids + [end] * padding, labels + [IGNORED] * padding, positions + list(range(padding))


def texts(corpus_dir: Path, language: str, split: str = "train") -> list[str]:
    """The documents of one language and split of a corpus stage."""
    return [row["text"] for row in read_jsonl(corpus_dir / "text" / f"{language}.{split}.jsonl")]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder; refused where it has no end token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        raise BadInput(f"model: the tokenizer in {folder} has no end-of-text token, which separates documents")
    return tokenizer


def save(out: Path, name: str, blocks: list[list[int]], vocabulary: int) -> None:
    """Blocks as `<name>.npy`, in the smallest unsigned type that holds the vocabulary."""
    out.mkdir(parents=True, exist_ok=True)
    kind: type = np.uint16 if vocabulary <= 2**16 else np.uint32
    array: NDArray[Any] = np.array(blocks, dtype=kind)
    np.save(out / f"{name}.npy", array)


def write_counts(out: Path, **counts: Any) -> None:
    """`counts.json` beside the blocks."""
    (out / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
