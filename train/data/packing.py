"""Text -> blocks of token ids, memory-mapped on disk.

CT packs running text. SFT packs whole examples and masks all but the answers; a chat template has rendered
conversations before (train/data/chat_template.py). Mixed blocks join both kinds.

blocks.npy     (blocks, block_size), uint16 or uint32
labels.npy     SFT: the same shape, int32, −100 where there is no loss
positions.npy  SFT: uint16, or uint32 for blocks above 65,536. They restart at 0 with each example: transformers derives
               a block-diagonal attention mask from them, so that examples do not attend to each other
counts.json    what the blocks contain
chat_template.jinja, chat_stop.json, examples.jsonl   for conversations: the template, and the first examples as text

Several processes tokenise each file of text once, into the work folder, which outlives a kill. The blocks are then
written in sequence. Memory holds a few files, never all of them, and the blocks do not depend on the number of
processes.
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
from train.data.blocks import BlockFile, Tokens, best_fit, chunk, dtype_for, interleave, mixture
from train.data.chat_template import (
    LEFT_OUT,
    ChatTemplate,
    Example,
    Masking,
    TrainedTemplate,
    check_trainable,
    copy_trained_template,
    template_of,
)
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
from train.settings import CtBlocksSettings, SftBlocksSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
OPEN_BLOCKS = 64  # blocks of a stream of examples that are filled at once: more of them need less padding
SHOWN = 5  # examples of conversations that are written next to their blocks as text
COLUMNS = ("blocks", "labels", "positions")  # the files of SFT's blocks


def ct_blocks(
    corpus_dir: Path,
    tokenizer_dir: Path,
    settings: CtBlocksSettings,
    out: Path,
    work: Path,
    workers: int = 1,
    source_dirs: Mapping[str, Path] | None = None,
) -> None:
    """Pack the language, English and further sources up to the schedule's tokens or the end of the language's text.

    The language is read `epochs` times, each time in another order; English and the sources are repeated as often as
    needed. `work` keeps the tokens of each file until the blocks are published. `workers`: processes that tokenise.
    source_dirs: the folder of each source by name. Raises BadInput for text that is shorter than one block.
    """
    tokenizer = TokenizerFile.of(load_tokenizer(tokenizer_dir), document_end=settings.document_end)
    size, language, seed = settings.block_size, settings.language, settings.seed
    wanted = None if settings.schedule_tokens is None else -(-settings.schedule_tokens // size)
    fractions = mixture(settings.english_fraction, settings.sources)
    folders = {language: corpus_dir, "en": corpus_dir}
    folders |= dict(sorted((source_dirs or {}).items()))
    blocks, control = BlockFile(out / "blocks.npy", size, tokenizer.dtype), Counter[str]()
    with Workers(workers, init_worker, (tokenizer,)) as pool:
        files = {name: training_files(folder, name) for name, folder in folders.items()}
        epochs = {language: read_epochs(files[language], f"{seed}:{language}", pool, work, epochs=settings.epochs)}
        for name, fraction in itertools.islice(zip(folders, fractions, strict=True), 1, None):
            ahead = max(1, round(pool.count * fraction))
            epochs[name] = read_epochs(files[name], f"{seed}:{name}", pool, work, ahead=ahead)
        unique_tokens = Counter[str]({name: 0 for name in files})
        sources = [
            chunk(stream_documents(count_first_epoch(read, control, unique_tokens, name)), size)
            for name, read in epochs.items()
        ]
        for source in itertools.islice(interleave(fractions), wanted):
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
        english_share=settings.english_fraction,
        **({"sources": dict(sorted(settings.sources.items()))} if settings.sources else {}),
        real_token_share=1.0,
        whole_corpus=wanted is None or blocks.count < wanted,
        text_tokens=dict(unique_tokens),
        **({"control_tokens": control} if control else {}),
    )


def count_first_epoch(
    read: Iterable[FileEpoch], control: Counter[str], tokens: Counter[str] | None = None, name: str = ""
) -> Iterator[FileEpoch]:
    """Yield the files as they come; count those of the first epoch. control: of control tokens; tokens: by `name`."""
    for epoch in read:
        if epoch.is_first:
            control.update(epoch.file.control)
            if tokens is not None:
                tokens[name] += len(epoch.file.tokens)
        yield epoch


@dataclass
class PackingCounts:
    """Counts of SFT's packing."""

    examples: int = 0
    too_long: int = 0
    trained: int = 0  # tokens with loss
    padding: int = 0
    conversations: Counter[str] = field(default_factory=Counter)  # see train.data.chat_template.Masking.examples
    first: list[Example] = field(default_factory=list)  # examples of conversations


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

    The examples are repeated if there are fewer. `corpus_dir` is needed if `replay_fraction` is not 0. `work` keeps the
    tokens of each file until the blocks are published. `workers`: processes that tokenise. Raises BadInput for examples
    that are longer than a block, and for a template or conversations that cannot be trained on.
    """
    files, control = instruction_files(items_dir), Counter[str]()
    if not files:
        raise BadInput(
            f"eval.families: the {settings.language} training text gives no instructions."
            " Give more text, or set sft.path."
        )
    loaded = load_tokenizer(tokenizer_dir)
    tokenizer = TokenizerFile.of(loaded, masking_of(loaded, settings))
    size, share, seed, packed = settings.block_size, settings.replay_fraction, settings.seed, PackingCounts()
    dtypes = (tokenizer.dtype, np.int32, dtype_for(size))
    columns = [BlockFile(out / f"{name}.npy", size, dtype) for name, dtype in zip(COLUMNS, dtypes, strict=True)]
    with Workers(workers, init_worker, (tokenizer,)) as pool:
        read = count_first_epoch(read_epochs(files, f"{seed}:sft", pool, work), control)
        if tokenizer.masking:
            read = check_conversations(read, len(files), packed)
        pack = pack_stream if files[0].suffix == ".jsonl" else pack_files
        examples = pack(read, size, packed)
        replay: Iterator[Tokens] = iter(())
        if share > 0:
            assert corpus_dir is not None
            text = read_epochs(training_files(corpus_dir, settings.language), f"{seed}:replay", pool, work)
            replay = chunk(stream_documents(count_first_epoch(text, control)), size)
        for source in itertools.islice(interleave([1 - share, share]), -(-settings.tokens // size)):
            if source == 0:
                append_row(columns, example_block(next(examples), size, tokenizer.end, packed))
            else:
                append_row(columns, text_block(next(replay), packed))
    for column in columns:
        column.close()
    tokens = columns[0].count * size
    counts: dict[str, Any] = {
        "blocks": columns[0].count,
        "tokens": tokens,
        "examples": packed.examples,
        "trained_tokens": packed.trained,
        "real_token_share": (tokens - packed.padding) / tokens,
    }
    if packed.too_long:
        counts["examples_too_long"] = packed.too_long
    if control:
        counts["control_tokens"] = control
    if tokenizer.masking:
        counts |= chat_counts(items_dir, packed.conversations)
        write_template(loaded, tokenizer.masking.template, packed.first, out)
    write_counts(out, **counts)


def append_row(columns: Sequence[BlockFile], row: Iterable[Tokens]) -> None:
    """Append a block's ids, labels and positions to their files."""
    for column, values in zip(columns, row, strict=True):
        column.append(values)


