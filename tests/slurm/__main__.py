"""`make test-slurm`: a small sweep through a real Slurm, with everything that can happen to it, ends with the results
of a local run.

Two nodes on this host, CPU only. The command that submits is killed; a training is preempted; a job is cancelled; one
training runs on two nodes.
"""

from __future__ import annotations

import atexit
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.run.cluster import slurm as slurm_queue
from pipeline.store import Store
from tests.slurm.cluster import Slurm, install, unavailable, wait

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).with_name("site.yaml")
SWEEP = (
    "-m", "experiment=test", "model=tiny", "ct.tokens=8192,41216", "ct.schedule_tokens=41216", "ct.batch_tokens=256",
    "ct.save_every_tokens=2048", "sft.batch_tokens=256", "~merge.methods.task_arithmetic", "eval.families=[next]",
    "eval.baselines=[ct,ct_then_sft]", "compute.threads=1",
)  # fmt: skip
TWO_NODES = (
    "experiment=test", "model=tiny", "name=two_nodes", "seed=1", "ct.tokens=8192", "ct.schedule_tokens=8192",
    "ct.batch_tokens=256", "merge=none", "eval.families=[next]", "eval.baselines=[ct]",
    "compute.threads=1", "compute.strategy=ddp",
)  # fmt: skip
STARTED = time.monotonic()
TRAINED = ("ct", "sft")


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


class Command:
    """A `python -m pipeline run` in a process of its own, with what it has said so far."""

    def __init__(self, folder: Path, name: str, *overrides: str) -> None:
        self.said_in = folder / f"{name}-{time.time_ns()}.txt"
        words = [
            sys.executable,
            "-m",
            "pipeline",
            "run",
            *overrides,
            f"store={folder / name / 'store'}",
            f"outputs={folder / name / 'outputs'}",
        ]
        with self.said_in.open("w") as file:
            self.process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        atexit.register(self.process.kill)

    @property
    def said(self) -> str:
        return self.said_in.read_text()

    def until(self, holds: Callable[[], object], what: str, seconds: float = 600) -> None:
        """Waits for something to happen while the command runs."""
        wait(lambda: holds() or self.process.poll() is not None, seconds, what)
        assert holds(), f"the command ended before {what}:\n{self.said}"

    def end(self, code: int = 0, seconds: float = 600) -> str:
        """Waits for the command to end with this exit code; what it has said."""
        try:
            assert self.process.wait(seconds) == code, f"exit code {self.process.returncode}, not {code}:\n{self.said}"
        finally:
            self.process.kill()
        return self.said


def weights(store: Path) -> dict[str, str]:
    """The checksum of every trained checkpoint, by stage."""
    records = [json.loads(path.read_text()) for kind in TRAINED for path in (store / kind).glob("*/stage.json")]
    return {
        f"{record['kind']} {record['slug']}": record["files"]["model/model.safetensors"]["sha256"] for record in records
    }


def same(one: Path, other: Path, name: str) -> None:
    """Asserts that two runs left the same weights and the same results, to the last bit."""
    trained = weights(one / "store")
    assert trained and trained == weights(other / "store"), f"weights differ:\n{trained}\n{weights(other / 'store')}"
    results = [(folder / "outputs" / name / "results.csv").read_bytes() for folder in (one, other)]
    assert results[0] == results[1], f"results differ:\n{results[0].decode()}\n{results[1].decode()}"
    say(
        f"{name}: {len(trained)} checkpoints have the checksums of the local run, "
        "and results.csv is the same, byte for byte"
    )


def events(folder: Path, *names: str) -> list[dict]:
    """What jobs wrote in their journals, over all runs."""
    journals = [path for path in folder.glob("outputs/*/runs/*/*.jsonl") if path.name != "journal.jsonl"]
    lines = [json.loads(line) for path in journals for line in path.read_bytes().splitlines()]
    return [{**event} for event in lines if event["event"] in names]


def sweep(slurm: Slurm, folder: Path) -> None:
    """The sweep: its command is killed and started again, its CT training is preempted, one of its jobs is cancelled
    and tried again.
    """
    there = folder / "slurm"
    on_slurm = (*SWEEP, "launcher=slurm", f"site={SITE}")
    first = Command(folder, "slurm", *on_slurm)
    first.until(lambda: "starts in job" in first.said, "the first stage")
    first.process.kill()
    first.process.wait()
    submitted = len(slurm.queue())
    second = Command(folder, "slurm", *on_slurm)
    second.until(lambda: "queued before" in second.said, "its first line")
    assert "0 jobs submitted" in second.said, second.said
    say(
        f"the submitting command was killed (-9) with {submitted} jobs in the queue; "
        "the same command found them and submitted none again"
    )

    logs = preempt(slurm, there, second)
    job = cancel(slurm, there, second)
    said = second.end(code=1)
    report = said[said.index(f"its job {job} ended as CANCELLED") :]
    assert "log: " in report and f"{job}_0_log.out" in report and "to try again" in report, said
    retry = next(line for line in said.splitlines() if line.startswith("to try again"))
    absent = said.count("was not run, as sft en-after") // 2  # once when it happens, once at the end
    say(
        f"job {job} was cancelled: the sweep finished the rest, named it with its log and {absent} stage "
        "that hangs on it, and gave the command:"
    )
    say(f"  {retry.partition(': ')[2]}")
    third = Command(folder, "slurm", *on_slurm).end()
    assert f'"stages_run": {absent + 1}' in third, third
    say(f"that command made what was missing, {absent + 1} stages, and ended with 0")
    log = "".join(path.read_text() for path in (there / "store" / "ct").glob("*41216*/log.jsonl"))
    assert logs and log.startswith(logs), f"the training did not go on from where it was preempted:\n{logs}\n{log}"
    same(folder / "local", there, "test")


