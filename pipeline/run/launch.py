"""The start of a training: in this process, or under torchrun, on one node or many.

It is the same trainer, whatever the launch.

A child gets its arguments as a file, prints its log as JSON lines and leaves its result as a file: exit codes do not
come through torchrun and srun.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import BadInput, Interrupted
from common.processes import die_with_parent
from pipeline import interruption
from pipeline.cost.hardware import training_mfu
from pipeline.execute import Job
from pipeline.stages.stage import CALIBRATION, in_order
from train.__main__ import RESULT_FILE, STOP_FILE
from train.dev_text import DevEvaluation
from train.performance import Performance
from train.settings import Compute, TrainingSettings

JOB_FILE, OUTPUT_FILE = "job.json", "output.log"
AS_CHILD = (
    "SLACKMERGE_CHILD"  # 1: every training runs in a child, as this process's signals belong to the cluster's job
)
RENDEZVOUS = "SLACKMERGE_RENDEZVOUS"  # host at which the nodes of a training meet; this one where it is not set
# Of a site whose `python` is not the one that submits: the command that starts Python on a host, as its shell reads it,
# and the PATH and LD_LIBRARY_PATH of the host, as a container has its own.
PYTHON, HOST_PATH, HOST_LIBRARIES = "SLACKMERGE_PYTHON", "SLACKMERGE_HOST_PATH", "SLACKMERGE_HOST_LIBRARIES"
# No such signal may end torchrun or srun's shell: the trainings themselves answer to them, and torchrun would give
# them 30 s to save.
IGNORE_SIGNALS = ("sh", "-c", 'trap "" USR2 TERM INT; exec "$@"', "sh")

_running: list[tuple[subprocess.Popen[str], Path]] = []  # the child that trains at the moment, and its stop file


def train(
    job: Job, model: Path, blocks: Path, settings: TrainingSettings, resume_state: Path | None = None
) -> dict[str, Any]:
    """Train `model` on `blocks` as `train.trainer.train` does, and return what it verified: world size, wrapper
    class, ZeRO stage.

    Puts this and what was measured into `job.facts`, and a summary into `job.note`.

    Raises BadInput; Interrupted if a child was asked to stop and has saved; RuntimeError where one crashed, with
    the place of its output.
    """
    compute = job.options.compute
    facts = _train(job, compute, model, blocks, settings, resume_state)
    values = facts.pop("performance")
    job.facts["launched"] = facts
    if values:
        measured = Performance(**values)
        reached = training_mfu(measured, job.out / "model" / "config.json", settings, settings.precision)
        measured = replace(measured, mfu=reached)
        job.facts["performance"] = asdict(measured)
        job.note = summary(measured)
    return facts


def summary(measured: Performance) -> str:
    """Format a training's speed and memory for the console."""
    reached = "" if measured.mfu is None else f", MFU {measured.mfu:.1%}"
    per_device = "" if measured.devices == 1 else f" on each of {measured.devices} devices"
    speed = f"{measured.tokens_per_second_per_device:,.0f} tokens/s{per_device}"
    return f": {speed}{reached}, peak memory {measured.peak_memory_bytes / 2**30:,.1f} GiB"


def _train(
    job: Job, compute: Compute, model: Path, blocks: Path, settings: TrainingSettings, resume_state: Path | None
) -> dict[str, Any]:
    """Train in this process or in children; returns what `train.trainer.train` does."""
    watched, calibration = watched_text(job), job.folders.get(CALIBRATION)
    if compute.strategy == "none" and os.environ.get(AS_CHILD) != "1":
        from train import trainer

        with interruption.deferred(partial(job.emit, "saving")):
            return trainer.train(
                model,
                blocks,
                settings,
                job.out,
                work=job.work,
                save_every_tokens=job.options.save_every_tokens,
                resume_state=resume_state,
                compute=compute,
                on_log=lambda record: job.emit("log", **record),
                should_stop=interruption.requested,
                watched=watched,
                calibration_dir=calibration,
            )
    arguments = {
        "model": str(model.absolute()),
        "blocks": str(blocks.absolute()),
        "settings": settings.model_dump(),
        "out": str(job.out.absolute()),
        "work": str(job.work.absolute()),
        "save_every_tokens": job.options.save_every_tokens,
        "resume_state": str(resume_state.absolute()) if resume_state else None,
        "compute": compute.model_dump(),
        "watched": asdict(watched) if watched else None,
        "calibration": str(calibration.absolute()) if calibration else None,
    }
    file = job.work.absolute() / JOB_FILE
    for left_behind in (RESULT_FILE, STOP_FILE):
        file.with_name(left_behind).unlink(missing_ok=True)
    file.write_text(json.dumps(arguments, indent=1) + "\n", encoding="utf-8")
    output = job.work.parent.absolute() / OUTPUT_FILE
    stop = file.with_name(STOP_FILE)

    def save_and_end() -> None:
        stop.touch()
        job.emit("saving")

    with interruption.deferred(save_and_end):
        code = _run(job, command(compute, file), output, stop)
        return _result(file.with_name(RESULT_FILE), code, output)


