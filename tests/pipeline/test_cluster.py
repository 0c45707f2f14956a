"""A sweep as Slurm jobs: the cut into jobs, the site file, what is submitted (to a stand-in for Slurm), what a job makes, and what is told of it."""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy

from common.errors import BadInput
from pipeline import sweep
from pipeline.execute import Executor
from pipeline.kinds import KINDS
from pipeline.plan import Inputs, Stage, merged, plan_cell
from pipeline.run import cluster
from pipeline.run.cluster import queue, schedule, watch
from pipeline.run.cluster import site as sites
from pipeline.run.cluster.job import ClusterJob, OwnStages, make, save_plan
from pipeline.run.console import Estimates, Journal, Progress
from pipeline.run.local import tell_failures
from pipeline.store import Store

ROOT = Path(__file__).parents[2]
EXAMPLE = "train: {gpus: 0, cpus: 2, memory_gb: 4, hours: 1}\nevaluate: {gpus: 0, cpus: 1, memory_gb: 2, hours: 1}\ndata: {gpus: 0, cpus: 1, memory_gb: 2, hours: 1}\n"


def stages(*overrides: str) -> tuple[Stage, ...]:
    """The plan of a small sweep."""
    return merged(
        plan_cell(config, Inputs()) for config in sweep.expand(["experiment=test", *overrides], multirun=True).configs
    )


def site(folder: Path, more: str = "") -> sites.Site:
    (folder / "site.yaml").write_text(EXAMPLE + "poll_seconds: 0.01\nsettle_seconds: 0\n" + more)
    return sites.read(str(folder / "site.yaml"))


# --- the cut into jobs


@pytest.mark.parametrize(
    "overrides", [[], ["seed=0,1", "ct.tokens=1024,2048,4096"], ["model=tiny", "merge.write=true"]]
)
def test_every_stage_is_in_one_job_after_all_that_it_needs(overrides: list[str]) -> None:
    plan = stages(*overrides)
    tasks = schedule.cut(plan)
    assert sorted(key for task in tasks for key in task.keys) == sorted(stage.key for stage in plan)
    made: set[str] = set()
    for task in tasks:
        assert task.needs <= made, f"{task.name} comes before what it needs"
        for stage in task.stages:
            assert {parent.key for parent in stage.parents.values() if not parent.given} <= made | task.keys
            made.add(stage.key)


def test_every_kind_of_stage_has_a_class_of_jobs() -> None:
    assert set(schedule.WORK) == set(KINDS)


def test_a_trajectory_is_one_job_and_ct_then_sft_comes_after_it() -> None:
    tasks = schedule.cut(stages("seed=0,1"))
    trajectories = [task for task in tasks if task.stages[0].kind == "ct"]
    assert [[stage.settings["tokens"] for stage in task.stages] for task in trajectories] == [
        [2048, 4096],
        [2048, 4096],
    ]
    after = [task for task in tasks if "after" in task.stages[0].slug]
    assert len(after) == 4 and all(any(task.needs & one.keys for one in trajectories) for task in after)


def test_no_job_both_trains_and_scores_and_merges_are_one_wide_array() -> None:
    tasks = schedule.cut(stages())
    assert all(len({schedule.WORK[stage.kind] for stage in task.stages}) == 1 for task in tasks)
    widest = max(schedule.arrays(tasks), key=len)
    assert [[stage.kind for stage in task.stages] for task in widest] == [["tune", "merge", "eval"]] * 4


def test_elements_of_an_array_wait_for_the_same_jobs_all_of_them_earlier() -> None:
    earlier: set[str] = set()
    for array in schedule.arrays(schedule.cut(stages("seed=0,1,2"))):
        assert all(task.needs <= earlier for task in array)
        earlier |= {key for task in array for key in task.keys}


def test_evaluations_may_share_a_job_and_are_told_apart_inside() -> None:
    widest = max(schedule.arrays(schedule.cut(stages())), key=len)
    bundles = schedule.bundles(widest, 3)
    assert [len(schedule.cut(bundle.stages)) for bundle in bundles] == [3, 1]
    assert frozenset().union(*(bundle.keys for bundle in bundles)) == frozenset().union(*(task.keys for task in widest))


def test_what_is_done_or_queued_is_not_cut_into_a_job() -> None:
    plan = stages()
    small, large = (stage for stage in plan if stage.kind == "ct")
    (task,) = schedule.cut(plan, {large.key})
    assert task.stages == (large,) and small.key in task.needs


