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

from common.errors import user_errors


class Checksums:
    """Checksums of input files, cached in a file by path, size and modification time, as inputs have gigabytes."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        try:
            known = json.loads(cache.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            known = {}
        self.known: dict[str, str] = known if isinstance(known, dict) else {}

    def file(self, path: Path) -> str:
        """Return the SHA-256 of a file, in hex."""
        status = path.stat()
        key = f"{path.absolute()}:{status.st_size}:{status.st_mtime_ns}"
        if key not in self.known:
            self.known[key] = sha256(path)
            with user_errors():
                self.cache.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.cache, self.known)
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


def foreign_owner(file: Path | int) -> str | None:
    """Return `belongs to another user (...)` for such a file or folder (path or descriptor), else None."""
    owner = os.stat(file).st_uid
    return None if owner == os.getuid() else f"belongs to another user (id {owner})"


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file so that a reader finds the old or the new content, never a part; on failure the old one stays.

    content: bytes, text, or a function that fills the hidden staging file, which is then renamed. Staging files that
    killed processes left for the same path are removed: their lock ended with the process.
    """
    for left in path.parent.glob(f".{escape(path.stem)}.*.part{escape(path.suffix)}"):
        with suppress(OSError), left.open("r+b") as file:  # locked by another process, removed, or without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    staging, lock = _staging_file(path)
    with lock:
        try:
            if callable(content):
                content(staging)
            else:
                staging.write_bytes(content.encode() if isinstance(content, str) else content)
            fsync(staging)
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)
    fsync(path.parent)


def _staging_file(path: Path) -> tuple[Path, BinaryIO]:
    """Create a new locked file next to `path`. Its name is random, as processes of two hosts may share an id."""
    while True:
        staging = path.with_name(f".{path.stem}.{os.getpid()}.{token_hex(4)}.part{path.suffix}")
        lock = staging.open("xb")
        with suppress(OSError):  # a disk without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if staging.exists():
            return staging, lock
        lock.close()  # another process took it for a leftover before it was locked


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object per line, in UTF-8, keys in the given order. Not atomic."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read the rows that `write_jsonl` wrote."""
    from pydantic_core import from_json  # as json.loads, in a third of the time: reports read 10^6 rows

    with path.open("rb") as file:
        return [from_json(line) for line in file]
