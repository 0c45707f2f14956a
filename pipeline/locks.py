"""Whether the claims of a store hold where it lies: they are flocks, which not every shared file system has.

There is no lease with a heartbeat to fall back to: who holds one can only guess that its owner is dead, by clocks and
by waiting, and a host that stalls and wakes up again makes the guess wrong. So what cannot lock is refused.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
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
# Mounts whose locks are seen by processes of the same host only: type (as it begins), and an option that says so.
HOST_ONLY = (
    ("nfs", "nolock"),
    ("nfs", "local_lock=flock"),
    ("nfs", "local_lock=all"),
    ("lustre", "localflock"),
    ("fuse.sshfs", ""),
)


def check(root: Path) -> str | None:
    """A warning where locks end at this host, else None. Makes the folder.

    Raises BadInput where a second process gets a lock that this one holds, or where there are no locks at all.
    """
    elsewhere = "give a folder on another file system (or have it mounted with locks: flock, not noflock or nolock)"
    folder = root / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("a", dir=folder, prefix="probe-") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            command = [sys.executable, "-I", "-S", "-c", PROBE, file.name]
            done = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadInput(f"store={root}: cannot be locked ({error}); {elsewhere}") from None
    if done.returncode != TAKEN:
        found = "a second process got a lock that was held" if done.returncode == FREE else "a lock could not be tried"
        raise BadInput(f"store={root}: {found}, so two runs could make one stage at once; {elsewhere}")
    mount = host_only(root)
    return mount and f"store={root}: its locks end at this host ({mount}); start one command at a time on this store"


def host_only(folder: Path) -> str | None:
    """The mount of a folder, as `type option`, where other hosts do not see its locks; None where nothing says so."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    best, found = -1, None
    for line in lines:  # 36 35 98:0 /root /mount/point rw,noatime master:1 - type source rw,options
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].encode().decode("unicode_escape"))  # a blank is \040
        kind, _, options = after.split(" ", 2)
        if folder.resolve().is_relative_to(point) and len(point.parts) >= best:  # a later mount hides an earlier one
            best = len(point.parts)
            found = next(
                (f"{kind} {option}".strip() for name, option in HOST_ONLY if _says(kind, options, name, option)), None
            )
    return found


def _says(kind: str, options: str, name: str, option: str) -> bool:
    return kind.startswith(name) and (not option or option in options.split(","))
