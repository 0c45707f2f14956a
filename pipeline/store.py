"""The folder of results: `store/<kind>/<slug>-<key>/`, with a `stage.json` of settings, parents and checksums of files.

Nothing has its final name before it is complete. A stage is computed in `store/.work/`, which outlives a crash, under
a lock that does not: the kernel drops an flock with its process. So kill -9 is safe at every point, and two jobs never
do the same work at the same time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput
from common.files import fsync, sha256, write_json
from pipeline import locks
from pipeline.stages.stage import Stage

RECORD = "stage.json"
SETTLED_NS = 2 * 10**9  # the coarsest clock of a file system that we know of (FAT)
# Bytes: entries up to this size are checked by checksum wherever they are met, larger ones when they are read.
ALWAYS_CHECKED = 4 * 2**20


@dataclass(frozen=True)
class Entry:
    """A published stage: its folder."""

    path: Path

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """Return the content of stage.json, as of the first read; empty if it cannot be read."""
        return read_record(self.path)

    def has(self, name: str) -> bool:
        """Return whether it has this file or folder."""
        return any(file == name or file.startswith(f"{name}/") for file in self.record.get("files", ()))

    def damage(self, thorough: bool) -> str | None:
        """Describe damage to the files, or return None. Thorough: by checksum; otherwise by size for large entries."""
        damage = self._damage(thorough)
        # files may have been dropped since: first the record is changed, then they go
        if damage and (now := Entry(self.path)).record and now.record != self.record:
            return now.damage(thorough)
        return damage

    def _damage(self, thorough: bool) -> str | None:
        if not self.record:
            return f"{RECORD} is missing or cannot be read"
        files: Mapping[str, Mapping[str, Any]] = self.record["files"]
        thorough = thorough or sum(about["bytes"] for about in files.values()) <= ALWAYS_CHECKED
        for name, about in files.items():
            path = self.path / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != about["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes, not {about['bytes']:,}"
            if thorough and sha256(path) != about["sha256"]:
                return f"{name} does not match its checksum"
        return None


@dataclass(frozen=True)
class Listing:
    """The entries of a kind, by key, as of the folder's last change at `changed` (ns).

    settled: whether that was a while before it was read. A change in the same tick of the file system's clock as the
    last one that was seen would not be noticed.
    """

    changed: int
    settled: bool
    names: Mapping[str, str]


class Store:
    """A folder of published stages. Several processes may use one at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[str, Listing] = {}
        self._records: dict[Path, tuple[tuple[int, int, int], Entry]] = {}

    def find(self, stage: Stage) -> Entry | None:
        """Return the published entry of a stage; neither its record nor its files are looked at."""
        name = self._names(stage.kind).get(stage.key)
        return Entry(self.root / stage.kind / name) if name else None

    def _names(self, kind: str) -> Mapping[str, str]:
        """Return the folders of a kind by key. They are listed again when one has come or gone."""
        folder = self.root / kind
        try:
            changed = folder.stat().st_mtime_ns
        except FileNotFoundError:
            return {}
        if not folder.is_dir():
            raise BadInput(f"{folder}: a store must be a folder. Remove the file, or choose another store.")
        known = self._listings.get(kind)
        if known is None or not known.settled or known.changed != changed:
            settled = time.time_ns() - changed > SETTLED_NS
            names = {name.rpartition("-")[2]: name for name in sorted(os.listdir(folder), reverse=True)}
            known = self._listings[kind] = Listing(changed, settled, names)
        return known.names

    def entries(self, kind: str) -> Iterator[Entry]:
        """Yield every published entry of a kind. Records are read again where they have changed only."""
        for name in sorted(self._names(kind).values()):
            folder = self.root / kind / name
            try:
                status = (folder / RECORD).stat()
            except OSError:
                yield Entry(folder)
                continue
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if folder not in self._records or self._records[folder][0] != seen:
                self._records[folder] = (seen, Entry(folder))
            yield self._records[folder][1]

    def kinds(self) -> list[str]:
        """Return the kinds that have entries."""
        return sorted(
            folder.name for folder in self.root.glob("*") if folder.is_dir() and not folder.name.startswith(".")
        )

    @contextlib.contextmanager
    def claim(self, stage: Stage, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Acquire the lock for computing a stage. Call `on_wait` and wait while another process holds it."""
        self._lock(stage).parent.mkdir(parents=True, exist_ok=True)
        with locks.open_lock(self._lock(stage), os.O_CREAT) as file:
            if not locks.try_lock(file, self._lock(stage)):
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # explicitly: a child process may have inherited the file

    def is_free(self, stage: Stage) -> bool:
        """Return whether no process is making a stage just now."""
        try:
            with locks.open_lock(self._lock(stage)) as file:
                return locks.try_lock(file, self._lock(stage))  # and given back when it is closed
        except FileNotFoundError:
            return True

    def work(self, stage: Stage) -> Path:
        """Return the folder in which a claimed stage is computed. It keeps what a crash left there."""
        return self.root / ".work" / f"{stage.kind}-{stage.key}"

    def _lock(self, stage: Stage) -> Path:
        return self.root / ".locks" / f"{stage.kind}-{stage.key}"

    def publish(self, stage: Stage, out: Path, about: Mapping[str, Any]) -> Entry:
        """Make `out` the entry of a claimed stage: records it, brings it to the disk, renames it.

        The work folder is removed.
        """
        files = {
            str(path.relative_to(out)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(out.rglob("*"))
            if path.is_file() and path.name != RECORD
        }
        record = {
            "kind": stage.kind,
            "slug": stage.slug,
            "key": stage.key,
            "trajectory": stage.trajectory,
            "settings": stage.key_content,
            "parents": {
                role: {"kind": parent.kind, "slug": parent.slug, "key": parent.key}
                for role, parent in stage.parents.items()
            },
            **about,
            "files": files,
        }
        (out / RECORD).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in (*out.rglob("*"), out):
            fsync(path)
        final = self.root / stage.kind / f"{stage.slug}-{stage.key}"
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(out, final)
        fsync(final.parent)
        self.discard_work(stage)
        return Entry(final)

    def drop(self, entry: Entry, name: str) -> None:
        """Remove a file or folder of an entry for good; the record, which is changed first, lists it as dropped."""
        files = {
            file: about
            for file, about in entry.record["files"].items()
            if file != name and not file.startswith(f"{name}/")
        }
        record = {**entry.record, "dropped": sorted({*entry.record.get("dropped", ()), name}), "files": files}
        write_json(entry.path / RECORD, record)
        remove(entry.path / name)

    def has_work(self, stage: Stage) -> bool:
        """Return whether a stage is being computed, or a crash left its work folder behind."""
        return os.path.lexists(self.work(stage))

    def discard_work(self, stage: Stage) -> None:
        """Remove what the making of a stage left behind. Only for the holder of the lock."""
        with contextlib.suppress(OSError):
            remove(self.work(stage))

    def quarantine(self, entry: Entry) -> Path:
        """Move a damaged entry to `store/.damaged/`, so that it can be computed again and still be looked at."""
        damaged = self.root / ".damaged"
        damaged.mkdir(parents=True, exist_ok=True)
        moved_to = damaged / f"{entry.path.parent.name}-{entry.path.name}-{time.time_ns()}"
        os.rename(entry.path, moved_to)
        return moved_to


class FileNote(TypedDict):
    """The record of a file."""

    bytes: int
    sha256: str


class Record(TypedDict):
    """The keys of a record that we need; there are more."""

    finished: str
    seconds: float
    amount: float
    settings: dict[str, Any]
    files: dict[str, FileNote]


_RECORD = TypeAdapter(Record)


def read_record(folder: Path) -> Mapping[str, Any]:
    """Read a folder's stage.json; empty if it cannot be read, or lacks required keys."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        _RECORD.validate_python(record, strict=True)
    except (ValueError, OSError, RecursionError):
        return {}
    return dict(record)


def remove(path: Path) -> None:
    """Remove a file, folder or link, if it is there; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def ensure_dir(path: Path) -> Path:
    """Make a folder unless it is one. What else has its name goes: work could be led elsewhere by another's link."""
    if path.is_symlink() or not path.is_dir():
        remove(path)
    path.mkdir(parents=True, exist_ok=True)
    return path
