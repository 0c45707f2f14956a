"""A sweep as Slurm jobs: what is submitted (to a stand-in for Slurm), what a job makes, and what is told of it."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from submitit.helpers import DelayedSubmission

from common.errors import BadInput
from pipeline import sweep
from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.run import cluster, launch
from pipeline.run.cluster import schedule
from pipeline.run.cluster import slurm as slurm_module
from pipeline.run.cluster.job import ClusterJob, bind_gpus
from pipeline.run.display import RunView
from pipeline.run.run import report_failures
from pipeline.run_plan import RunPlan
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs, Stage
from pipeline.store import Store
from tests.pipeline import toy
from tests.pipeline.small import site

ROOT = Path(__file__).parents[2]


# --- submission, to a stand-in that keeps what it is given


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sbatch, squeue and srun on the PATH: sbatch keeps the scripts, squeue prints the file `queue`."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "queue").touch()
    scripts = {
        "sbatch": f"""\
n=$(ls {folder}/*.sh 2>/dev/null | wc -l)
cp "$1" {folder}/$((n+1)).sh
echo "Submitted batch job $((n+1))"
""",
        "squeue": f"cat {folder}/queue",
        "srun": "exit 1",
        "scontrol": "echo JobState=CANCELLED",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def options(script: Path) -> dict[str, str]:
    lines = (
        line.removeprefix("#SBATCH --").partition("=")
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH")
    )
    return {key: value for key, _, value in lines}


def small_sweep(tmp_path: Path) -> RunPlan:
    """The plan of the sweep whose store lies in the folder."""
    configs = sweep.expand(["experiment=test", f"store={tmp_path}/store"], multirun=True).configs
    return RunPlan(tuple(plan_cell(config, Inputs()) for config in configs))


def submit(tmp_path: Path, run: str, plan: RunPlan) -> list[str]:
    """Runs a sweep whose jobs vanish at once; the lines it says."""
    journal = Journal(tmp_path / run / "journal.jsonl")
    journal.path.parent.mkdir()
    view = RunView(plan, journal.path)
    wanted = site(tmp_path, "partition: gpu\nextra: {exclusive: true}\n")
    cluster.compute(wanted, plan, plan.stages, Executor(plan.store, plan.stages, journal))
    return view.new_lines()


def test_each_array_waits_for_the_jobs_that_make_what_it_reads(tmp_path: Path, slurm: Path) -> None:
    plan = small_sweep(tmp_path)
    lines = submit(tmp_path, "first", plan)
    assert lines[0].startswith("17 jobs submitted, 0 queued before")
    scripts = sorted(slurm.glob("*.sh"), key=lambda path: int(path.stem))
    wanted = [options(script) for script in scripts]
    assert "dependency" not in wanted[0] and wanted[1]["dependency"] == "afterany:1"
    assert all(
        int(job.partition("_")[0]) < number
        for number, job_options in enumerate(wanted, 1)
        for job in job_options.get("dependency", "afterany:0").split(":")[1:]
    )
    assert {job_options["partition"] for job_options in wanted} == {"gpu"}
    assert all("exclusive" in job_options and "requeue" in job_options for job_options in wanted)
    assert {job_options["signal"] for job_options in wanted} == {"B:USR2@180"}
    journal = Journal(tmp_path / "first" / "journal.jsonl")
    failed = journal.events("failed")
    assert len(failed) == 17 and len(journal.events("not_run")) == len(plan.stages) - 17
    assert all("ended as CANCELLED" in event["message"] and event["log"].endswith("_log.out") for event in failed)


def test_a_job_knows_how_the_site_starts_python(tmp_path: Path, slurm: Path) -> None:
    """A training on several nodes starts it on each, by srun."""
    python = "apptainer exec --nv image.sif python"
    plan, alone = small_sweep(tmp_path), tmp_path / "run"
    wanted = site(tmp_path, f"python: {python}\n")
    with slurm_module.submitting(plan.store):
        slurm_module.submit(wanted, plan.store, schedule.group_into_pieces(plan.stages)[:1], alone, {})
    script = (slurm / "1.sh").read_text()
    assert f"exec {python}" in script and f'export {launch.HOST_PATH}="$PATH"' in script
    assert script.index("export") < script.index(f"exec {python}")
    jobs = [DelayedSubmission.load(path).function for path in alone.rglob("*_submitted.pkl")]
    assert [job.python for job in jobs] == [python]


def test_what_is_queued_is_waited_for_and_not_submitted_again(tmp_path: Path, slurm: Path) -> None:
    plan = small_sweep(tmp_path)
    submit(tmp_path, "first", plan)
    in_queue = []
    for script in slurm.glob("*.sh"):
        wanted = options(script)
        last = int(wanted["array"].partition("-")[2].partition("%")[0]) if "array" in wanted else None
        ids = [script.stem] if last is None else [f"{script.stem}_{index}" for index in range(last + 1)]
        in_queue += [
            f"{id}|PENDING|Dependency|{wanted['job-name']}\n" for id in ids if id != "1"
        ]  # the first has been cancelled
    (slurm / "queue").write_text("".join(in_queue))
    with slurm_module.submitting(plan.store):
        jobs = slurm_module.jobs_of_store(plan.store, slurm_module.query_queue() or {})
    assert len(jobs) == 16
    again = schedule.group_into_pieces(plan.stages, plan.by_key.keys() - set(slurm_module.jobs_by_key(jobs)))
    assert [piece.stages[0].kind for piece in again] == ["corpus"]


def test_what_an_earlier_job_published_meanwhile_is_not_submitted(
    tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_sweep(tmp_path)
    corpus = next(stage for stage in plan.stages if stage.kind == "corpus")
    with plan.store.claim(corpus):  # after the plan looked it up as missing
        out = plan.store.work(corpus) / "out"
        out.mkdir(parents=True)
        plan.store.publish(corpus, out, {"seconds": 1.0, "amount": 1.0, "finished": ""})
    pieces: list[schedule.Piece] = []
    monkeypatch.setattr(slurm_module, "submit", lambda site, store, given, *_: pieces.extend(given) or [])
    submit(tmp_path, "first", plan)
    assert {key for piece in pieces for key in piece.keys} == plan.by_key.keys() - {corpus.key}


def test_nothing_is_submitted_where_slurm_does_not_answer(tmp_path: Path, slurm: Path) -> None:
    (slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(BadInput, match="does not answer"):
        submit(tmp_path, "first", small_sweep(tmp_path))
    assert not list(slurm.glob("*.sh"))


# --- inside a job


@pytest.fixture
def two_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterJob:
    """A job that makes two corpora of a small text, which do not need one another."""
    text = f"corpus.path={ROOT}/examples/mine/text/*.txt"
    given = ["experiment=test", "language=mine", text, f"store={tmp_path}"]
    configs = [sweep.expand([*given, f"corpus.seed={seed}"], False).configs[0] for seed in (0, 1)]
    cells = [plan_cell(config, Inputs()) for config in configs]
    plan = RunPlan(tuple(replace(cell, stages=cell.stages[:1]) for cell in cells))
    assert [stage.kind for stage in plan.stages] == ["corpus", "corpus"]
    plan.save(tmp_path)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return ClusterJob(tmp_path, "two", tuple(plan.by_key), 0.0, at_a_time=2)


def test_what_shares_a_job_is_made_in_processes_of_its_own(two_corpora: ClusterJob) -> None:
    two_corpora()
    published = two_corpora.journal.events("published")
    assert sorted(event["key"] for event in published) == sorted(two_corpora.keys)
    assert len({event["process"] for event in published} - {os.getpid()}) == 2


def test_each_process_of_a_job_has_a_gpu_to_itself(two_corpora: ClusterJob, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(
        "pipeline.run.cluster.job.subprocess.run",
        lambda *words, env, **more: (bound.append(env["CUDA_VISIBLE_DEVICES"]), time.sleep(0.1)),
    )
    two_corpora()
    assert sorted(bound) == ["4", "6"]


@pytest.mark.parametrize(
    ("given", "visible"),
    [
        ({"SLURM_JOB_GPUS": "2,3"}, "2,3"),
        ({"SLURM_STEP_GPUS": "1", "SLURM_JOB_GPUS": "0,1"}, "1"),
        ({"GPU_DEVICE_ORDINAL": "5"}, "5"),
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_JOB_GPUS": "3"}, "0"),  # Slurm's own: with cgroups they begin at 0
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_GPUS": "3"}, ""),
        ({"SLURM_JOB_GPUS": "2,3", "SLURM_JOB_NUM_NODES": "2"}, None),
        ({}, None),
    ],
)
def test_a_job_uses_the_gpus_that_slurm_gave_it(
    given: dict[str, str], visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "CUDA_VISIBLE_DEVICES",
        "SLURM_STEP_GPUS",
        "SLURM_JOB_GPUS",
        "GPU_DEVICE_ORDINAL",
        "SLURM_JOB_NUM_NODES",
    ):
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    bind_gpus()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


# --- what is told of jobs


def watched(
    root: Path, plan: tuple[Stage, ...], looks: list[dict[str, slurm_module.QueueEntry] | None]
) -> tuple[list[str], Journal]:
    """Watches one job that makes the whole plan, with these answers of Slurm; the last one goes on."""
    journal, store = Journal(root / "journal.jsonl"), Store(root)
    view = toy.view(store, plan, journal)
    job = slurm_module.Job("7", "toy", tuple(stage.key for stage in plan), str(root))
    answers = itertools.chain(looks, itertools.repeat({}))
    watch = slurm_module.Watch({"7": job}, {stage.key: stage for stage in plan}, store, journal)
    slurm_module.wait(watch, site(root), lambda: next(answers))
    return view.new_lines(), journal


def test_a_job_that_vanishes_is_named_with_its_log(tmp_path: Path, slurm: Path) -> None:
    plan = toy.plan()[:2]
    journal = Journal(tmp_path / "toy.jsonl")
    makes = toy.Makers().__getitem__
    executor = Executor(Store(tmp_path), plan, journal, maker=makes, assigned={plan[0].key})
    executor.compute(plan[:1])
    lines, journal = watched(tmp_path, plan, [{"7": slurm_module.QueueEntry("RUNNING", "None", "toy")}, None])
    assert [event["slug"] for event in journal.events("published")] == ["toy"]
    (failed,) = journal.events("failed")
    assert failed["message"] == "base toy failed: its job 7 ended as CANCELLED" and failed["log"] == str(
        tmp_path / "slurm" / "7_0_log.out"
    )
    assert "Slurm does not answer; asking again" in lines and "jobs: 1 running" in lines


def test_a_job_that_slurm_holds_back_is_told_of(tmp_path: Path, slurm: Path) -> None:
    lines, _ = watched(
        tmp_path, toy.plan()[:1], [{"7": slurm_module.QueueEntry("PENDING", "launch failed requeued held", "toy")}] * 3
    )
    assert len([line for line in lines if "is held" in line and "scontrol release 7" in line]) == 1


def test_the_end_names_what_failed_its_log_and_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "-m", "experiment=tiny", "ct.tokens=10k,40k", "corpus.path=my text.txt"]
    failed = {"message": "ct nya-10k-s0 failed: its job 7 ended as TIMEOUT", "log": "slurm/7_0_log.out"}
    absent = {"message": "eval nya-ct-10k-s0 was not run, as ct nya-10k-s0 is missing"}
    report_failures([failed, failed, absent], arguments)
    first, log, not_run, command = capsys.readouterr().err.splitlines()
    assert (first, log) == (failed["message"], "  log: slurm/7_0_log.out") and not_run.startswith("eval")
    assert command.endswith("-m pipeline run -m experiment=tiny ct.tokens=10k,40k 'corpus.path=my text.txt'")
