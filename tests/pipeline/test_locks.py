"""Whether a store's locks hold is asked before anything is made: of folders that lock, do not, and only seem to."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from common.errors import BadInput
from pipeline import __main__ as entry
from pipeline import locks
from pipeline.run import sweep_run


def test_a_folder_that_locks_is_taken_and_left_clean(tmp_path: Path) -> None:
    assert locks.check(tmp_path / "store") is None
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_folder_where_a_lock_holds_nobody_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # as where the file system says yes to everybody
    with pytest.raises(BadInput, match=r"store=.*: a second process got a lock that was held, .*give a folder on"):
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
    with pytest.raises(BadInput, match="a lock could not be tried"):
        locks.check(tmp_path)


def test_a_run_on_it_ends_in_one_line_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(sweep_run, "check", lambda sweep: 0)
    assert entry.main(["experiment=test", f"store={tmp_path}/store", f"outputs={tmp_path}/outputs"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "a second process got a lock that was held" in said
    assert not (tmp_path / "outputs").exists()


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:35 / {0}/home rw,relatime - nfs4 server:/home rw,vers=4.2,local_lock=none
41 22 0:36 / {0}/old\\040home rw,relatime - nfs server:/old rw,vers=3,local_lock=flock
42 22 0:37 / {0}/scratch rw - lustre 10.0.0.1@tcp:/scratch rw,flock
43 22 0:38 / {0}/scratch/fast rw - lustre 10.0.0.2@tcp:/fast rw,localflock
"""


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("local", None),
        ("home/me", None),
        ("homely", None),
        ("old home/me/store", "nfs local_lock=flock"),
        ("scratch/me", None),
        ("scratch/fast/me", "lustre localflock"),
    ],
)
def test_mounts_whose_locks_end_at_the_host_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, expected: str | None
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS.format(tmp_path))
    monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mountinfo")
    assert locks.host_only(tmp_path / folder) == expected
    warned = locks.check(tmp_path / folder)
    assert (warned is None) == (expected is None)
    assert warned is None or "start one command at a time" in warned
