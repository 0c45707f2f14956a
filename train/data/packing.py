"""Text -> blocks of token ids, memory-mapped on disk.

CT packs running text; SFT packs whole examples and masks all but the answers.

Conversations are put into a chat template before (train/data/chat); beside their blocks lie `chat_template.jinja` and
`examples.jsonl`, the first few as text.

`blocks.npy` is (blocks, block_size), uint16 or uint32. SFT adds `labels.npy` (int32, −100 where there is no loss) and
`positions.npy` (uint16, or uint32 for blocks above 65,536; restarting at 0 with each example: transformers derives a
block-diagonal attention mask from them, so that examples do not see each other).

Each file of text is tokenised once, by `workers` processes, into the work folder, which outlives a kill; the blocks are
then written one after the other. Memory holds a few files, never all of them. The blocks are the same for any number of
workers.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import BadInput
from common.files import write_json, write_jsonl
from common.processes import Workers
from train.data import chat_template
from train.data.blocks import BlockFile, Tokens, best_fit, chunk, dtype_for, interleave
from train.data.chat_template import LEFT_OUT, ChatTemplate, Example, Masking, check_trainable, template_of
from train.data.conversations import SHORTENED
from train.data.corpus.documents import read_rows, training_files
from train.data.instructions import COUNTED, instruction_files
from train.data.tokenization import (
    BATCH_SIZE,
    FileEpoch,
    TokenizerFile,
    batched,
    init_worker,
    read_epochs,
    stream_documents,
)
from train.stage_settings import CtBlocksSettings, SftBlocksSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
OPEN_BLOCKS = 64  # how many blocks of a stream of examples are filled at once: more lose less room to padding
SHOWN = 5  # examples of conversations that are written next to their blocks as text


@dataclass
class Tally:
    """Counts of packing."""

    examples: int = 0
    too_long: int = 0
    trained: int = 0
    padding: int = 0
    counted: Counter[str] = field(default_factory=Counter)  # of conversations, each file once
    first: list[Example] = field(default_factory=list)  # of conversations

    def conversations(self, read: Iterable[FileEpoch], files: int) -> Iterator[FileEpoch]:
        """Yield the files as they come, those of the first pass counted.

        Raises BadInput if they cannot be trained on.
        """
        for number, (file, rng) in enumerate(read):
            if number < files:
                self.counted += Counter(file.counts)
                self.first += file.examples()[: SHOWN - len(self.first)]
                if self.counted["conversations"] or number + 1 == files:
                    check_trainable(self.counted, "sft")
            yield file, rng


@dataclass
class UniqueTokenCounter:
    """A count of the tokens of a text of several files, without repeated ones."""

    files: int
    tokens: int = 0

    def counted(self, pieces: Iterable[Tokens]) -> Iterator[Tokens]:
        """Yield the pieces, one a file, as they come."""
        for number, piece in enumerate(pieces):
            self.tokens += len(piece) if number < self.files else 0
            yield piece


def count_control_tokens(read: Iterable[FileEpoch], files: int, control: Counter[str]) -> Iterator[FileEpoch]:
    """Yield the passes as they come; the control tokens that are written in a file are counted when it is first
    read.
    """
    for number, (file, rng) in enumerate(read):
        if number < files:
            control.update(file.control)
        yield file, rng


def ct_blocks(
    corpus_dir: Path, tokenizer_dir: Path, settings: CtBlocksSettings, out: Path, work: Path, workers: int = 1
) -> None:
    """Pack the language and English up to the schedule's tokens or the end of the language's text.

    The language is read `epochs` times, each time in another order; English is repeated where it must be. `work` keeps
    the tokens of each file until the blocks are published. `workers`: processes that tokenise; the blocks do not depend
    on it. Raises BadInput where the text is shorter than one block.
    """
    tokenizer = TokenizerFile.of(load_tokenizer(tokenizer_dir), document_end=settings.document_end)
    size, share, language, seed = settings.block_size, settings.english_share, settings.language, settings.seed
    wanted = None if settings.schedule_tokens is None else -(-settings.schedule_tokens // size)
    blocks, control = BlockFile(out / "blocks.npy", size, tokenizer.dtype), Counter[str]()
    with Workers(workers, init_worker, (tokenizer,)) as pool:
        ahead = max(1, round(pool.count * share))
        files = {name: training_files(corpus_dir, name) for name in (language, "en")}
        read = [
            read_epochs(files[language], f"{seed}:{language}", pool, work, epochs=settings.epochs),
            read_epochs(files["en"], f"{seed}:en", pool, work, ahead=ahead),
        ]
        once = {name: UniqueTokenCounter(len(paths)) for name, paths in files.items()}
        sources = [
            chunk(once[name].counted(stream_documents(count_control_tokens(text, len(files[name]), control))), size)
            for name, text in zip(files, read, strict=True)
        ]
        for source in itertools.islice(interleave([1 - share, share]), wanted):
            block = next(sources[source], None)
            if block is None:
                break
            blocks.append(block)
    blocks.close()
    if not blocks.count:
        raise BadInput(
            f"corpus: the {language} training text must fill one block of ct.block_size={size} tokens. Give more text."
        )
    write_counts(
        out,
        blocks=blocks.count,
        tokens=blocks.count * size,
        english_share=share,
        real_token_share=1.0,
        whole_corpus=wanted is None or blocks.count < wanted,
        text_tokens={name: text.tokens for name, text in once.items()},
        **({"control_tokens": control} if control else {}),
    )


def sft_blocks(
    items_dir: Path,
    corpus_dir: Path | None,
    tokenizer_dir: Path,
    settings: SftBlocksSettings,
    out: Path,
    work: Path,
    workers: int = 1,
) -> None:
    """Pack instruction examples, and blocks of running text among them, up to `tokens`.

    The examples are repeated where they are fewer.

    `corpus_dir` is needed where `replay_share` is not 0. `work` keeps the tokens of each file until the blocks are
    published. `workers`: processes that tokenise; the blocks do not depend on it. Raises BadInput for examples that are
    longer than a block, and for a template or conversations that cannot be trained on.
    """
    loaded = load_tokenizer(tokenizer_dir)
    tokenizer = TokenizerFile.of(loaded, masking_of(loaded, settings))
    size, share, seed, tally = settings.block_size, settings.replay_share, settings.seed, Tally()
    dtypes = {"blocks": tokenizer.dtype, "labels": np.int32, "positions": dtype_for(size)}
    columns = [BlockFile(out / f"{name}.npy", size, dtype) for name, dtype in dtypes.items()]
    files, control = instruction_files(items_dir), Counter[str]()
    single = files[0].suffix == ".jsonl"
    with Workers(workers, init_worker, (tokenizer,)) as pool:
        read = count_control_tokens(read_epochs(files, f"{seed}:sft", pool, work), len(files), control)
        if tokenizer.masking:
            read = tally.conversations(read, len(files))
        packed = pack_stream(read, size, tally) if single else pack_files(read, size, tally, len(files))
        replay: Iterator[Tokens] = iter(())
        if share > 0:
            assert corpus_dir is not None
            text = training_files(corpus_dir, settings.language)
            replayed = count_control_tokens(read_epochs(text, f"{seed}:replay", pool, work), len(text), control)
            replay = chunk(stream_documents(replayed), size)
        for source in itertools.islice(interleave([1 - share, share]), -(-settings.tokens // size)):
            row = (
                example_block(next(packed), size, tokenizer.end, tally)
                if source == 0
                else text_block(next(replay), tally)
            )
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
        "real_token_share": (tokens - tally.padding) / tokens,
    }
    seen = {"examples_too_long": tally.too_long, "control_tokens": control}
    counts |= {name: count for name, count in seen.items() if count}
    if tokenizer.masking:
        counts |= chat_counts(items_dir, tally.counted)
        write_template(loaded, tokenizer.masking.template, tally.first, out)
    write_counts(out, **counts)


def masking_of(tokenizer: PreTrainedTokenizerBase, settings: SftBlocksSettings) -> Masking | None:
    """Return the way conversations become examples; None for instructions without a template. Raises BadInput."""
    how = settings.chat
    if how is None:
        return None
    template = template_of(tokenizer, how, "model: its tokenizer")
    return Masking(template, how.system, settings.block_size, how.too_long == "cut")


def chat_counts(items_dir: Path, counted: Mapping[str, int]) -> dict[str, Any]:
    """Return the counts next to blocks of conversations: how many there are, and how many were left out, by reason."""
    kept = ("conversations", "answers", "sequences", "cut", "unrolled", "system_in_question")
    before = json.loads((items_dir / "counts.json").read_text(encoding="utf-8")).get(COUNTED, {})
    left_out = {name.removeprefix(LEFT_OUT): count for name, count in counted.items() if name.startswith(LEFT_OUT)}
    left_out |= {name: count for name, count in before.items() if name != SHORTENED}
    shortened = {SHORTENED: before[SHORTENED]} if before.get(SHORTENED) else {}
    conversed = {name: counted[name] for name in kept if counted.get(name)}
    return {"chat": {**conversed, **shortened, "left_out": left_out}}


def write_template(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, examples: Sequence[Example], out: Path
) -> None:
    """Write the template, for the checkpoint that learns it, and some examples as text, for people."""
    chat_template.write_trained_template(chat_template.TrainedTemplate(template.render.text, template.stop_token), out)
    shown = []
    for ids, loss in examples:
        runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(loss)) + 1)
        trained = [tokenizer.decode(ids[run].tolist()) for run in runs if loss[run[0]]]
        shown.append({"tokens": len(ids), "text": tokenizer.decode(ids.tolist()), "trained": trained})
    write_jsonl(out / "examples.jsonl", shown)


def pack_stream(read: Iterable[FileEpoch], size: int, tally: Tally) -> Iterator[list[Example]]:
    """Yield the examples of each block, forever, from one file that is read over and over, each time in a random order.

    Best fit over a window of open blocks, that no epoch closes: an example goes where it leaves the least room.
    """
    examples: list[Example] = []

    def arriving() -> Iterator[tuple[int, int]]:
        for file, rng in read:
            if not examples:
                examples.extend(file.examples())
                tally.examples = len(examples)
                longest = max(len(tokens) for tokens, _ in examples)
                if longest > size:
                    raise BadInput(
                        f"sft.block_size={size}: must be at least {longest}, the tokens of the longest instruction "
                        "example."
                    )
            order = list(range(len(examples)))
            rng.shuffle(order)
            yield from ((number, len(examples[number][0])) for number in order)

    for block in best_fit(arriving(), size, OPEN_BLOCKS):
        yield [examples[number] for number in block]


def pack_files(read: Iterable[FileEpoch], size: int, tally: Tally, files: int) -> Iterator[list[Example]]:
    """Yield the examples of each block, forever, from many files.

    They are packed by best-fit decreasing within a file, and its blocks put in a random order.

    It pads less than a stream does. Examples longer than a block are left out, and counted.
    """
    for turn, (file, rng) in enumerate(read):
        examples = file.examples()
        order = [number for number, (tokens, _) in enumerate(examples) if len(tokens) <= size]
        if turn < files:
            tally.examples += len(order)
            tally.too_long += len(examples) - len(order)
        if turn >= files and not tally.examples:
            raise BadInput(
                f"sft.block_size={size}: all {tally.too_long:,} instruction examples are longer. Set a larger value."
            )
        rng.shuffle(order)
        order.sort(key=lambda number: len(examples[number][0]), reverse=True)
        blocks = list(best_fit(((number, len(examples[number][0])) for number in order), size, None))
        rng.shuffle(blocks)
        yield from ([examples[number] for number in block] for block in blocks)


def example_block(examples: list[Example], size: int, end: int, tally: Tally) -> tuple[Tokens, Tokens, Tokens]:
    """Return a block of examples: ids, labels and positions, each of length `size`. Padding is end tokens without loss.

    An example is one sequence, however many questions it has: its positions go through, and its answers are seen by
    the questions after them.
    """
    ids = np.full(size, end, np.int64)
    labels = np.full(size, IGNORED, np.int32)
    positions = np.empty(size, np.int64)
    start = 0
    for tokens, answers in examples:
        stop = start + len(tokens)
        ids[start:stop] = tokens
        labels[start:stop][answers] = tokens[answers]
        positions[start:stop] = np.arange(len(tokens))
        tally.trained += int(answers.sum())
        start = stop
    positions[start:] = np.arange(size - start)
    tally.padding += size - start
    return ids, labels, positions


def text_block(block: Tokens, tally: Tally) -> tuple[Tokens, Tokens, Tokens]:
    """Return a block of running text: the loss is on all of it."""
    tally.trained += len(block)
    return block, block, np.arange(len(block))


def texts(corpus_dir: Path, language: str, wanted: Callable[[str], bool]) -> list[str]:
    """Return the training documents of a language whose ids are `wanted`, all in memory: for the small base model's
    recipe.
    """
    rows = (row for path in training_files(corpus_dir, language) for row in read_rows(path))
    return [row["text"] for row in rows if wanted(row["id"])]


def shuffled(documents: Sequence[str], seed: str) -> Iterator[str]:
    """Yield the documents forever, in an order of their own for each epoch."""
    for epoch in itertools.count():
        order = list(documents)
        random.Random(f"{seed}:{epoch}").shuffle(order)
        yield from order


def chunks(
    documents: Iterable[str], encode: Callable[[Sequence[str]], list[Tokens]], end: int, size: int
) -> Iterator[Tokens]:
    """Return documents as one stream of tokens, each followed by the end token, cut into blocks of `size`.

    The last, incomplete one is left out.
    """
    return chunk((np.append(ids, end) for batch in batched(documents, BATCH_SIZE) for ids in encode(batch)), size)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint folder. Raises BadInput if it has no end token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise BadInput(
            f"model: the tokenizer in {folder} has no end-of-text token, which separates documents. "
            "Set eos_token in its tokenizer_config.json."
        )
    return tokenizer


def write_counts(out: Path, **counts: Any) -> None:
    """Write `counts.json` next to the blocks."""
    write_json(out / "counts.json", counts)


def mixed_blocks(ct_dir: Path, sft_dir: Path, ct_tokens: int, out: Path) -> None:
    """Return the first `ct_tokens` of CT's blocks and all of SFT's, each kind spread evenly.

    In go two folders of blocks of one size, and their counts; out comes one like SFT's: blocks, labels, positions. The
    loss of a block of CT is on all of it, in its positions from 0 on. Raises ValueError for blocks of two sizes.
    """
    text = np.load(ct_dir / "blocks.npy", mmap_mode="r")
    sft = [np.load(sft_dir / f"{name}.npy", mmap_mode="r") for name in ("blocks", "labels", "positions")]
    size = text.shape[1]
    if sft[0].shape[1] != size:
        raise ValueError(f"{ct_dir} has blocks of {size} tokens and {sft_dir} of {sft[0].shape[1]}.")
    text = text[: -(-ct_tokens // size)]
    total = len(text) + len(sft[0])
    columns = [
        BlockFile(out / f"{name}.npy", size, column.dtype.type)
        for name, column in zip(("blocks", "labels", "positions"), sft, strict=True)
    ]
    rows = [
        iter((block, block, np.arange(size)) for block in text),
        iter(zip(*sft, strict=True)),
    ]
    for source in itertools.islice(interleave([len(text) / total, len(sft[0]) / total]), total):
        for column, values in zip(columns, next(rows[source]), strict=True):
            column.append(values)
    for column in columns:
        column.close()
    chat_template.copy_trained_template(sft_dir, out)
    of_sft = json.loads((sft_dir / "counts.json").read_text(encoding="utf-8"))
    real = (len(text) + len(sft[0]) * of_sft["real_token_share"]) / total
    write_counts(out, blocks=total, tokens=total * size, ct_blocks=len(text), real_token_share=real)
