"""The corpus stage for text from the hub or from local folders of the same layout: taken once, up to a number of bytes, as Parquet files.

Leaves `text/<language>.train/00000.parquet` and so on (`id`, `text`; about 32 MB of text each), `text/<language>.<dev|test>.jsonl`, `counts.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import hub_data as hub
from common.errors import BadInput
from train.data.corpus.build import normalised, split_of, write_jsonl
from train.data.corpus.shards import Reading, Row, link, take
from train.data.processes import Workers

HELD_OUT = ("dev", "test")


def document(text: str, *, seed: int, dev: float, test: float) -> tuple[str, Row] | None:
    """A document's split and row, or None where it is empty.

    Its name is a hash of its letters and digits, case folded, and its split goes by its name: what is the same text but for case, spaces and
    punctuation falls into the same split, so that no held-out document stands in training text.
    """
    text = text.strip()
    if not text:
        return None
    name = hashlib.sha256(normalised(text).encode()).hexdigest()[:16]
    return split_of(name, seed, dev, test), {"id": name, "text": text}


def build(settings: Mapping[str, Any], out: Path, work: Path) -> None:
    """Writes the corpus to `out`; goes on in `work` where an earlier call was killed.

    Settings: language, text and english (sources with a `column`), text_bytes and english_bytes (of UTF-8 text to take, or null), dev, test, seed,
    workers. Raises BadInput for a source that cannot be read or a split that stays empty.
    """
    counts: dict[str, Any] = {
        "languages": {},
        "settings": {name: value for name, value in settings.items() if name != "workers"},
    }
    with Workers(settings["workers"]) as workers:
        for language, name in ((settings["language"], "text"), ("en", "english")):
            counts["languages"][language] = _language(settings, language, name, out / "text", work / name, workers)
    (out / "counts.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n")


def _language(
    settings: Mapping[str, Any], language: str, name: str, folder: Path, work: Path, workers: Workers
) -> dict[str, Any]:
    source, key = settings[name], f"corpus.{name}"
    commit = hub.commit_of(source, key)
    about = {share: settings[share] for share in ("seed", "dev", "test")}
    reading = Reading(
        {**source, "revision": commit or source["revision"]},
        (source["column"],),
        key,
        document,
        about,
        settings[f"{name}_bytes"],
    )
    held_out: dict[str, dict[str, Row]] = {split: {} for split in HELD_OUT}
    rows = size = files = 0
    for part in take(reading, work, workers, settings["seed"]):
        for split, row in part.held_out:
            held_out[split][row["id"]] = row  # once, though it may come twice
        if part.rows:
            link(part, folder / f"{language}.train" / f"{files:05d}.parquet")
            rows, size, files = rows + part.rows, size + part.bytes, files + 1
    counted: dict[str, Any] = {"commit": commit, "train": {"documents": rows, "bytes": size, "files": files}}
    if not rows:
        raise BadInput(
            f"{key}.dataset={source['dataset']}: no {language} document fell into the train split; it may be empty"
        )
    for split in HELD_OUT:
        documents = list(held_out[split].values())
        if not documents:
            raise BadInput(
                f"{key}: no {language} document fell into the {split} split; take more text or a larger corpus.{split}"
            )
        write_jsonl(folder / f"{language}.{split}.jsonl", documents)
        counted[split] = {"documents": len(documents), "bytes": sum(len(row["text"].encode()) for row in documents)}
    return counted
