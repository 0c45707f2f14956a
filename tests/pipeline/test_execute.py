"""Execution over a real store: what is done is skipped, what is damaged is made anew, kill -9 and concurrency leave one
set of results.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.errors import BadInput, StageFailed
from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.store import Store
from tests.pipeline import toy
from tests.pipeline.toy_stage import toy_stage

ROOT = Path(__file__).parents[2]
HANGS_AFTER_S = 300.0  # slowness takes less


def execute(root: Path, stages=None, makers=None) -> tuple[list[str], list[dict]]:
    """The lines said and the journal of a run in this process."""
    stages = stages or toy.plan()
    journal = Journal(root / f"journal-{len(list(root.glob('journal-*')))}.jsonl")
    view = toy.view(Store(root), stages, journal)
    executor = Executor(Store(root), stages, journal, maker=(makers or toy.Makers()).__getitem__)
    executor.compute(stages, stop_at_failure=True)
    return view.new_lines(), journal.events("published")


def process(root: Path, journal: Path, point: str = "") -> subprocess.Popen:
    command = [
        sys.executable,
        str(ROOT / "tests/pipeline/toy.py"),
        str(root),
        str(journal),
        *([point] if point else []),
    ]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)


def contents(root: Path) -> dict[str, bytes | list]:
    """What the store holds, but for times."""
    found: dict[str, bytes | list] = {}
    for path in sorted(root.glob("[a-z]*/*/**/*")):
        if path.is_file():
            name = str(path.relative_to(root))
            found[name] = (
                path.read_bytes() if path.name != "stage.json" else list(json.loads(path.read_text())["files"].items())
            )
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | list]:
    root = tmp_path_factory.mktemp("undisturbed")
    execute(root)
    return contents(root)


def test_second_run_runs_nothing(tmp_path: Path) -> None:
    assert len(execute(tmp_path)[1]) == 6
    lines, published = execute(tmp_path)
    assert (lines, published) == ([], [])


def test_lines_begin_with_the_number_of_finished_stages(tmp_path: Path) -> None:
    plan = toy.plan()
    execute(tmp_path, plan[:2])
    lines, _ = execute(tmp_path, [*plan[4:], *plan[2:4]])  # evals ask for their CT first: not the order of the plan
    counted = [line.partition("]")[0] + "]" for line in lines if ": done in " in line]
    assert counted == [f"[{number}/4]" for number in (1, 2, 3, 4)]
    assert lines[0].startswith("[0/4] ct toy-20: starts")


def test_a_new_budget_continues_from_the_one_before(tmp_path: Path) -> None:
    execute(tmp_path, toy.plan((20,)))
    _, published = execute(tmp_path, toy.plan((10, 20, 40)))
    assert [event["slug"] for event in published] == ["toy-10", "toy-40", "toy-10", "toy-40"]
    resumed = {entry.record["slug"]: entry.record["resumed_tokens"] for entry in Store(tmp_path).entries("ct")}
    assert resumed == {"toy-20": 0, "toy-10": 0, "toy-40": 20}


@pytest.mark.parametrize("point", toy.POINTS)
def test_kill_at_any_point(tmp_path: Path, point: str, undisturbed: dict) -> None:
    """A process that was killed leaves nothing under a final name that is not whole; the next run ends with the same
    results.
    """
    killed = process(tmp_path, tmp_path / "killed.jsonl", point)
    assert killed.wait(timeout=HANGS_AFTER_S) == -signal.SIGKILL
    assert all(
        entry.damage(thorough=True) is None
        for kind in Store(tmp_path).kinds()
        for entry in Store(tmp_path).entries(kind)
    )
    execute(tmp_path)
    assert contents(tmp_path) == undisturbed
    assert not list((tmp_path / ".work").iterdir())


def test_mid_stage_crash_loses_no_checkpoint(tmp_path: Path) -> None:
    process(tmp_path, tmp_path / "killed.jsonl", "mid_stage").wait(timeout=HANGS_AFTER_S)
    work = next((tmp_path / ".work").glob("ct-*")) / "scratch" / "step"
    assert work.read_text() == "11"


def test_two_processes_share_one_store(tmp_path: Path, undisturbed: dict) -> None:
    journals = [tmp_path / f"j{number}.jsonl" for number in range(2)]
    running = [process(tmp_path, journal) for journal in journals]
    assert [one.wait(timeout=HANGS_AFTER_S) for one in running] == [0, 0]
    started = [event["key"] for journal in journals for event in Journal(journal).events("started")]
    assert len(started) == len(set(started)) == 6
    assert contents(tmp_path) == undisturbed


@pytest.mark.parametrize("harm", ["changed", "truncated", "deleted", "record"])
def test_damage_is_found_and_made_anew(tmp_path: Path, harm: str, undisturbed: dict) -> None:
    execute(tmp_path)
    entry = next(Store(tmp_path).entries("ct"))
    file = entry.path / ("stage.json" if harm == "record" else "weights")
    if harm == "deleted":
        file.unlink()
    else:
        file.write_text({"changed": "99", "truncated": "2", "record": "{"}[harm])
    lines, published = execute(tmp_path)
    assert [event["kind"] for event in published] == ["ct"]
    assert len([line for line in lines if "damaged" in line]) == 1
    assert contents(tmp_path) == undisturbed
    assert len(list((tmp_path / ".damaged").iterdir())) == 1


def test_large_parent_is_checked_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed byte in a large entry costs no reading until a stage needs the entry; then the entry is made anew
    first.
    """
    monkeypatch.setattr("pipeline.store.ALWAYS_CHECKED", 0)
    execute(tmp_path, toy.plan((20,)))
    (next((tmp_path / "base").iterdir()) / "model" / "words").write_text("base ['tokenz']")
    assert execute(tmp_path, toy.plan((20,)))[1] == []
    _, published = execute(tmp_path, toy.plan((20, 40)))
    assert [event["kind"] for event in published] == ["base", "ct", "eval"]


