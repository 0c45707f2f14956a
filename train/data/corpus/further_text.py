"""Further text for CT beside the language's own: more data sets, other languages, parallel text by a template.

Each source is read in the order of its files and written as `text/<name>.train/00000.parquet` and so on (`id`,
`text`; about 32 MB of text each), so that CT reads it as it reads a corpus. Text that the corpus holds out is dropped.
"""

from __future__ import annotations

import hashlib
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.errors import BadInput, suggestion
from common.files import read_jsonl, write_json
from train.data.corpus.documents import SPLITS, normalised

SHARD_BYTES = 32 << 20
SHORT = 4  # words of a passage that is too short to tell where it is from


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
            raise BadInput(f"{key}: {{{name}}} must be the name of a column alone, such as {{text}}. Change it.")
    return tuple(dict.fromkeys(name for name, _, _ in named))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return a template with the values in place of its columns."""
    filled = (before + (values[name] if name else "") for before, name, _, _ in string.Formatter().parse(template))
    return "".join(filled)


class HeldOut:
    """The text that a corpus holds out, in all of its languages."""

    def __init__(self, corpus_dir: Path) -> None:
        files = [
            path for split in SPLITS if split != "train" for path in (corpus_dir / "text").glob(f"*.{split}.jsonl")
        ]
        texts = (normalised(row["text"]) for path in sorted(files) for row in read_jsonl(path))
        self._texts = "".join(f" {text} \n" for text in texts)

    def contains(self, passage: str) -> bool:
        """Return whether a passage of more than `SHORT` words is in held-out text, whatever its case and marks."""
        words = normalised(passage)
        return words.count(" ") >= SHORT and f" {words} " in self._texts


def documents(
    rows: Iterable[Mapping[str, Any]], template: str, key: str, held_out: HeldOut, counts: Counter[str]
) -> Iterator[dict[str, str]]:
    """Yield each row as a document {"id", "text"}: its columns in the template's places.

    Left out, and counted in `counts`: rows with an empty column ("empty"), rows with held-out text in a column
    ("held_out"), and texts that came before ("repeated"). Raises BadInput for a row without a column, or without text
    in one.
    """
    columns = columns_of(template, f"{key}.template")
    seen: set[bytes] = set()
    for number, row in enumerate(rows, start=1):
        if missing := [column for column in columns if column not in row]:
            raise BadInput(f"{key}.template: row {number} has no column {missing[0]!r}. {suggestion(missing[0], row)}")
        values = {column: row[column] for column in columns}
        for column, value in values.items():
            if not isinstance(value, str | None):
                raise BadInput(
                    f"{key}.template: row {number}: column {column!r} must have text, got {type(value).__name__}."
                    " Name another column, or convert this one."
                )
        texts = {column: (value or "").strip() for column, value in values.items()}
        if not all(texts.values()):
            counts["empty"] += 1
            continue
        if any(map(held_out.contains, texts.values())):
            counts["held_out"] += 1
            continue
        text = fill(template, texts)
        name = hashlib.sha256(normalised(text).encode())
        if name.digest()[:16] in seen:
            counts["repeated"] += 1
            continue
        seen.add(name.digest()[:16])
        yield {"id": name.hexdigest()[:16], "text": text}


def write_source(
    name: str,
    rows: Iterable[Mapping[str, Any]],
    template: str,
    corpus_dir: Path,
    out: Path,
    *,
    key: str,
    max_bytes: int | None = None,
) -> None:
    """Write the documents of a source to `out`, up to `max_bytes` of text (None: all), and `counts.json`.

    corpus_dir: the corpus whose held-out text is left out. Raises BadInput, which begins with `key`, where no document
    is left.
    """
    counts: Counter[str] = Counter()
    shard: list[dict[str, str]] = []
    total = size = files = 0
    folder = out / "text" / f"{name}.train"
    folder.mkdir(parents=True)
    kept = 0
    for document in documents(rows, template, key, HeldOut(corpus_dir), counts):
        length = len(document["text"].encode())
        if max_bytes is not None and total + length > max_bytes:
            break
        shard.append(document)
        kept, total, size = kept + 1, total + length, size + length
        if size >= SHARD_BYTES:
            _write_shard(shard, folder / f"{files:05d}.parquet")
            shard, size, files = [], 0, files + 1
    if shard:
        _write_shard(shard, folder / f"{files:05d}.parquet")
    if not kept:
        left_out = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(counts.items()))
        raise BadInput(f"{key}: no document is left ({left_out or 'no rows'}). Give other text.")
    write_json(out / "counts.json", {"documents": kept, "bytes": total, "left_out": dict(counts)})


def _write_shard(rows: list[dict[str, str]], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
