"""Further text for CT next to the corpus: more data sets, other languages, parallel text by a template.

A source is a folder: `text/<name>.train/00000.parquet` and so on (`id`, `text`; about 32 MB of text each), as a corpus
from the Hub, and `counts.json`. Rows with text that the corpus holds out are dropped.
"""

from __future__ import annotations

import hashlib
import string
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub_data
from common.errors import BadInput
from common.files import read_jsonl, write_json
from common.processes import Workers
from train.data.corpus.documents import SPLITS, normalised, read_rows
from train.data.corpus.hub import ParsedRow, ReadPlan, read_shards

if TYPE_CHECKING:
    from datasets import IterableDataset

    from common.hub_data import Source
    from train.settings import TextSourceOptions, TextSourceSettings

RUN = 25  # words in a row: about 50 tokens, a duplicate in Lee et al. 2022 (arXiv 2107.06499)
SHORTEST = 5  # words of a passage that can be recognised


# --- templates ---


def columns_of(template: str, key: str) -> tuple[str, ...]:
    """Return the columns that a template names, in their order: `{en}` stands for the column `en`.

    Raises BadInput, which begins with `key`, for a template without a column or with one that is not well formed.
    """
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(template)]
    except ValueError as error:
        raise BadInput(
            f"{key}: {error}, got {template!r}. Write {{{{ and }}}} for braces that are no column."
        ) from None
    named = [(name, spec, conversion) for name, spec, conversion in fields if name is not None]
    if not named:
        raise BadInput(f"{key}: must name a column, such as {{text}}, got {template!r}.")
    for name, spec, conversion in named:
        if not name or spec or conversion or not name.replace("_", "").replace("-", "").isalnum():
            field = f"{{{name}{'!' if conversion else ''}{conversion or ''}{':' if spec else ''}{spec}}}"
            raise BadInput(f"{key}: {field} must be the name of a column alone, such as {{text}}. Change it.")
    return tuple(dict.fromkeys(name for name, _, _ in named))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template with the values in place of its columns."""
    filled = (before + (values[name] if name else "") for before, name, _, _ in string.Formatter().parse(template))
    return "".join(filled)


# --- held-out text ---


class HeldOut:
    """The text that a corpus holds out, in all of its languages, by hashes of words in a row.

    Text is compared without case and punctuation.
    """

    def __init__(self, corpus_dir: Path) -> None:
        from train.data.contamination import WordHasher, gram_hashes

        self.words, self.gram_hashes = WordHasher(), gram_hashes
        files = [
            path for split in SPLITS if split != "train" for path in (corpus_dir / "text").glob(f"*.{split}.jsonl")
        ]
        texts = [normalised(row["text"]) for path in sorted(files) for row in read_jsonl(path)]
        self.text = "".join(f" {text} \n" for text in texts)
        self.starts: set[int] = set()  # n-grams of SHORTEST words
        self.runs: dict[int, set[int]] = defaultdict(set)  # words -> n-grams: RUN, or all words of a shorter document
        for text in texts:
            words = self.words.hashes(text)
            self.starts.update(gram_hashes(words, SHORTEST).tolist())
            size = min(RUN, len(words))
            if size >= SHORTEST:
                self.runs[size].update(gram_hashes(words, size).tolist())

    def overlaps(self, passage: str) -> bool:
        """Return whether a passage and held-out text share RUN words in a row, or all words of the shorter one.

        Texts of fewer than SHORTEST words are never found.
        """
        words = self.words.hashes(passage)
        grams = self.gram_hashes(words, SHORTEST).tolist()
        if self.starts.isdisjoint(grams):
            return False
        if any(not runs.isdisjoint(self.gram_hashes(words, size).tolist()) for size, runs in self.runs.items()):
            return True
        return len(words) < RUN and grams[0] in self.starts and f" {normalised(passage)} " in self.text


@cache
def held_out_of(corpus_dir: Path) -> HeldOut:
    """Return the held-out text of a corpus, read once per process."""
    return HeldOut(corpus_dir)


# --- reading ---


def read_documents(
    plan: ReadPlan, stream: IterableDataset, before: int, file: str, *, template: str, corpus_dir: Path
) -> Iterator[ParsedRow]:
    """Yield the rows of a file as documents by the template; rows without one are counted."""
    columns = columns_of(template, f"{plan.key}.template")
    held_out = held_out_of(corpus_dir)
    rows = hub_data.rows(stream, columns, plan.source, plan.key, before=before, file=file)
    for read, texts in enumerate(rows, start=before + 1):
        stripped = [text.strip() for text in texts]
        if not all(stripped):
            yield ParsedRow(read, None, {}, 0, "empty")
        elif any(map(held_out.overlaps, stripped)):
            yield ParsedRow(read, None, {}, 0, "held_out")
        else:
            text = fill(template, dict(zip(columns, stripped, strict=True)))
            name = hashlib.sha256(normalised(text).encode()).hexdigest()[:16]
            yield ParsedRow(read, "train", {"id": name, "text": text}, len(text.encode()))


def check_source(source: Source, template: str, key: str, max_bytes: int | None = None) -> None:
    """Read the first rows of a source.

    Raises BadInput if they cannot be read, lack a column of the template, have no text in all of its columns, or are
    each longer than the bytes of text to take.
    """
    columns = columns_of(template, f"{key}.template")
    rows = list(islice(hub_data.rows(hub_data.open_stream(source, key), columns, source, key), hub_data.FIRST_ROWS))
    filled = [texts for texts in rows if all(text.strip() for text in texts)]
    if not filled:
        names = " and ".join(columns)
        raise BadInput(
            f"{key}.dataset={source.dataset}: no text in {names} in its first rows."
            " Choose another data set, or name other columns in the template."
        )
    documents = (fill(template, dict(zip(columns, map(str.strip, texts), strict=True))) for texts in filled)
    shortest = min(len(document.encode()) for document in documents)
    if max_bytes is not None and max_bytes < shortest:
        raise BadInput(
            f"{key}.max_bytes={max_bytes}: the shortest of its first documents has {shortest} bytes. Set more, or null."
        )


def write_source(
    settings: TextSourceSettings, options: TextSourceOptions, corpus_dir: Path, out: Path, work: Path
) -> None:
    """Write the documents of a source to `out`; resume in `work` if an earlier call was killed.

    corpus_dir: the corpus whose held-out text is dropped. A text that comes again is left out. Raises BadInput, which
    begins with the source's key, for rows that cannot be read, and if no document is left.
    """
    key = f"ct.sources.{settings.name}"
    source = settings.located(options.folder)
    commit = hub_data.commit_of(source, key)
    reader = partial(read_documents, template=settings.template, corpus_dir=corpus_dir)
    plan = ReadPlan(replace(source, revision=commit or source.revision), key, reader, settings.max_bytes)
    folder = out / "text" / f"{settings.name}.train"
    folder.mkdir(parents=True)
    counts, left_out, seen = Counter[str](), Counter[str](), set[bytes]()
    with Workers(options.workers) as workers:
        for shard in read_shards(plan, work, workers, settings.seed):
            left_out.update(shard.counted)
            rows = list(new_rows(shard.path, seen, left_out, remaining(settings.max_bytes, counts["bytes"])))
            if rows:
                write_rows(rows, folder / f"{counts['files']:05d}.parquet")
                size = sum(len(row["text"].encode()) for row in rows)
                counts.update(documents=len(rows), bytes=size, files=1)
    if not counts["documents"]:
        reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in sorted(left_out.items()))
        bound = "" if settings.max_bytes is None else f", or set a larger {key}.max_bytes"
        raise BadInput(f"{key}: no document is left (left out: {reasons or 'none'}). Give other text{bound}.")
    write_json(out / "counts.json", {"commit": commit, **counts, "left_out": dict(sorted(left_out.items()))})


def remaining(max_bytes: int | None, taken: int) -> int | None:
    """Return how many bytes may still be taken; None: any number."""
    return None if max_bytes is None else max_bytes - taken


def new_rows(path: Path, seen: set[bytes], left_out: Counter[str], room: int | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard that did not come before, up to `room` bytes of text. Repeated ones are counted."""
    for row in read_rows(path):
        name = bytes.fromhex(row["id"])
        if name in seen:
            left_out["repeated"] += 1
            continue
        size = len(row["text"].encode())
        if room is not None and size > room:
            return
        seen.add(name)
        room = None if room is None else room - size
        yield row


def write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="zstd")