def check_conversations(read: Iterable[FileEpoch], files: int, packed: PackingCounts) -> Iterator[FileEpoch]:
    """Yield the files as they come, and count the conversations of the first epoch.

    Raises BadInput if they cannot be trained on.
    """
    for number, epoch in enumerate(read, start=1):
        if epoch.is_first:
            packed.conversations += Counter(epoch.file.counts)
            packed.first += epoch.file.examples()[: SHOWN - len(packed.first)]
            if packed.conversations["conversations"] or number == files:
                check_trainable(packed.conversations, "sft")
        yield epoch


def masking_of(tokenizer: PreTrainedTokenizerBase, settings: SftBlocksSettings) -> Masking | None:
    """Return the way conversations become examples; None for instructions without a template. Raises BadInput."""
    chat = settings.chat
    if chat is None:
        return None
    template = template_of(tokenizer, chat, "model: its tokenizer")
    return Masking(template, chat.system, settings.block_size, chat.too_long == "cut")


def chat_counts(items_dir: Path, counted: Mapping[str, int]) -> dict[str, Any]:
    """Return the counts next to blocks of conversations: those kept, and those left out, by reason."""
    kept = ("conversations", "answers", "sequences", "cut", "unrolled", "system_in_question")
    before = json.loads((items_dir / "counts.json").read_text(encoding="utf-8")).get(COUNTED, {})
    left_out = {name.removeprefix(LEFT_OUT): count for name, count in counted.items() if name.startswith(LEFT_OUT)}
    left_out |= {name: count for name, count in before.items() if name != SHORTENED}
    shortened = {SHORTENED: before[SHORTENED]} if before.get(SHORTENED) else {}
    packed = {name: counted[name] for name in kept if counted.get(name)}
    return {"chat": {**packed, **shortened, "left_out": left_out}}


def write_template(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, examples: Sequence[Example], out: Path
) -> None:
    """Write the template, for the checkpoint that learns it, and some examples as text, for people."""
    TrainedTemplate(template.render.text, template.stop_token).write(out)
    shown = []
    for ids, loss in examples:
        runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(loss)) + 1)
        trained = [tokenizer.decode(ids[run].tolist()) for run in runs if loss[run[0]]]
        shown.append({"tokens": len(ids), "text": tokenizer.decode(ids.tolist()), "trained": trained})
    write_jsonl(out / "examples.jsonl", shown)