def test_a_crash_is_told_in_one_line(tmp_path: Path) -> None:
    def fails(job: object) -> None:
        raise ZeroDivisionError("of all things")

    with pytest.raises(StageFailed, match=r"^ct toy-20 failed: ZeroDivisionError: of all things \(traceback: .*\)$"):
        execute(tmp_path, makers={**toy.Makers(), "ct": fails})
    assert "Traceback" in next((tmp_path / ".work").glob("ct-*/traceback.txt")).read_text()


def test_a_full_disk_is_bad_input(tmp_path: Path) -> None:
    def full(job: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="the disk is full"):
        execute(tmp_path, makers={**toy.Makers(), "ct": full})


def test_a_full_disk_of_which_torch_tells_in_its_own_words_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def fails(job: object) -> None:
        monkeypatch.setattr(Path, "write_text", full)
        raise RuntimeError("unexpected pos 187648 vs 187540")

    with pytest.raises(BadInput, match="the disk is full"):
        execute(tmp_path, makers={**toy.Makers(), "ct": fails})


def test_what_another_job_is_making_comes_last(tmp_path: Path) -> None:
    first, second = toy_stage("corpus", "first", {"words": 1}), toy_stage("corpus", "second", {"words": 2})
    journal = Journal(tmp_path / "journal.jsonl")
    store, maker = Store(tmp_path / "store"), toy.Makers().__getitem__
    executor = Executor(store, (first, second), journal, maker=maker)
    running = threading.Thread(target=executor.compute, args=((first, second),))
    with Store(tmp_path / "store").claim(first):
        running.start()
        while not journal.events("published"):
            assert running.is_alive()
            time.sleep(0.01)
    running.join()
    assert [event["slug"] for event in journal.events("published")] == ["second", "first"]


def test_a_larger_budget_makes_the_smaller_ones_of_the_sweep_first(tmp_path: Path) -> None:
    stages = toy.plan()
    journal = Journal(tmp_path / "journal.jsonl")
    store, maker = Store(tmp_path / "store"), toy.Makers().__getitem__
    executor = Executor(store, stages, journal, maker=maker)
    executor.compute([stage for stage in stages if "20" not in stage.slug])
    assert [event["slug"] for event in journal.events("published") if event["kind"] == "ct"] == ["toy-20", "toy-40"]


@pytest.mark.parametrize("place", ["", "out", "scratch"])
@pytest.mark.parametrize("is_link", [True, False])
def test_what_a_neighbour_left_where_a_stage_is_made_goes_and_what_it_links_to_stays(
    tmp_path: Path, place: str, is_link: bool, undisturbed: dict
) -> None:
    theirs, store = tmp_path / "theirs", tmp_path / "store"
    for folder in (theirs, theirs / "out", theirs / "scratch"):
        folder.mkdir()
        (folder / "thesis").touch()
    before = sorted(theirs.rglob("*"))
    planted = Store(store).work(toy.plan()[0]) / place
    planted.parent.mkdir(parents=True)
    if is_link:
        planted.symlink_to(theirs)
    else:
        planted.touch()
    execute(store)
    assert contents(store) == undisturbed and sorted(theirs.rglob("*")) == before
    assert not list((store / ".work").iterdir())


def test_a_place_where_nothing_may_be_made_is_refused_and_noted(tmp_path: Path) -> None:
    (tmp_path / ".work").touch()
    with pytest.raises(BadInput, match=r"\.work"):
        execute(tmp_path)
    assert Journal(tmp_path / "journal-0.jsonl").events("refused")


def test_what_cannot_be_removed_does_not_become_part_of_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Store(tmp_path).work(toy.plan()[0]) / "out" / "theirs"
    left.parent.mkdir(parents=True)
    left.touch()
    monkeypatch.setattr("pipeline.store.shutil.rmtree", lambda *_, **__: None)  # another user's
    with pytest.raises(BadInput, match="out: File exists"):
        execute(tmp_path)