def preempt(slurm: Slurm, there: Path, command: Command) -> str:
    """Lets a job of higher priority take the node of the CT training, as soon as it has saved once.

    What it had logged before it was stopped.
    """
    begun = lambda: [
        event["key"] for event in events(there, "started") if event["kind"] == "ct" and "41216" in event["slug"]
    ]
    saved = lambda: [
        path for key in begun() for path in (there / "store" / ".work").glob(f"ct-{key}/scratch/checkpoint-*/complete")
    ]
    command.until(saved, "a checkpoint of the CT training")
    (training,) = (
        job
        for job in slurm_queue.jobs_of_store(Store(there / "store"), slurm_queue.query_queue() or {})
        if begun()[0] in job.keys
    )
    node = slurm.command("squeue", "--noheader", f"--jobs={training.id}", "--format=%N")
    urgent = slurm.command(
        "sbatch",
        "--parsable",
        "--partition=high",
        f"--nodelist={node}",
        "--exclusive",
        f"--output={there}/urgent.out",
        "--wrap",
        "sleep 1",
    )
    command.until(lambda: events(there, "requeued"), "the training to save and be queued again", 120)
    steps = sorted(int(path.parent.name.rpartition("-")[2]) for path in saved())
    log = next((there / "store" / ".work").glob(f"ct-{begun()[0]}/scratch/log.jsonl")).read_text()
    assert steps and steps[-1] < 161, f"the training was over before it could be preempted: {steps}"
    say(
        f"job {training.id} (CT) was preempted on {node} by job {urgent} of the partition `high`: "
        f"it saved at step {steps[-1]} of 161 and was queued again"
    )
    command.until(lambda: len(begun()) == 2, "the training to go on")
    return log


def cancel(slurm: Slurm, there: Path, command: Command) -> str:
    """Cancels the CT-then-SFT training at the larger budget while it runs; its job's id."""
    running = lambda: [
        event["key"] for event in events(there, "started") if event["slug"].startswith("en-after-nya-41216")
    ]
    command.until(running, "the CT-then-SFT training")
    (job,) = (
        job
        for job in slurm_queue.jobs_of_store(Store(there / "store"), slurm_queue.query_queue() or {})
        if running()[0] in job.keys
    )
    slurm.command("scancel", job.id)
    return job.id


def two_nodes(folder: Path) -> None:
    """One DDP training on two nodes, a process each, against two processes of this host."""
    Command(folder, "local", *TWO_NODES, "compute.processes=2", "compute.nodes=1").end()
    Command(
        folder, "slurm", *TWO_NODES, "compute.processes=1", "compute.nodes=2", "launcher=slurm", f"site={SITE}"
    ).end()
    (record,) = (folder / "slurm" / "store" / "ct").glob("*-s1-*/stage.json")
    launched = json.loads(record.read_text())["launched"]
    assert launched["world_size"] == 2, launched
    say(f"a CT training ran on two nodes by srun and torchrun: {launched}")
    same(folder / "local", folder / "slurm", "two_nodes")


def main() -> int:
    install()
    if reason := unavailable():
        print(f"test-slurm was not run: {reason}. Nothing was tested.")
        return 0
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}")
    )  # so that Slurm is stopped
    folder = Path(tempfile.mkdtemp(prefix="slackmerge-slurm-"))
    folder.chmod(0o755)  # munged wants everybody to reach its socket
    say(f"the local run, to compare with; everything lies in {folder}")
    Command(folder, "local", *SWEEP).end()
    with Slurm(folder / "cluster", cpus=1) as slurm:
        say(f"a real Slurm runs: {slurm.command('sinfo', '--version')}, nodes n1 and n2 on this host, CPU only")
        sweep(slurm, folder)
        two_nodes(folder)
    say(
        "Slurm was stopped. Passed: a sweep through Slurm, killed, preempted, cancelled and tried again, "
        "and a training on two nodes, equal to local runs"
    )
    subprocess.run(["rm", "-rf", str(folder)], check=True, timeout=60)
    return 0


if __name__ == "__main__":
    sys.exit(main())