def pack_stream(read: Iterable[FileEpoch], size: int, packed: PackingCounts) -> Iterator[list[Example]]:
    """Yield the examples of each block, forever, from one file that is read repeatedly, each time in a random order.

    Best fit over a window of open blocks that epochs do not close: an example goes where it leaves the least space.
    """
    examples: list[Example] = []

    def lengths() -> Iterator[tuple[int, int]]:
        for file, rng, _ in read:
            if not examples:
                examples.extend(file.examples())
                packed.examples = len(examples)
                longest = max(len(tokens) for tokens, _ in examples)
                if longest > size:
                    raise BadInput(
                        f"sft.block_size={size}: must be at least {longest}, the tokens of the longest instruction "
                        "example."
                    )
            order = list(range(len(examples)))
            rng.shuffle(order)
            yield from ((number, len(examples[number][0])) for number in order)

    for block in best_fit(lengths(), size, OPEN_BLOCKS):
        yield [examples[number] for number in block]


def pack_files(read: Iterable[FileEpoch], size: int, packed: PackingCounts) -> Iterator[list[Example]]:
    """Yield the examples of each block, forever, from many files.

    The examples of a file are packed by best-fit decreasing, which pads less than a stream does, and its blocks are
    shuffled. Examples that are longer than a block are left out, and counted.
    """
    for file, rng, is_first in read:
        examples = file.examples()
        order = [number for number, (tokens, _) in enumerate(examples) if len(tokens) <= size]
        if is_first:
            packed.examples += len(order)
            packed.too_long += len(examples) - len(order)
        elif not packed.examples:
            raise BadInput(
                f"sft.block_size={size}: all {packed.too_long:,} instruction examples are longer. Set a larger value."
            )
        rng.shuffle(order)
        order.sort(key=lambda number: len(examples[number][0]), reverse=True)
        blocks = list(best_fit(((number, len(examples[number][0])) for number in order), size, None))
        rng.shuffle(blocks)
        yield from ([examples[number] for number in block] for block in blocks)


def example_block(examples: list[Example], size: int, end: int, packed: PackingCounts) -> tuple[Tokens, Tokens, Tokens]:
    """Return a block of examples: ids, labels and positions, each of length `size`. Padding is end tokens without loss.

    An example is one sequence, whatever its number of questions: its positions are continuous, and later questions
    attend to earlier answers.
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
        packed.trained += int(answers.sum())
        start = stop
    positions[start:] = np.arange(size - start)
    packed.padding += size - start
    return ids, labels, positions


def text_block(block: Tokens, packed: PackingCounts) -> tuple[Tokens, Tokens, Tokens]:
    """Return a block of running text: ids, labels and positions. All of it carries the loss."""
    packed.trained += len(block)
    return block, block, np.arange(len(block))


def mixed_blocks(ct_dir: Path, sft_dir: Path, ct_tokens: int, out: Path) -> None:
    """Write the first `ct_tokens` of CT's blocks and all of SFT's, each kind spread evenly, to train both at once.

    The input are two folders of blocks of one size with their counts; the output is a folder like SFT's. All of a block
    of CT carries the loss, and its positions start at 0. Raises ValueError for blocks of two sizes.
    """
    text = np.load(ct_dir / "blocks.npy", mmap_mode="r")
    sft = [np.load(sft_dir / f"{name}.npy", mmap_mode="r") for name in COLUMNS]
    size = text.shape[1]
    if sft[0].shape[1] != size:
        raise ValueError(f"{ct_dir} has blocks of {size} tokens and {sft_dir} of {sft[0].shape[1]}.")
    text = text[: -(-ct_tokens // size)]
    total = len(text) + len(sft[0])
    columns = [
        BlockFile(out / f"{name}.npy", size, column.dtype.type) for name, column in zip(COLUMNS, sft, strict=True)
    ]
    rows = [iter((block, block, np.arange(size)) for block in text), iter(zip(*sft, strict=True))]
    for source in itertools.islice(interleave([len(text) / total, len(sft[0]) / total]), total):
        append_row(columns, next(rows[source]))
    for column in columns:
        column.close()
    copy_trained_template(sft_dir, out)
    sft_counts = json.loads((sft_dir / "counts.json").read_text(encoding="utf-8"))
    real = (len(text) + len(sft[0]) * sft_counts["real_token_share"]) / total
    write_counts(out, blocks=total, tokens=total * size, ct_blocks=len(text), real_token_share=real)


def texts(corpus_dir: Path, language: str, wanted: Callable[[str], bool]) -> list[str]:
    """Return the training documents of a language whose ids are `wanted`, for the small base model's recipe."""
    rows = (row for path in training_files(corpus_dir, language) for row in read_rows(path))
    return [row["text"] for row in rows if wanted(row["id"])]


def shuffled(documents: Sequence[str], seed: str) -> Iterator[str]:
    """Yield the documents forever, in another order in each epoch."""
    for epoch in itertools.count():
        order = list(documents)
        random.Random(f"{seed}:{epoch}").shuffle(order)
        yield from order


def chunks(
    documents: Iterable[str], encode: Callable[[Sequence[str]], list[Tokens]], end: int, size: int
) -> Iterator[Tokens]:
    """Yield blocks of `size` from documents as one stream of tokens, each followed by the end token."""
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
