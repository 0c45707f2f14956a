"""A new folder that is complete or absent, whatever ends the process that writes it.

Its files are in a hidden staging folder until all are written. A folder that does not exist yet then appears by one
rename. One that exists and is empty is filled (it may be a mount point, or the only place where this account may
write): the staging folder is inside it, and its files are renamed one by one, config.json last, without which it is not
a model.

While the process lives, it holds a lock on a hidden file next to the staging folder; the kernel releases it with the
process. So two merges cannot write to one place, and leftovers of a dead one are identified with certainty and removed
by the next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from common.errors import BadInput
from common.files import fsync
from common.processes import postponing_stop

LOCK, PART = ".merge-lock", ".merge-part"
INTERMEDIATE = "stages"
LAST = "config.json"
OF_FILE_SYSTEMS = {"lost+found"}  # what an empty one has
LONGEST = 230  # bytes of the longest name to which the hidden names' suffixes fit
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # a file system without them


class OutFolder:
    """The staging folder of a result (`staging`) and its final path (`target`; symlinks are followed)."""

    def __init__(self, target: str | Path):
        self.target = Path(target).absolute()
        self._real = Path(os.path.realpath(self.target))
        self._fills = self._real.is_dir()
        self._home = self._real if self._fills else self._real.parent
        name = self._real.name
        if len(os.fsencode(name)) > LONGEST:
            name = f"{name[:20]}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
        self.staging = self._home / f".{name}{PART}"
        self._lock = self._home / f".{name}{LOCK}"
        self._descriptor: int | None = None
        self._parents: list[Path] = []  # made for it

    def check(self) -> Path:
        """Reject a place without write permission, without touching it; return the nearest existing folder."""
        if os.path.lexists(self._real) and not self._fills:
            raise BadInput(f"{self.target}: exists already and is not a folder. Choose a new folder.")
        if self._fills and any(not self._is_ours(path) for path in self._real.iterdir()):
            raise BadInput(f"{self.target}: exists already. Choose a new folder, or remove this one first.")
        nearest = next(folder for folder in (self._home, *self._home.parents) if os.path.lexists(folder))
        if not nearest.is_dir():
            raise BadInput(f"{self.target}: {nearest} is not a folder. Choose another folder.")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise BadInput(f"{self.target}: no write permission in {nearest}. Choose another output folder.")
        return nearest

    def clear(self) -> None:
        """Remove leftovers of dead merges that may be in the way, and reject a place without write permission."""
        for folder in {self._home, self._real.parent}:  # leftovers for a folder that did not exist are next to it
            if folder.is_dir():
                remove_leftovers(folder)
        self.check()

    def open(self) -> Path:
        """Create the staging folder and return it. Raises BadInput or OSError; call `discard` in every case."""
        self.clear()
        for parent in (self._home, *self._home.parents):
            if parent.is_dir():
                break
            self._parents.append(parent)
        self._home.mkdir(parents=True, exist_ok=True)
        with postponing_stop():
            self._take_lock()
        self.staging.mkdir()
        return self.staging

    def publish(self) -> None:
        """Rename everything to its final name. If the name is taken by then, the result stays, and BadInput names its
        folder.
        """
        if not self._fills:
            try:
                self.staging.rename(self._real)
            except OSError as error:
                others = (self._real.with_name(f"{self._real.name}-{n}") for n in itertools.count(2))
                kept = next(path for path in others if not os.path.lexists(path))
                self.staging.rename(kept)
                why = f"another program created it during the merge ({error.strerror})"
                raise BadInput(f"{self.target}: {why}. Use {kept}, which is the complete result.") from None
            fsync(self._home)
            return
        names = sorted((path.name for path in self.staging.iterdir()), key=lambda name: name == LAST)
        if self._descriptor is not None:  # so that a later merge that finds this half done can remove it
            moved = {name: (self.staging / name).lstat().st_ino for name in names}
            os.write(self._descriptor, json.dumps(moved).encode())
            os.fsync(self._descriptor)
        for name in names:
            (self.staging / name).rename(self._home / name)
        fsync(self._home)

    def discard(self) -> None:
        """Remove unpublished files and release the lock. May be called again."""
        if self._descriptor is None:
            return
        with postponing_stop():
            _remove(self._home, self._lock, self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        for parent in self._parents:
            with suppress(OSError):  # not empty: published, or used by others
                parent.rmdir()

    def _take_lock(self) -> None:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._lock, flags, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._descriptor)
                self._descriptor = None
                raise BadInput(
                    f"{self.target}: another merge is writing to it. Wait for it, or choose another folder."
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if _is_file_of(self._descriptor, self._lock):
                return
            os.close(self._descriptor)  # its last holder has removed it since

    def intermediate(self) -> OutFolder:
        """Return the folder of intermediate results on the same file system: inside the target if it is filled, else
        next to it.
        """
        return OutFolder(self._home / (INTERMEDIATE if self._fills else f"{self._real.name}.{INTERMEDIATE}"))

    def _is_ours(self, path: Path) -> bool:
        intermediate = self.intermediate()
        hidden = (self.staging, self._lock, intermediate.staging, intermediate._lock)
        return path in hidden or path.name in OF_FILE_SYSTEMS


def discard(folders: Iterable[OutFolder]) -> None:
    """Discard each of them."""
    for folder in folders:
        folder.discard()


def remove_leftovers(folder: Path) -> None:
    """Remove leftovers of this account's dead merges in `folder`: those whose locks are free."""
    for lock in folder.glob(f".*{LOCK}"):
        with suppress(OSError):
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_file_of(descriptor, lock):
                        _remove(folder, lock, descriptor)
            finally:
                os.close(descriptor)


def _remove(folder: Path, lock: Path, descriptor: int) -> None:
    """Remove a staging folder, partly published files, and last its lock, which is held."""
    staging = lock.with_name(lock.name.removesuffix(LOCK) + PART)
    if (staging / LAST).is_file():  # else everything was published, or nothing yet
        for name, inode in _moved(descriptor).items():
            path = folder / name
            # the very file that was moved: a lock out of an unpacked archive names what it likes, but no inode here
            with suppress(OSError):
                if path.parent == folder and path.lstat().st_ino == inode:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(staging, ignore_errors=True)
    if not staging.exists():
        with suppress(OSError):
            lock.unlink()


def _moved(descriptor: int) -> dict[str, int]:
    """Return the names that were to be published, and their inodes; empty if the lock does not list them."""
    try:
        moved = json.loads(os.pread(descriptor, 1 << 20, 0) or "{}")
    except (OSError, ValueError, RecursionError):
        return {}
    return moved if isinstance(moved, dict) else {}


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
