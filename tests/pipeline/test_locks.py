"""Whether a store's locks hold is asked before anything is made: of folders that lock, do not, and only seem to."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from common.errors import BadInput
from pipeline import cli, locks
from pipeline.run import run
from pipeline.store import Store
from tests.pipeline.toy_stage import toy_stage


def test_a_folder_that_locks_is_taken_and_left_clean(tmp_path: Path) -> None:
    assert locks.check(tmp_path / "store") is None
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_folder_where_a_lock_holds_nobody_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # as where the file system says yes to everybody
    with pytest.raises(BadInput, match=r"store=.*: its locks do not work, .*Choose a folder on"):
        locks.check(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_folder_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.raises(BadInput, match=r"store=.*: cannot be locked .*no locks here"):
        locks.check(tmp_path)


def test_a_probe_that_cannot_run_is_no_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PROBE", "raise OSError")
    with pytest.raises(BadInput, match="its locks could not be tested"):
        locks.check(tmp_path)


def test_a_run_on_it_ends_in_one_line_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(run.checks, "check_plan", lambda plan: [])
    assert cli.pipeline_main(["experiment=test", f"store={tmp_path}/store", f"outputs={tmp_path}/outputs"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "its locks do not work" in said
    assert not (tmp_path / "outputs").exists()


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / {0}/home rw,relatime - nfs4 server:/home rw,vers=4.2,local_lock=none
41 22 0:36 / {0}/old\\040home rw,relatime - nfs server:/old rw,vers=3,local_lock=flock
42 22 0:37 / {0}/scratch rw - lustre 10.0.0.1@tcp:/scratch rw,flock
43 22 0:38 / {0}/scratch/fast rw - lustre 10.0.0.2@tcp:/fast rw,localflock
44 22 0:39 / {0}/größe rw - nfs server:/x rw,nolock
45 22 0:40 / {0}/caf\udce9 rw - vfat /dev/sdb rw
46 22 0:41 / {0}/bee rw - beegfs srv rw,cfgFile=/etc/beegfs/beegfs-client.conf
47 22 0:42 / {0}/bucket rw - fuse.gcsfuse bucket rw
48 22 0:43 / {0}/fuse rw - fuse srv rw
49 22 0:44 / {0}/disk rw - fuseblk /dev/sdc rw
50 22 0:45 / {0}/gluster rw - fuse.glusterfs srv rw
51 22 0:46 / {0}/windows rw - cifs //srv/share rw,nobrl
52 22 0:47 / {0}/ocfs rw - ocfs2 /dev/sdd rw,localflocks
53 22 0:48 / {0}/guest rw - virtiofs host rw
54 22 0:49 / {0}/ceph rw - ceph srv rw
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("local", None),
        ("home/me", None),
        ("homely", None),
        ("old home/me/store", "end at this host (nfs local_lock=flock)"),
        ("scratch/me", None),
        ("scratch/fast/me", "end at this host (lustre localflock)"),
        ("größe/store", "end at this host (nfs nolock)"),
        ("bee", "may end at this host (beegfs)"),
        ("bucket", "may end at this host (fuse.gcsfuse)"),
        ("fuse", "may end at this host (fuse)"),
        ("disk", None),
        ("gluster", None),
        ("windows", "end at this host (cifs nobrl)"),
        ("ocfs", "end at this host (ocfs2 localflocks)"),
        ("guest", "may end at this host (virtiofs)"),
        ("ceph", None),
    ],
)
def test_mounts_whose_locks_end_at_the_host_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: str | None
) -> None:
    (tmp_path / "mountinfo").write_bytes(os.fsencode(MOUNTS.format(tmp_path)))
    monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mountinfo")
    assert locks.host_only(tmp_path / folder) == expected
    warned = locks.check(tmp_path / folder)
    assert (warned is None) == (expected is None)
    assert warned is None or "Start one command at a time" in warned


STAGE = toy_stage("ct", "nya", {"tokens": 1})


def test_who_may_only_read_a_lock_can_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another user of the group, whose umask let nobody else write."""
    opens = os.open

    def refuses(path: Path, flags: int, *more: int) -> int:
        if flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opens(path, flags, *more)

    with Store(tmp_path).claim(STAGE):
        monkeypatch.setattr(os, "open", refuses)
        assert not Store(tmp_path).is_free(STAGE)
    assert Store(tmp_path).is_free(STAGE)
    with Store(tmp_path).claim(STAGE):
        assert not Store(tmp_path).is_free(STAGE)


@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_a_lock_is_for_whom_the_umask_says(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with Store(tmp_path).claim(STAGE):
            (lock,) = (tmp_path / ".locks").iterdir()
            assert stat.S_IMODE(lock.stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


def test_a_lock_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path).claim(STAGE):
        (lock,) = (tmp_path / ".locks").iterdir()

    def refuses(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    with monkeypatch.context() as patched, pytest.raises(BadInput, match=f"{lock}: cannot be locked"):
        patched.setattr(fcntl, "flock", refuses)
        Store(tmp_path).is_free(STAGE)
    lock.unlink()
    lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=f"{lock}: cannot be locked"), Store(tmp_path).claim(STAGE):
        pass
    assert not (tmp_path / "elsewhere").exists()
