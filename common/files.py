"""Atomic files, and the small formats that several packages read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from common.errors import in_one_line


class Checksums:
    """Checksums of input files, cached in a file by path, size and modification time, as inputs have gigabytes."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            known = {}
        self.known: dict[str, str] = known if isinstance(known, dict) else {}

    def file(self, path: Path) -> str:
        """Return the SHA-256 of a file, in hex."""
        status = path.stat()
        key = f"{path.absolute()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in self.known:
            self.known[key] = sha256(path)
            with in_one_line():
                self.memory.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.memory, self.known)
        return self.known[key]

    def names(self, paths: Iterable[Path]) -> str:
        """Return one checksum for several files, by their names."""
        lines = "".join(f"{path.name} {self.file(path)}\n" for path in sorted(paths))
        return hashlib.sha256(lines.encode()).hexdigest()

    def tree(self, folder: Path, paths: Iterable[Path]) -> str:
        """Return one checksum for files of a folder, in the given order, by their relative paths."""
        lines = "".join(f"{path.relative_to(folder)} {self.file(path)}\n" for path in paths)
        return hashlib.sha256(lines.encode()).hexdigest()


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def foreign_owner(place: Path | int) -> str | None:
    """Return `belongs to another user (...)` for such a file or folder (path or descriptor), else None."""
    owner = os.stat(place).st_uid
    return None if owner == os.getuid() else f"belongs to another user (id {owner})"


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a hidden file, then rename it; leave nothing if `write` fails.

    Leftovers of killed processes for the same file are removed: their lock ended with the process.
    """
    for left in path.parent.glob(f".{escape(path.stem)}.*.part{escape(path.suffix)}"):
        with suppress(OSError), left.open("r+b") as file:  # held by another, gone by now, or on a disk without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    aside, held = _aside(path)
    with held:
        try:
            write(aside)
            fsync(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    fsync(path.parent)
    return path


def _aside(path: Path) -> tuple[Path, BinaryIO]:
    """Create a new locked file next to `path`. Its name is random, as processes of two hosts may share an id."""
    while True:
        aside = path.with_name(f".{path.stem}.{os.getpid()}.{token_hex(4)}.part{path.suffix}")
        held = aside.open("xb")
        with suppress(OSError):  # a disk without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        if aside.exists():
            return aside, held
        held.close()  # taken for a leftover before it was held


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically: a reader finds the old or the new content, never a part."""
    publish(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object per line, in UTF-8, keys in the given order. Not atomic: for folders that are published as
    one.
    """
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the rows that `write_jsonl` wrote."""
    from pydantic_core import from_json  # what json.loads gives, in a third of the time: reports read 10^6 rows

    with path.open("rb") as file:
        return [from_json(line) for line in file]
