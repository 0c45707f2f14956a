"""The real thing, really small: the default experiment's stages on real text, through the entry point, in processes
of their own.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.small_run import ROOT, SmallRun, command, made, run

# Of a plan: without SFT after CT and merges, which find nothing here that SFT does not
FEW = ("merge=none", "eval.baselines=[base,ct,sft]")


def published(folder: Path) -> list[str]:
    journals = (folder / "outputs" / "test" / "runs").glob("*/journal.jsonl")
    events = [json.loads(line) for journal in journals for line in journal.read_text().splitlines()]
    return [event["key"] for event in events if event["event"] == "published"]


def test_it_ends_with_a_table_a_report_and_one_json_line(small_run: SmallRun) -> None:
    summary, keys = small_run.summary, published(small_run.folder)
    assert summary["stages_reused"] == 0 and summary["stages_run"] == len(set(keys)) == len(keys)
    rows = list(csv.DictReader(small_run.results.decode().splitlines()))
    assert list(rows[0]) == [
        "language",
        "task",
        "metric",
        "method",
        "ct_tokens",
        "seed",
        "value",
        "low",
        "high",
        "n",
        "chance",
        "trivial",
    ]
    assert {row["method"] for row in rows} == {"base", "sft", "ct", "ct_then_sft", "task_arithmetic", "ties_sv_1"}
    assert {row["task"] for row in rows} >= {
        "next_nya",
        "genre_en",
        "about_nya",
        "mean_nya",
        "bits_per_byte_nya",
        "bits_per_byte_en",
    }
    assert {row["ct_tokens"] for row in rows if row["method"] == "ct"} == {"2048", "4096"}
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)
    page = Path(str(summary["report"])).read_text()
    assert "<svg" in page or "data:image" in page
    assert "task_arithmetic" in small_run.printed or "task arithmetic" in small_run.printed


def test_a_second_run_runs_nothing(small_run: SmallRun) -> None:
    second, _ = run(small_run.folder)
    assert second["stages_run"] == 0 and second["stages_reused"] == small_run.summary["stages_run"]
    assert Path(second["results"]).read_bytes() == small_run.results


def test_a_report_is_drawn_anew_from_the_store_alone(small_run: SmallRun) -> None:
    folder = small_run.folder / "outputs" / "test"
    names = ("results.csv", "results.md", "claims.json", "report.html")
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        (folder / name).unlink()
    words = [sys.executable, "-m", "pipeline.cli", "report", str(folder)]
    subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_only_what_a_change_touches_runs_again(small_run: SmallRun) -> None:
    words = command(small_run.folder, "merge.methods.ties_sv_1.recipe.slack=2.0")
    words.insert(3, "plan")
    plan = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    waiting = {line.split()[0] for line in plan.splitlines() if line.endswith("to run") and not line[0].isdigit()}
    assert waiting == {"tune", "merge", "eval"}


def test_killed_in_training_and_raced_by_another_job_the_results_are_the_same(
    small_run: SmallRun, tmp_path: Path
) -> None:
    victim = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    other = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    training = "*/.work/*/scratch/checkpoint-*/complete"
    while not list(tmp_path.glob(training)) and victim.poll() is None and other.poll() is None:
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    os.kill(other.pid, signal.SIGKILL)
    victim.wait(), other.wait()
    assert list(tmp_path.glob("store/.work/*")), "nothing was under way when both were killed"
    racing = [
        subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait() for process in racing] == [0, 0]
    keys = published(tmp_path)
    assert len(keys) == len(set(keys)), "a stage was made twice"
    # in the store, not in the journal: a process may be killed after it publishes a stage and before it writes so
    assert len(list(tmp_path.glob("store/[a-z]*/*/stage.json"))) == small_run.summary["stages_run"]
    assert (tmp_path / "outputs/test/results.csv").read_bytes() == small_run.results


@pytest.mark.parametrize("launcher", [(), ("launcher=joblib", "hydra.launcher.n_jobs=2")], ids=["here", "joblib"])
def test_ctrl_c_in_training_ends_in_one_line_and_the_next_run_goes_on(
    small_run: SmallRun, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    shutil.copytree(small_run.folder / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "sft")
    process = subprocess.Popen(
        command(tmp_path, *FEW, *launcher), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not list(tmp_path.glob("store/.work/sft-*/scratch/checkpoint-*/complete")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    said, errors = process.communicate(timeout=900)  # of a hang, not of slowness
    assert process.returncode == 130, errors
    assert errors == "interrupted; finished stages are kept, and the next run resumes\n"
    assert "Traceback" not in said
    assert not alive_in_session(process.pid)
    saved = list(tmp_path.glob("store/.work/sft-*/scratch/checkpoint-*/complete"))
    assert saved or list(tmp_path.glob("store/sft/*")), "the training has neither saved nor ended"
    run(tmp_path, *FEW, *launcher)
    again, before = made(tmp_path, "sft"), made(small_run.folder, "sft")
    assert len(again) == 1 and again.items() <= before.items()


def test_processes_of_joblib_end_with_the_run_that_started_them(small_run: SmallRun, tmp_path: Path) -> None:
    """After SIGTERM, as `timeout` and service managers send it to one process, or after a kill."""
    shutil.copytree(small_run.folder / "store", tmp_path / "store")
    for kind in ("sft", "eval"):
        shutil.rmtree(tmp_path / "store" / kind)
    process = subprocess.Popen(
        command(tmp_path, "launcher=joblib", "hydra.launcher.n_jobs=2"), cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not list(tmp_path.glob("store/.work/sft-*/scratch/checkpoint-*/complete")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    assert process.wait() == -signal.SIGTERM
    end = time.monotonic() + 600  # of a hang, not of slowness
    while (alive := alive_in_session(process.pid)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive
    assert not list(tmp_path.glob("store/eval/*-ct-then-sft-*")), "they went on with their cells"


def alive_in_session(session: int) -> list[str]:
    """Processes that still run, of those that a command started."""
    listed = subprocess.run(["ps", "-eo", "sid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(maxsplit=2) for line in listed.splitlines())
    mine = [row for row in rows if row[0] == str(session) and not row[1].startswith("Z")]
    return [args for _, _, args in mine if not re.fullmatch(r"\[.*\]", args)]  # without memory: it is exiting


def test_a_language_of_ones_own(small_run: SmallRun, tmp_path: Path) -> None:
    """The README's example: own text, own instructions, own lm-eval tasks, a model from a folder."""
    example = ROOT / "examples" / "mine"
    model = next((small_run.folder / "store" / "base").glob("*/model"))
    more = [
        "language=mine", f"corpus.path={example}/text/*.txt", f"sft.path={example}/sft.jsonl",
        f"eval.include_path={example}/tasks", "model=folder", f"model.path={model}", "eval.families=[next]",
        "ct.tokens=2048",
    ]  # fmt: skip
    summary, _ = run(tmp_path, *more)
    with Path(str(summary["results"])).open() as file:
        rows = list(csv.DictReader(file))
    assert {"next_mine", "bits_per_byte_mine"} <= {row["task"] for row in rows if row["method"] == "ties_sv_1"}
    assert "greetings" in {row["task"] for row in rows}
