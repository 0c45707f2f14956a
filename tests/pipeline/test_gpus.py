"""launcher=gpus: pieces of a plan on the GPUs of one machine, which are faked here."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import BadInput
from pipeline import sweep
from pipeline.run import gpus
from pipeline.run.cluster.schedule import Piece
from pipeline.run.gpus import Pool, gpu_pieces, width
from pipeline.stages.stage import Stage
from tests.pipeline import small
from tests.pipeline.small_run import SmallRun
from tests.pipeline.small_run import made as small_run_made
from tests.pipeline.toy_stage import toy_stage

ROOT = Path(__file__).parents[2]
FOUR = ("compute.strategy=ddp", "compute.processes=4")
FEW = ("merge=none", "eval.baselines=[base,ct,sft]", "ct.tokens=2048")  # of a whole run of toys


@cache
def stages(*overrides: str) -> tuple[Stage, ...]:
    """As `small.stages`, planned once."""
    return small.stages(*overrides)


# --- the pool


def task(name: str, wanted: int, needs: frozenset[str] = frozenset()) -> Piece:
    """A piece that holds so many GPUs."""
    if wanted == 0:
        return Piece("data", (toy_stage("corpus", name, {"name": name}),), needs)
    if wanted == 1:
        return Piece("evaluate", (toy_stage("eval", name, {"name": name}),), needs)
    stage = toy_stage("sft", name, {"name": name}, options={"compute": {"processes": wanted}})
    return Piece("train", (stage,), needs)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
@pytest.mark.parametrize("seed", range(5))
def test_every_piece_runs_once_after_its_needs_and_no_device_is_used_twice(count: int, seed: int) -> None:
    chance = random.Random(seed)
    options = FOUR if count >= 4 else ()
    plan = stages(*options, "seed=0,1")
    tasks = gpu_pieces(plan, {stage.key for stage in plan})
    pool, done, used = Pool(tasks, [f"GPU-{number}" for number in range(count)]), set(), set()
    while pool.waiting or pool.running:
        while chosen := pool.next():
            piece, held = chosen
            assert len(held) == width(piece) and not piece.needs - done
        in_use = [device for held in pool.running.values() for device in held]
        assert pool.running and len(in_use) == len(set(in_use))
        used |= set(in_use)
        ended = chance.choice(list(pool.running))
        pool.end(ended)
        assert not done & ended.keys
        done |= ended.keys
    assert len(used) == count
    assert done == {stage.key for stage in plan}


def test_each_budget_of_a_trajectory_is_a_piece_that_needs_the_smaller_one() -> None:
    plan = stages()
    small, large = sorted((stage for stage in plan if stage.kind == "ct"), key=lambda stage: stage.settings.tokens)
    by_key = {key: piece for piece in gpu_pieces(plan, {stage.key for stage in plan}) for key in piece.keys}
    assert by_key[small.key].stages == (small,) and small.key in by_key[large.key].needs
    scored = next(stage for stage in plan if stage.parents.get("checkpoint") is small)
    assert large.key not in by_key[scored.key].needs


def test_narrow_pieces_do_not_starve_a_wide_one() -> None:
    first = [task(f"first-{number}", 1) for number in range(4)]
    pool = Pool(first, list("abcd"))
    assert len([pool.next() for _ in first]) == 4
    wide = task("wide", 4)
    pool.waiting += [wide, *(task(f"later-{number}", 1) for number in range(9))]
    for piece in first:
        assert pool.next() is None, "a narrow piece took a GPU that the wide one waits for"
        pool.end(piece)
    assert pool.next() == (wide, tuple("abcd"))


def test_a_narrow_piece_passes_a_wide_one_that_it_does_not_delay() -> None:
    first = task("first", 3)
    pool = Pool([first], list("abcd"))
    assert pool.next() == (first, tuple("abc"))
    second, narrow, more = task("second", 3), task("narrow", 1), task("more", 1)
    pool.waiting += [second, narrow, more]
    assert pool.next() == (narrow, ("d",))
    pool.end(narrow)
    assert pool.next() == (more, ("d",))
    pool.end(first)
    assert pool.next() == (second, tuple("abc"))


def test_data_takes_no_device_and_waits_for_none() -> None:
    wide, data = task("wide", 2), [task(f"data-{number}", 0) for number in range(3)]
    pool = Pool([wide, *data], ["a", "b"], without_device=2)
    assert [chosen and chosen[1] for chosen in (pool.next(), pool.next(), pool.next(), pool.next())] == [
        ("a", "b"), (), (), None,
    ]  # fmt: skip


def test_what_another_command_makes_comes_last() -> None:
    first, second = task("first", 1), task("second", 1)
    pool = Pool([first, second], ["a"], elsewhere=lambda piece: piece is first)
    assert pool.next() == (second, ("a",))


# --- which GPUs, and whether they are shared


@pytest.mark.parametrize(
    ("given", "count", "names"),
    [
        (None, 3, ("0", "1", "2")),
        ("2, 5", 2, ("2", "5")),
        ("0,-1,2", 1, ("0",)),  # CUDA reads up to the first that is none
        ("GPU-8932f937,GPU-aa,GPU-bb", 3, ("GPU-8932f937", "GPU-aa", "GPU-bb")),
        ("MIG-1a,MIG-2b", 1, ("MIG-1a", "MIG-2b")),  # CUDA shows a process one slice
    ],
)
def test_devices_are_those_of_the_parent(
    given: str | None, count: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    if given is not None:
        monkeypatch.setenv(gpus.VISIBLE, given)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert gpus.visible() == names


def chosen(monkeypatch: pytest.MonkeyPatch, count: int, *words: str) -> tuple[str, int]:
    """The launcher of a command line on a machine with so many GPUs, and how many GPUs children share."""
    monkeypatch.setattr(gpus, "visible", lambda: tuple(map(str, range(count))))
    expanded = sweep.expand(["experiment=tiny", *words], multirun=True)  # whose own launcher is joblib
    asked, shared = gpus.choose_launcher(expanded, expanded.configs[0].compute)
    assert asked.processes == (len(shared) or expanded.processes)
    return asked.launcher, len(shared)


def test_several_gpus_are_shared_unless_a_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, 4, "compute=gpu") == ("gpus", 4)
    assert chosen(monkeypatch, 1, "compute=gpu") == ("joblib", 0)
    assert chosen(monkeypatch, 1, "compute=gpu", "launcher=gpus") == ("gpus", 1)
    assert chosen(monkeypatch, 4, "compute=gpu", "launcher=local") == ("basic", 0)
    assert chosen(monkeypatch, 4) == ("joblib", 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("launcher=gpus",), r"launcher=gpus: needs GPUs, got compute\.device=cpu\. Set compute=gpu"),
        (("compute=gpu", "launcher=joblib"), r"launcher=joblib: .* the first of 4 GPUs\. Set launcher=gpus"),
        (
            ("compute=ddp", "compute.processes=1", "compute.nodes=2", "launcher=gpus"),
            r"compute\.nodes=2: launcher=gpus uses one machine",
        ),
    ],
)
def test_what_cannot_share_gpus_is_rejected(words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=says):
        chosen(monkeypatch, 4, *words)


def test_a_child_takes_its_share_of_the_cores_and_the_key_stays() -> None:
    for stage in stages("compute.threads=8"):
        bounded = gpus.with_threads(stage, 3)
        assert bounded.key == stage.key
        given = [getattr(bounded.options, "threads", None), bounded.compute.threads]
        before = [getattr(stage.options, "threads", None), stage.compute.threads]
        assert given == [threads and min(threads, 3) for threads in before]


# --- a whole run, of toys


def command(folder: Path, names: str, *words: str, child: str = "tests.pipeline.gpu_child") -> list[str]:
    return [
        sys.executable, "-m", "tests.pipeline.run_on_fake_gpus", names, child, "-m", "experiment=test",
        "launcher=gpus", f"store={folder}/store", f"outputs={folder}/outputs", *FEW, *words,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(folder: Path, names: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, names, *words), cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )


def ask(folder: Path, **wanted: str) -> None:
    (folder / "asked").mkdir(exist_ok=True)
    for name, text in wanted.items():
        (folder / "asked" / name).write_text(text)


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    journals = sorted(folder.glob("outputs/test/runs/*/journal.jsonl"))
    each = [json.loads(line) for journal in journals for line in journal.read_text().splitlines()]
    return [event for event in each if event["event"] in names]


def made(folder: Path) -> list[str]:
    return names(events(folder, "published"))


def names(of: list[dict[str, Any]]) -> list[str]:
    """Stages by kind and slug: their keys hold checksums of text that `stages` does not read."""
    return [f"{event['kind']} {event['slug']}" for event in of]


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toys score nothing that a report could read."""
    monkeypatch.setenv("SLACKMERGE_TEST_NO_REPORT", "1")