def watched_text(job: Job) -> DevEvaluation | None:
    """Return the held-out text that a training is measured on, where its options ask for that."""
    every, languages = job.options.dev_every_tokens, job.options.dev_languages
    if every is None:
        return None
    corpora = (stage for stage in in_order([job.stage]) if stage.kind == "corpus")
    # a base that was trained from scratch has a corpus too, which may be of another language
    corpus = next(stage for stage in corpora if stage.settings.language == languages[0])
    return DevEvaluation(str(job.materialize(corpus).absolute()), languages, every)


def command(compute: Compute, file: Path) -> list[str]:
    """Return the command line of a training in a child."""
    training = ["-m", "train", str(file)]
    if compute.strategy == "none":
        return [sys.executable, *training]
    torchrun = [
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={compute.processes}",
        "--signals-to-handle=SIGQUIT",
    ]
    if compute.nodes == 1:
        return [*IGNORE_SIGNALS, sys.executable, *torchrun, "--standalone", *training]
    host = os.environ.get(RENDEZVOUS) or socket.gethostname()
    meeting = [
        f"--nnodes={compute.nodes}",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint={host}:{_free_port()}",
        f"--rdzv_id={secrets.token_hex(8)}",
    ]
    return [
        "srun",
        f"--nodes={compute.nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=0",
        *_python_on_hosts(),
        *torchrun,
        *meeting,
        *training,
    ]


def _python_on_hosts() -> list[str]:
    """Return the command with which srun starts Python on its hosts: the site's, maybe in a container, else this
    one's path.
    """
    python = os.environ.get(PYTHON)
    if not python:
        return [*IGNORE_SIGNALS, sys.executable]
    of_host = [
        f"{name}=${variable}; export {name}"
        for name, variable in (("PATH", HOST_PATH), ("LD_LIBRARY_PATH", HOST_LIBRARIES))
        if variable in os.environ
    ]
    return ["sh", "-c", "; ".join(['trap "" USR2 TERM INT', *of_host, f'exec {python} "$@"']), "sh"]


def interrupt(signum: int) -> bool:
    """Ask the running training to save and end, and wait until it has; return False if there is none.

    May be called in a signal handler.
    """
    for process, stop in _running:
        stop.touch()
        if process.args[0] == "srun":  # type: ignore[index]
            process.send_signal(signum)  # srun passes it on to every node: a shared file system may show the file late
        _wait(process)
        return True
    return False


def _run(job: Job, arguments: list[str], output: Path, stop: Path) -> int:
    """Return the exit code of a child, whose log lines go to the job and whose other output goes to a file."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))}
    with output.open("a", encoding="utf-8") as sink:
        sink.write(f"$ {' '.join(arguments)}\n")
        sink.flush()
        process = subprocess.Popen(  # before exec: two system calls, safe next to other threads
            arguments, stdout=subprocess.PIPE, stderr=sink, text=True, errors="replace", env=environment,
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509
        )  # fmt: skip
        _running.append((process, stop))
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"tokens"'):
                    job.emit("log", **json.loads(line))
                else:
                    sink.write(line)
                    sink.flush()
            return _wait(process)
        finally:
            _running.clear()
            if process.poll() is None:  # an exception of ours, such as a second Ctrl-C
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[str]) -> int:
    """Return the child's exit code.

    By polling: a signal handler may wait for the child while the code that it interrupted waits for it too.
    """
    while (code := process.poll()) is None:
        time.sleep(0.05)
    return code


def _result(file: Path, code: int, output: Path) -> dict[str, Any]:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        result = {}
    if "refused" in result:
        raise BadInput(result["refused"])
    if "interrupted" in result:
        raise Interrupted(result["interrupted"])
    if code == -signal.SIGTERM:
        raise Interrupted("stopped (SIGTERM) before training started; the next run resumes from the last checkpoint")
    if code or "launch" not in result:
        raise RuntimeError(f"the training ended with exit code {code}: {_last_error(output)} (its output: {output})")
    return dict(result["launch"])


def _last_error(output: Path) -> str:
    """Return the last line of a child's output that looks like the error itself."""
    lines = [line.strip() for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if "Error:" in line and "ChildFailedError" not in line]
    return (named or lines)[-1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