def test_a_job_has_the_nodes_of_its_training() -> None:
    corpus = Stage("corpus", "toy", {})
    ct = Stage("ct", "toy", {"tokens": 1}, {"blocks": corpus}, {"compute": {"nodes": 2}})
    assert [task.nodes for task in schedule.cut([corpus, ct, Stage("eval", "toy", {}, {"checkpoint": ct})])] == [
        1,
        2,
        1,
    ]


# --- the site file


def test_a_class_of_jobs_wins_over_the_top_of_the_file(tmp_path: Path) -> None:
    found = site(tmp_path, "partition: gpu\naccount: project\n")
    assert found.resources("data").partition == "gpu"
    (tmp_path / "site.yaml").write_text(EXAMPLE.replace("data: {", "data: {partition: cpu, ") + "partition: gpu\n")
    assert sites.read(str(tmp_path / "site.yaml")).resources("data").partition == "cpu"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("partitions: gpu\n", "partitions: unknown key; did you mean partition?"),
        ("poll_seconds: soon\n", "poll_seconds=soon"),
        ("warning_seconds: 0\n", "warning_seconds=0"),
        ("[", "not YAML"),
    ],
)
def test_a_wrong_site_is_refused_in_one_line(tmp_path: Path, more: str, said: str) -> None:
    (tmp_path / "site.yaml").write_text(EXAMPLE + more)
    with pytest.raises(BadInput, match="site.yaml") as refused:
        sites.read(str(tmp_path / "site.yaml"))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_shipped_site_is_read_by_its_name() -> None:
    assert sites.read("slurm").train.hours > 0


@pytest.mark.parametrize("override", ["site=slurm", "launcher=joblib"])
def test_launcher_and_site_are_not_settings_of_the_experiment(override: str) -> None:
    if override.startswith("site"):
        with pytest.raises(BadInput, match="only launcher=slurm reads a site"):
            sweep.expand(["experiment=test", override], multirun=True)
    else:
        assert sweep.expand(["experiment=test", override], multirun=True).launcher == "joblib"
    assert sweep.expand(["experiment=test", "launcher=slurm", "site=x.yaml"], multirun=True).site == "x.yaml"