@pytest.mark.usefixtures("no_report")
def test_all_devices_are_used_at_once_and_a_wide_training_gets_four(tmp_path: Path) -> None:
    """SFT and CT wait for one another: on fewer than eight devices neither would end."""
    ask(tmp_path, together="")
    done = run(tmp_path, "0,1,2,GPU-3,4,5,6,7", *FOUR)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "launcher=gpus: 8 GPUs" in done.stdout
    assert len(made(tmp_path)) == len(set(made(tmp_path))) == len(stages(*FEW, *FOUR))
    for path in (tmp_path / "store").glob("*/*/made.json"):
        kind = path.parents[1].name
        held = json.loads(path.read_text())["devices"]
        assert len(held) == (4 if kind in ("base", "ct", "sft") else 1 if kind in ("eval", "tune", "merge") else 0)
    starts = {event["piece"]: event["devices"] for event in events(tmp_path, "piece_started")}
    assert {device for held in starts.values() for device in held} == {*"012", "GPU-3", *"4567"}


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("how", ["crash", "die"])
def test_what_fails_takes_down_what_needs_it_and_the_rest_goes_on(tmp_path: Path, how: str) -> None:
    victim = next(stage for stage in stages(*FEW) if stage.kind == "ct")
    ask(tmp_path, **{how: str(victim)})
    done = run(tmp_path, "0,1")
    assert done.returncode == 1
    said = {"crash": "ZeroDivisionError: of all things", "die": "its process was killed by SIGKILL"}[how]
    assert names(events(tmp_path, "failed")) == [str(victim)]
    assert f"{victim} failed: {said}" in done.stderr and "to try again" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lost = {*names(events(tmp_path, "not_run")), str(victim)}
    assert {*made(tmp_path)} == {str(stage) for stage in stages(*FEW)} - lost
    below = {str(stage) for stage in stages(*FEW) if any(str(parent) in lost for parent in stage.parents.values())}
    assert below <= lost and any(str(stage) not in lost for stage in stages(*FEW) if stage.kind == "sft")
    ask(tmp_path, **{how: ""})
    assert run(tmp_path, "0,1").returncode == 0
    assert sorted(made(tmp_path)) == sorted(map(str, stages(*FEW))), "made twice, or not at all"


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_while_it_trains_no_child_outlives_it_and_nothing_is_lost(tmp_path: Path, how: signal.Signals) -> None:
    ask(tmp_path, linger="")
    default = lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGTERM)]
    process = subprocess.Popen(
        command(tmp_path, "0,1"), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True, preexec_fn=default,  # noqa: PLW1509  # one thread
    )  # fmt: skip
    while not list(tmp_path.glob("outputs/test/runs/*/lingers")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(how)
    errors = process.communicate(timeout=300)[1]  # of a hang, not of slowness
    until = time.monotonic() + 300
    while alive_in_session(process.pid):  # the kernel ends the children of a killed parent, a moment later
        assert time.monotonic() < until, alive_in_session(process.pid)
        time.sleep(0.02)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert errors == "interrupted; finished stages are kept, and the next run resumes\n"
        assert list(tmp_path.glob("store/.work/ct-*/scratch/saved"))
    (tmp_path / "asked" / "linger").unlink()
    done = run(tmp_path, "0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    # A child that is stopped after it publishes a stage, and before it says so, leaves it out of the journal
    assert len(made(tmp_path)) == len(set(made(tmp_path))), "made twice"
    assert len(list(tmp_path.glob("store/*/*/made.json"))) == len(stages(*FEW))


def alive_in_session(session: int) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(maxsplit=2) for line in listed.splitlines())
    return [row[2] for row in rows if row[0] == str(session) and not row[1].startswith("Z")]


def test_a_training_that_wants_more_devices_than_there_are_is_rejected_at_once(tmp_path: Path) -> None:
    done = run(tmp_path, "0,1", *FOUR)
    assert done.returncode == 2 and not events(tmp_path, "started")
    assert done.stderr == (
        "compute.processes=4: a training takes one GPU per process, got 2 visible GPUs. "
        "Set compute.processes=2 or less, or make more GPUs visible (CUDA_VISIBLE_DEVICES).\n"
    )


def test_the_results_are_those_of_one_process(small_run: SmallRun, tmp_path: Path) -> None:
    """Real stages, of the text and the blocks of one process: two GPUs that seem to be there, and none."""
    for kind in ("corpus", "items", "ct_blocks", "sft_blocks"):
        shutil.copytree(small_run.folder / "store" / kind, tmp_path / "store" / kind)
    words = command(tmp_path, "0,1", child="pipeline.run.gpus")
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    theirs, alone = small_run_made(tmp_path), small_run_made(small_run.folder)
    assert theirs == {path: alone[path] for path in theirs}
    assert sorted(path.parts[1] for path in theirs) == ["base", "ct", "eval", "eval", "eval", "sft"]
    rows = (tmp_path / "outputs/test/results.csv").read_bytes().splitlines()
    assert len(rows) > 1 and set(rows) <= set(small_run.results.splitlines())
    used = {device for event in events(tmp_path, "piece_started") for device in event["devices"]}
    assert used == {"0", "1"}
