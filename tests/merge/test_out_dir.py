"""OUT_DIR: looked at before anything is read, held while it is written, and nothing left of what failed."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import merge
from common.processes import SIGNALS
from merge.cli import main
from merge.engine.passes import Workers
from merge.output import writer
from merge.output.out_folder import OutFolder
from tests.merge.conftest import recipe

RESULT = {"README.md", "audit.json", "audit.parquet", "config.json", "merge.yml", "model.safetensors", "tokenizer.json"}


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def config(folders: dict[str, Path], tmp_path: Path) -> str:
    recipe(folders, "ties").save(tmp_path / "merge.yml")
    return str(tmp_path / "merge.yml")


def refused(config: str, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    capsys.readouterr()
    before = names(Path(config).parent)
    assert main([config, str(out), *more]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and names(Path(config).parent) == before
    return error


def test_an_empty_folder_is_filled_where_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    """As a mount point must be: nothing is made beside it, and it stays the same folder."""
    out = tmp_path / "mount"
    (out / "lost+found").mkdir(parents=True)
    inode = out.stat().st_ino

    def see(*_: object) -> None:
        assert not list(tmp_path.glob(".*")) and list(out.glob(".*.merge-part"))

    merge.write(recipe(folders, "ties"), out, workers=Workers(progress=see))
    assert names(out) == RESULT | {"lost+found"} and out.stat().st_ino == inode


def test_links_are_followed(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for link, place in (("full", "there"), ("dangling", "new")):
        (tmp_path / link).symlink_to(place)
        merge.write(recipe(folders, "ties"), tmp_path / link)
        assert (tmp_path / link).is_symlink() and names(tmp_path / place) == RESULT


def test_a_real_mount_point(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "mount"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", out], check=False, capture_output=True).returncode:
        pytest.skip("this account may not mount")
    try:
        merge.write(recipe(folders, "ties"), out)
        assert names(out) == RESULT
    finally:
        subprocess.run(["umount", out], check=True)


def test_places_that_cannot_be(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{config} is not a folder" in refused(config, Path(config) / "out", capsys)
    assert "exists already" in refused(config, Path(config), capsys)
    assert "longer than the file system allows" in refused(config, tmp_path / ("x" * 300), capsys)
    assert "exists already" in refused(config, tmp_path / "base", capsys, "--plan")
    assert "/proc" in refused(config, Path("/proc/nowhere/out"), capsys)


def test_a_name_as_long_as_can_be(folders: dict[str, Path], tmp_path: Path) -> None:
    assert names(merge.write(recipe(folders, "ties"), tmp_path / ("x" * 255))) == RESULT


def test_what_a_killed_merge_published_by_halves_goes(folders: dict[str, Path], tmp_path: Path) -> None:
    """Killed between the renames into a folder that was there."""
    out = tmp_path / "mount"
    out.mkdir()
    killed = OutFolder(out)
    aside = killed.open()
    for name in ("README.md", "config.json", "weights"):
        (aside / name).touch()
    renames = iter((Path.rename, Path.rename, interrupted))
    patched = mock.patch.object(Path, "rename", lambda path, target: next(renames)(path, target))
    with patched, pytest.raises(KeyboardInterrupt):
        killed.publish()
    assert killed._descriptor is not None
    os.close(killed._descriptor)  # as the kernel does
    assert {name for name in names(out) if not name.startswith(".")} == {"README.md", "weights"}
    merge.write(recipe(folders, "ties"), out)
    assert names(out) == RESULT


@pytest.mark.parametrize("planted", ['["thesis"]', '{"thesis": 1}', '{"thesis": null}', "5", "[" * 100_000])
@pytest.mark.parametrize("fills", [True, False])
def test_a_lock_out_of_an_unpacked_archive_removes_nothing_of_yours(
    planted: str, fills: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "unpacked"
    (home / ".unpacked.merge-part").mkdir(parents=True)
    (home / ".unpacked.merge-part" / "config.json").touch()
    (home / ".unpacked.merge-lock").write_text(planted)
    (home / "thesis").touch()
    if fills:  # refused: it is not empty
        with pytest.raises(merge.BadInput, match="exists already"):
            merge.write(recipe(folders, "ties"), home)
    else:
        merge.write(recipe(folders, "ties"), home / "out")
    assert names(home) == {"thesis"} | (set() if fills else {"out"})


def unignored() -> None:
    """In a child: answer to signals that this process was started to ignore (nohup, a script's background)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def test_a_signal_ends_it_and_leaves_nothing(config: str, tmp_path: Path) -> None:
    code = (
        "import os, sys; from merge import cli; "
        "cli.Progress.__enter__ = lambda self: lambda *_: os.kill(os.getpid(), {}); "
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    before = names(tmp_path)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        command = [sys.executable, "-c", code.format(int(number)), config, str(tmp_path / "out")]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=unignored)
        assert (ran.returncode, ran.stderr.count("\n")) == (128 + number, 1), ran.stderr
        assert names(tmp_path) == before


def test_a_signal_while_it_clears_up_leaves_nothing(config: str, tmp_path: Path) -> None:
    code = (
        "import os, shutil, sys; from merge import cli; real = shutil.rmtree; "
        f"shutil.rmtree = lambda *a, **k: (os.kill(os.getpid(), {int(signal.SIGTERM)}), real(*a, **k)); "
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", code, config, str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=unignored)
    assert ran.returncode == 128 + signal.SIGTERM and (out / "config.json").is_file()
    assert not list(out.glob(".*")) and not list(tmp_path.glob(".*"))


def test_a_place_without_the_right_to_write(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("merge.output.writer.survey")
    monkeypatch.setattr(
        "merge.output.out_folder.os.access", lambda _, mode: not mode & os.W_OK
    )  # root may write anywhere
    assert f"no write permission in {tmp_path}" in refused(config, tmp_path / "out", capsys)


def test_a_read_only_file_system(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mount"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", out], check=False, capture_output=True).returncode:
        pytest.skip("this account may not mount")
    try:
        assert "no write permission" in refused(config, out / "new", capsys)
    finally:
        subprocess.run(["umount", out], check=True)


def test_two_merges_into_one_place(folders: dict[str, Path], tmp_path: Path) -> None:
    first = OutFolder(tmp_path / "out")
    aside = first.open()
    with pytest.raises(merge.BadInput, match="another merge is writing to it"):
        merge.write(recipe(folders, "ties"), tmp_path / "out")
    assert aside.is_dir()
    first.discard()
    assert names(tmp_path) == {"base", "ct", "sft"}


def test_what_has_the_name_meanwhile_stays_and_so_does_the_result(folders: dict[str, Path], tmp_path: Path) -> None:
    def take(*_: object) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "theirs").touch()

    with pytest.raises(merge.BadInput, match=r"/out: .*/out-2"):
        merge.write(recipe(folders, "ties"), tmp_path / "out", workers=Workers(progress=take))
    assert names(tmp_path / "out") == {"theirs"} and names(tmp_path / "out-2") == RESULT


def test_parents_that_were_made_go_with_a_merge_that_fails(folders: dict[str, Path], tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge.write(recipe(folders, "ties"), tmp_path / "a" / "b" / "out", workers=Workers(progress=fail))
    assert names(tmp_path) == {"base", "ct", "sft"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_noticed_before_the_survey(
    number: int, config: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.delattr("merge.output.writer.survey")
    monkeypatch.setattr(writer.os, "posix_fallocate", full)
    assert "Free some" in refused(config, tmp_path / "out", capsys)


def test_room_for_what_is_written_last_is_taken_first(
    config: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.delattr("merge.output.writer.survey")
    monkeypatch.setattr("merge.output.writer.take_room", full)
    assert "Free some" in refused(config, tmp_path / "out", capsys)


def test_the_plan_says_where_room_is_lacking(
    config: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("merge.cli.shutil.disk_usage", lambda _: usage)
    assert "0.00 GB free" in refused(config, tmp_path / "out", capsys, "--plan")


def test_too_many_open_files(config: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merge.cli._allow_open_files", lambda: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert main([config, str(tmp_path / "first"), "--no-audit"]) == 0  # what is imported late is imported now
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        assert "too many files are open" in refused(
            config, tmp_path / "out", capsys, "--shard-size", "1kB", "--no-audit"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_output_that_goes_nowhere(config: str) -> None:
    command = [sys.executable, "-m", "merge", config, "--plan"]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (2, "merge: the disk is full. Free some space, or write elsewhere.\n")
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (2, "merge: the program that read the output has ended.\n")