# --- submission, to a stand-in that keeps what it is given


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sbatch, squeue and srun on the PATH: sbatch keeps the scripts, squeue prints the file `queue`."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "queue").touch()
    scripts = {
        "sbatch": f'n=$(ls {folder}/*.sh 2>/dev/null | wc -l); cp "$1" {folder}/$((n+1)).sh; echo "Submitted batch job $((n+1))"',
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


def submit(tmp_path: Path, run: str, config: object, plan: tuple[Stage, ...]) -> list[str]:
    """Runs a sweep whose jobs vanish at once; the lines it says."""
    store, journal, lines = Store(tmp_path / "store"), Journal(tmp_path / run / "journal.jsonl"), []
    journal.path.parent.mkdir()
    here = Executor(store, plan, journal, say=lines.append)
    cluster.run(
        site(tmp_path, "partition: gpu\nextra: {exclusive: true}\n"), config, plan, plan, here, journal, lines.append
    )  # type: ignore[arg-type]
    return lines


def test_each_array_waits_for_the_jobs_that_make_what_it_reads(tmp_path: Path, slurm: Path) -> None:
    plan, config = (
        stages(f"store={tmp_path}/store"),
        sweep.expand(["experiment=test", f"store={tmp_path}/store"], True).configs[0],
    )
    lines = submit(tmp_path, "first", config, plan)
    assert lines[0].startswith("17 jobs submitted, 0 queued before")
    scripts = sorted(slurm.glob("*.sh"), key=lambda path: int(path.stem))
    wanted = [options(script) for script in scripts]
    assert "dependency" not in wanted[0] and wanted[1]["dependency"] == "afterany:1"
    assert all(
        int(job.partition("_")[0]) < number
        for number, one in enumerate(wanted, 1)
        for job in one.get("dependency", "afterany:0").split(":")[1:]
    )
    assert {one["partition"] for one in wanted} == {"gpu"} and all(
        "exclusive" in one and "requeue" in one for one in wanted
    )
    assert {one["signal"] for one in wanted} == {"B:USR2@180"}
    journal = Journal(tmp_path / "first" / "journal.jsonl")
    failed = journal.events("failed")
    assert len(failed) == 17 and len(journal.events("not_run")) == len(plan) - 17
    assert all("ended as CANCELLED" in event["message"] and event["log"].endswith("_log.out") for event in failed)


def test_what_is_queued_is_waited_for_and_not_submitted_again(tmp_path: Path, slurm: Path) -> None:
    plan, config = (
        stages(f"store={tmp_path}/store"),
        sweep.expand(["experiment=test", f"store={tmp_path}/store"], True).configs[0],
    )
    submit(tmp_path, "first", config, plan)
    queued = []
    for script in slurm.glob("*.sh"):
        wanted = options(script)
        last = int(wanted["array"].partition("-")[2].partition("%")[0]) if "array" in wanted else None
        ids = [script.stem] if last is None else [f"{script.stem}_{index}" for index in range(last + 1)]
        queued += [
            f"{id}|PENDING|Dependency|{wanted['job-name']}\n" for id in ids if id != "1"
        ]  # the first has been cancelled
    (slurm / "queue").write_text("".join(queued))
    with queue.submitting(store := Store(tmp_path / "store")):
        found = queue.ours(store, queue.look() or {})
    assert len(found) == 16
    again = schedule.cut(plan, {stage.key for stage in plan} - set(queue.making(found)))
    assert [task.stages[0].kind for task in again] == ["corpus"]


def test_nothing_is_submitted_where_slurm_does_not_answer(tmp_path: Path, slurm: Path) -> None:
    (slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(BadInput, match="does not answer"):
        submit(
            tmp_path, "first", sweep.expand(["experiment=test", f"store={tmp_path}/store"], True).configs[0], stages()
        )
    assert not list(slurm.glob("*.sh"))


# --- inside a job


def worker(root: Path, plan: tuple[Stage, ...], own: tuple[Stage, ...], makers: object = None) -> OwnStages:
    keys, journal = {stage.key for stage in own}, Journal(root / "journal.jsonl")
    maker = (makers or toy.Makers()).__getitem__  # type: ignore[attr-defined]
    return OwnStages(Store(root), plan, journal, maker=maker, say=lambda line: None, own=keys)


def happened(root: Path, event: str) -> list[str]:
    return [one["slug"] for one in Journal(root / "journal.jsonl").events(event)]


def test_a_job_makes_its_own_stages_only(tmp_path: Path) -> None:
    plan = toy.plan()
    make(worker(tmp_path, plan, plan[2:4]), plan[2:4])
    assert happened(tmp_path, "started") == [] and happened(tmp_path, "not_run") == ["toy-20", "toy-40"]
    make(worker(tmp_path, plan, plan[:2]), plan[:2])
    make(worker(tmp_path, plan, plan[2:4]), plan[2:4])
    assert happened(tmp_path, "published") == ["toy", "toy", "toy-20", "toy-40"]


def test_what_fails_takes_down_only_what_needs_it(tmp_path: Path) -> None:
    def fails(job: object) -> None:
        raise ZeroDivisionError("of all things")

    corpus, other = Stage("corpus", "toy", {"words": 1}), Stage("corpus", "other", {"words": 2})
    items = [Stage("items", f"of-{parent.slug}", {}, {"corpus": parent}) for parent in (corpus, other)]
    plan = (corpus, *items, other)
    makers = {"corpus": lambda job: fails(job) if job.stage.slug == "toy" else None, "items": lambda job: None}
    make(worker(tmp_path, plan, plan, makers), (corpus, other, *items))
    assert happened(tmp_path, "failed") == ["toy"] and happened(tmp_path, "published") == ["other", "of-other"]
    assert [one["message"] for one in Journal(tmp_path / "journal.jsonl").events("not_run")] == [
        "items of-toy was not run, as there is no corpus toy"
    ]


def test_a_job_never_waits_for_another_s_claim(tmp_path: Path) -> None:
    corpus = toy.plan()[0]
    with Store(tmp_path).claim(corpus):
        make(worker(tmp_path, (corpus,), (corpus,)), (corpus,))
    assert happened(tmp_path, "not_run") == ["toy"] and happened(tmp_path, "started") == []


def test_a_damaged_parent_is_not_made_anew_by_whoever_reads_it(tmp_path: Path) -> None:
    plan = toy.plan()
    make(worker(tmp_path, plan, plan[:2]), plan[:2])
    (next((tmp_path / "base").iterdir()) / "model" / "words").write_text("no longer what it was")
    make(worker(tmp_path, plan, plan[2:3]), plan[2:3])
    assert (
        happened(tmp_path, "not_run") == ["toy-20"]
        and "moved aside" in Journal(tmp_path / "journal.jsonl").events("not_run")[0]["message"]
    )


@pytest.fixture
def two_corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterJob:
    """A job that makes two corpora of a small text, which do not need one another."""
    text = f"corpus.path={ROOT}/examples/mine/text/*.txt"
    cells = [
        sweep.expand(
            ["experiment=test", "language=mine", text, f"corpus.seed={seed}", f"store={tmp_path}"], False
        ).configs[0]
        for seed in (0, 1)
    ]
    plan = tuple(next(stage for stage in plan_cell(cell, Inputs()).stages if stage.kind == "corpus") for cell in cells)
    save_plan(tmp_path, cells[0], plan)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return ClusterJob(tmp_path, "two", tuple(stage.key for stage in plan), 0.0, at_a_time=2)


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


# --- what is told of jobs


def watched(
    root: Path, plan: tuple[Stage, ...], looks: list[dict[str, queue.Seen] | None]
) -> tuple[list[str], Journal]:
    """Watches one job that makes the whole plan, with these answers of Slurm; the last one goes on."""
    lines: list[str] = []
    journal, store = Journal(root / "journal.jsonl"), Store(root)
    progress = Progress(plan, Estimates(store, {}), lines.append)
    job = queue.Job("7", "toy", tuple(stage.key for stage in plan), str(root))
    answers = itertools.chain(looks, itertools.repeat({}))
    watch.until_ended(watch.Watch([job], plan, store, journal, progress), site(root), lambda: next(answers))
    return lines, journal


def test_a_job_that_vanishes_is_named_with_its_log(tmp_path: Path, slurm: Path) -> None:
    plan = toy.plan()[:2]
    make(
        OwnStages(
            Store(tmp_path),
            plan,
            Journal(tmp_path / "toy.jsonl"),
            maker=toy.Makers().__getitem__,
            say=lambda line: None,
            own={plan[0].key},
        ),
        plan[:1],
    )
    lines, journal = watched(tmp_path, plan, [{"7": queue.Seen("RUNNING", "None", "toy")}, None])
    assert [event["slug"] for event in journal.events("published")] == ["toy"]
    (failed,) = journal.events("failed")
    assert failed["message"] == "base toy failed: its job 7 ended as CANCELLED" and failed["log"] == str(
        tmp_path / "slurm" / "7_0_log.out"
    )
    assert "Slurm does not answer; asking again" in lines and "jobs: 1 running" in lines


def test_a_job_that_slurm_holds_back_is_told_of(tmp_path: Path, slurm: Path) -> None:
    lines, _ = watched(
        tmp_path, toy.plan()[:1], [{"7": queue.Seen("PENDING", "launch failed requeued held", "toy")}] * 3
    )
    assert len([line for line in lines if "is held" in line and "scontrol release 7" in line]) == 1


def test_the_end_names_what_failed_its_log_and_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["pipeline", "run", "-m", "experiment=tiny", "ct.tokens=10k,40k", "corpus.path=my text.txt"]
    )
    failed = {"message": "ct nya-10k-s0 failed: its job 7 ended as TIMEOUT", "log": "slurm/7_0_log.out"}
    tell_failures([failed, failed], [{"message": "eval nya-ct-10k-s0 was not run, as there is no ct nya-10k-s0"}])
    first, log, not_run, command = capsys.readouterr().err.splitlines()
    assert (first, log) == (failed["message"], "  log: slurm/7_0_log.out") and not_run.startswith("eval")
    assert command.endswith("-m pipeline run -m experiment=tiny ct.tokens=10k,40k 'corpus.path=my text.txt'")


def test_a_line_that_is_not_whole_yet_is_read_later(tmp_path: Path) -> None:
    tail = watch.Tail(tmp_path / "j.jsonl")
    assert tail.events() == []
    with tail.path.open("a") as file:
        file.write('{"event": "started"}\n{"event": ')
        file.flush()
        assert tail.events() == [{"event": "started"}]
        file.write('"published"}\n')
    assert tail.events() == [{"event": "published"}]
