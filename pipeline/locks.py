"""Check whether the locks of a store work on its file system: they are flocks, which not every one supports.

There is no lease with a heartbeat to fall back to: who holds one can only guess that its owner is dead, by clocks and
by waiting, and a host that stalls and wakes up again makes the guess wrong. So what cannot lock is rejected.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.errors import BadInput

MOUNTS = Path("/proc/self/mountinfo")
PROBE_TIMEOUT_S = 30.0
TAKEN, FREE = 0, 3  # exit codes of the probe
PROBE = f"""
import fcntl, sys
with open(sys.argv[1], "a") as file:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit({TAKEN})
sys.exit({FREE})
"""
# Mounts whose locks other hosts do not see: prefix of the type, and the option that shows it.
HOST_ONLY = (
    ("nfs", "nolock"),
    ("nfs", "local_lock=flock"),
    ("nfs", "local_lock=all"),
    ("lustre", "localflock"),
    ("gfs2", "localflocks"),
    ("ocfs2", "localflocks"),
    ("cifs", "nobrl"),
    ("smb3", "nobrl"),
    ("fuse.sshfs", ""),
)
# Types that several hosts may mount, and whose options do not show whether other hosts see a lock.
UNKNOWN = ("beegfs", "9p", "virtiofs", "afs", "orangefs", "pvfs2", "vboxsf")
FUSE_WITH_LOCKS = ("fuse.glusterfs",)  # of all of FUSE: its server knows every lock


@contextmanager
def open_lock(lock: Path, flags: int = 0) -> Iterator[int]:
    """Open a lock file, for writing if permitted (NFS locks no other), else for reading.

    Raises FileNotFoundError, and BadInput if it cannot be opened.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(lock, os.O_RDWR | flags, 0o666)  # less the umask: a group may share a store
        except PermissionError:
            descriptor = os.open(lock, os.O_RDONLY | flags & ~os.O_CREAT)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(lock, error) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, lock: Path) -> bool:
    """Take a lock; False where another process holds it. Raises BadInput."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # such as NFS's of a file that may only be read
        raise _unusable(lock, error) from None
    return True


def _unusable(lock: Path, error: OSError) -> BadInput:
    return BadInput(
        f"{lock}: cannot be locked ({error.strerror}). "
        "Let its owner give you write permission, or choose another store."
    )


def check(root: Path) -> str | None:
    """Return a warning where locks end at this host, else None. Makes the folder.

    Raises BadInput if a second process gets a lock that this one holds, or where there are no locks at all.
    """
    elsewhere = "Choose a folder on another file system (or have it mounted with locks: flock, not noflock or nolock)."
    folder = root / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("a", dir=folder, prefix="probe-") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            command = [sys.executable, "-I", "-S", "-c", PROBE, file.name]
            done = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"store={root}: cannot be locked ({error}). {elsewhere}") from None
    if done.returncode != TAKEN:
        found = "its locks do not work" if done.returncode == FREE else "its locks could not be tested"
        raise BadInput(f"store={root}: {found}, so two runs could compute one stage at once. {elsewhere}")
    mount = host_only(root)
    return mount and f"store={root}: its locks {mount}. Start one command at a time on this store."


def host_only(folder: Path) -> str | None:
    """Return `end at this host (type option)` of a folder's mount, or `may end ...`; None if locks reach further."""
    try:
        lines = MOUNTS.read_bytes().splitlines()
    except OSError:  # not Linux
        return None
    best, found = -1, None
    for line in lines:  # 36 35 98:0 /root /mount/point rw,noatime master:1 - type source rw,options
        before, _, after = line.partition(b" - ")
        named = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), before.split()[4])  # a blank: \040
        point = Path(os.fsdecode(named))
        kind, _, options = os.fsdecode(after).split(" ", 2)
        if folder.resolve().is_relative_to(point) and len(point.parts) >= best:  # a later mount hides an earlier one
            best, found = len(point.parts), _ends(kind, options.split(","))
    return found


def _ends(kind: str, options: Sequence[str]) -> str | None:
    for name, option in HOST_ONLY:
        if kind.startswith(name) and (not option or option in options):
            return f"end at this host ({kind} {option}".rstrip() + ")"
    fuse = kind == "fuse" or kind.startswith("fuse.")  # fuseblk is a disk
    if kind in UNKNOWN or (fuse and kind not in FUSE_WITH_LOCKS):
        return f"may end at this host ({kind})"
    return None
