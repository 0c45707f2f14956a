"""All GPUs of one machine: `launcher=gpus`.

Pieces of the plan run as child processes, each bound to its GPUs; they are those that Slurm's jobs are cut into. Which
piece starts next is decided by `Pool`, which starts no process and reads no clock. A wide piece is never starved. The
first piece that does not get its GPUs is the head. A later piece may pass it, if the head could still start once all
that began before it has ended.

`python -m pipeline.run.gpus FOLDER THREADS KEY...` is a child.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import BadInput, Interrupted
from common.processes import die_with_parent
from common.project import ROOT
from pipeline import interruption, journal
from pipeline.execute import Executor, Job, Maker
from pipeline.journal import Journal
from pipeline.run.cells import check_budgets, run_executor
from pipeline.run.cluster.schedule import Piece, group_into_pieces
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage
from pipeline.sweep import GPUS, IN_THIS_PROCESS, Sweep

if TYPE_CHECKING:
    from pipeline.config import Compute

VISIBLE = "CUDA_VISIBLE_DEVICES"
MIG = "MIG-"  # how CUDA_VISIBLE_DEVICES names a slice of a GPU
CHILD = "pipeline.run.gpus"  # the module that a child runs
POLL_S = 0.1


def compute(plan: RunPlan, executor: Executor, devices: Sequence[str]) -> None:
    """Compute what is missing, and return when nothing more can be computed. The journal has what failed.

    executor: of this process, for its journal and the order of budgets. devices: names as CUDA_VISIBLE_DEVICES takes
    them. A Ctrl-C lets trainings save. Raises BadInput, KeyboardInterrupt.
    """
    known: set[str] = set()
    while True:
        failed = {event["key"] for event in executor.journal.events("failed", "refused")}
        keys = {stage.key for stage in plan.missing()} - failed
        with interruption.deferred():
            Children(plan, keys, executor, devices).run()
        # damaged entries that a reader found were moved away; another round computes them
        damaged = {event["key"] for event in executor.journal.events("damaged")} - known
        known |= damaged
        if not damaged & {stage.key for stage in plan.missing()}:
            return


# --- the GPUs


def visible() -> tuple[str, ...]:
    """Name the GPUs of this process, as CUDA_VISIBLE_DEVICES takes them. Imports torch."""
    import torch

    given = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    if given and given[0].startswith(MIG):  # CUDA shows a process only the first slice; each child gets its own
        return tuple(dict.fromkeys(name for name in given if name.startswith(MIG)))
    count = torch.cuda.device_count()
    return tuple(given[:count]) if given else tuple(map(str, range(count)))


def choose_launcher(sweep: Sweep, compute: Compute) -> tuple[Sweep, tuple[str, ...]]:
    """Choose how this machine computes the stages: the sweep with its launcher, and the GPUs that children share.

    No GPUs are returned if the launcher of the sweep stays, which shares none. Several visible GPUs are shared
    unless the command line names a launcher. Raises BadInput.
    """
    cuda = compute.device == "cuda"
    if sweep.launcher == GPUS and not cuda:
        raise BadInput(
            f"launcher={GPUS}: needs GPUs, got compute.device={compute.device}. "
            "Set compute=gpu, or launcher=joblib for several processes on the CPU."
        )
    if not cuda:
        return sweep, ()
    devices = visible()
    if sweep.launcher != GPUS and len(devices) > 1:
        if sweep.launcher != IN_THIS_PROCESS and sweep.launcher_given:
            raise BadInput(
                f"launcher={sweep.launcher}: all of its processes would use the first of {len(devices)} GPUs. "
                f"Set launcher={GPUS} to use all of them."
            )
        if not sweep.launcher_given and compute.nodes == 1:
            sweep = replace(sweep, launcher=GPUS)
    if sweep.launcher != GPUS:
        return sweep, ()
    if compute.nodes > 1:
        raise BadInput(
            f"compute.nodes={compute.nodes}: launcher={GPUS} uses one machine. "
            "Set compute.nodes=1, or launcher=slurm with a site."
        )
    return replace(sweep, processes=len(devices)), devices


def check(plan: RunPlan, devices: Sequence[str]) -> None:
    """Raise BadInput if a training that is missing wants more GPUs than there are."""
    missing = gpu_pieces(plan.stages, {stage.key for stage in plan.missing()})
    widest = max(map(width, missing), default=0)
    if widest > len(devices):
        raise BadInput(
            f"compute.processes={widest}: a training takes one GPU per process, got {len(devices)} visible GPUs. "
            f"Set compute.processes={len(devices)} or less, or make more GPUs visible ({VISIBLE})."
        )


def cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- what starts next


def gpu_pieces(stages: Sequence[Stage], waiting: Collection[str]) -> tuple[Piece, ...]:
    """Cut a plan as for Slurm, each after those that it needs; but each budget of a CT trajectory is a piece.

    On one machine a piece starts in seconds, and a budget need not wait for a larger one to be scored.
    `waiting`: keys of the stages to make.
    """
    split: list[Piece] = []
    for piece in group_into_pieces(stages, waiting):
        needs, parts = piece.needs, [piece.stages]
        if piece.job_class == "train":
            parts = [(stage,) for stage in piece.stages]
        for part in parts:
            split.append(Piece(piece.job_class, part, needs))
            needs |= {stage.key for stage in part}
    return tuple(split)


def width(piece: Piece) -> int:
    """Count the GPUs that a piece holds: one per process of a training, one for scoring and merging, none for data."""
    if piece.job_class == "train":
        return max(stage.compute.processes for stage in piece.stages)
    return 0 if piece.job_class == "data" else 1


class Pool:
    """Pieces that wait or run, and the GPUs that they hold.

    `devices`: names, each once. `without_device`: how many pieces run at a time that hold no GPU. `elsewhere`: whether
    another command computes a piece at the moment; such pieces come last.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        devices: Sequence[str],
        without_device: int = 1,
        elsewhere: Callable[[Piece], bool] = lambda piece: False,
    ) -> None:
        self.devices, self.without_device, self.elsewhere = tuple(devices), without_device, elsewhere
        self.waiting = list(pieces)
        self.running: dict[Piece, tuple[str, ...]] = {}
        self._head: Piece | None = None
        self._passed: set[Piece] = set()  # what began after the head had to wait

    def next(self) -> tuple[Piece, tuple[str, ...]] | None:
        """Take the next piece that may start, with the GPUs that it holds until `end`; None: no piece may."""
        held = {device for devices in self.running.values() for device in devices}
        free = [device for device in self.devices if device not in held]
        head: Piece | None = None
        for piece in self._ready():
            wanted = width(piece)
            if wanted == 0:
                if sum(not devices for devices in self.running.values()) < self.without_device:
                    return self._begin(piece, ())
            elif head is None and wanted <= len(free):
                return self._begin(piece, tuple(free[:wanted]))
            elif head is None:
                head = piece
                if head is not self._head:
                    self._head, self._passed = head, set()
            elif wanted <= len(free) and self._may_pass(head, wanted):
                self._passed.add(piece)
                return self._begin(piece, tuple(free[:wanted]))
        return None

    def end(self, piece: Piece) -> None:
        """Free what a piece holds: it has ended, well or not."""
        del self.running[piece]
        self._passed.discard(piece)

    def drop(self, piece: Piece) -> None:
        """Take a piece out that waits and will not be run."""
        self.waiting.remove(piece)

    def _begin(self, piece: Piece, devices: tuple[str, ...]) -> tuple[Piece, tuple[str, ...]]:
        self.waiting.remove(piece)
        self.running[piece] = devices
        return piece, devices

    def _may_pass(self, head: Piece, wanted: int) -> bool:
        """Return whether the head could start when all has ended that began before it had to wait."""
        held = sum(len(self.running[piece]) for piece in self._passed)
        return held + wanted <= len(self.devices) - width(head)

    def _ready(self) -> list[Piece]:
        """Return the pieces whose needs have ended: trainings first, of these the widest."""
        coming = {key for piece in (*self.waiting, *self.running) for key in piece.keys}
        ready = [piece for piece in self.waiting if not piece.needs & coming]
        return sorted(
            ready,
            key=lambda piece: (
                self.elsewhere(piece),
                piece.job_class != "train",
                -width(piece),
                piece.stages[0].kind != "ct",
            ),
        )


# --- the processes


class Children:
    """The pieces of a run that wait, and the processes of those that run. Not for use outside the main thread:
    a child ends with the thread that started it.

    executor: of this process, for its journal and the order of budgets.
    """

    def __init__(self, plan: RunPlan, keys: Collection[str], executor: Executor, devices: Sequence[str]) -> None:
        self.plan, self.executor, self.journal, self.store = plan, executor, executor.journal, plan.store
        self.folder = self.journal.path.parent
        self.threads = max(1, cores() // len(devices))
        readers = max(getattr(stage.options, "workers", 1) for stage in plan.stages)
        without_device = max(1, min(len(devices), cores() // readers))
        self.pool = Pool(gpu_pieces(plan.stages, keys), devices, without_device, self._elsewhere)
        self.processes: dict[Piece, subprocess.Popen[bytes]] = {}
        self.interrupted: set[Piece] = set()

    def run(self) -> None:
        """Return when every piece has ended or cannot start. What failed is in the journal.

        Raises BadInput if a budget is larger than the packed text, after the children have saved and ended.
        """
        too_large: BadInput | None = None
        try:
            while True:
                stopping = too_large is not None or interruption.requested()
                if stopping:
                    self._interrupt()
                else:
                    self._start()
                if not self.processes:
                    break
                for piece in self._ended():
                    try:
                        self._end(piece, stopping)
                    except BadInput as error:
                        too_large = too_large or error
        finally:
            self._kill()
        if too_large:
            raise too_large

    def _start(self) -> None:
        """Start all that may start now."""
        while self._drop_what_cannot_run():
            pass
        while chosen := self.pool.next():
            piece, devices = chosen
            if not any(map(self.plan.is_missing, piece.stages)):  # another command was faster
                self.pool.end(piece)
            else:
                self.processes[piece] = self._child(piece, devices)
                self.journal.write("piece_started", piece=piece.name, devices=list(devices))

    def _child(self, piece: Piece, devices: Sequence[str]) -> subprocess.Popen[bytes]:
        words = [str(self.folder), str(self.threads), *(stage.key for stage in piece.stages)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        threads = {name: os.environ.get(name, str(self.threads)) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
        log = self._log(piece)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as sink:
            return subprocess.Popen(  # before exec: two system calls, safe next to other threads
                [sys.executable, "-m", CHILD, *words],
                env={**os.environ, **threads, "PYTHONPATH": path, VISIBLE: ",".join(devices)},
                stdin=subprocess.DEVNULL, stderr=sink,
                process_group=0,  # a terminal's Ctrl-C comes to this process alone, which passes it on once
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509
            )  # fmt: skip

    def _log(self, piece: Piece) -> Path:
        """Return the file of a child's stderr."""
        return self.folder / "logs" / f"{piece.name}.log"

    def _ended(self) -> list[Piece]:
        """Wait until a child has ended or a Ctrl-C came; the pieces whose children have ended."""
        pressed = interruption.requested()
        while not (ended := [piece for piece, process in self.processes.items() if process.poll() is not None]):
            if interruption.requested() and not pressed:
                return []
            time.sleep(POLL_S)
        return ended

    def _end(self, piece: Piece, stopping: bool) -> None:
        """Free a piece's GPUs, and report a process that was killed. Raises BadInput as `run` does."""
        code = self.processes.pop(piece).returncode
        self.pool.end(piece)
        self.journal.write("piece_ended", piece=piece.name, code=code)
        log = self._log(piece)
        with contextlib.suppress(OSError):
            if not log.stat().st_size:
                log.unlink()
        if stopping or interruption.requested():
            return
        self._report_lost(piece, code)
        if piece.job_class == "data":
            check_budgets(self.plan)

    def _report_lost(self, piece: Piece, code: int) -> None:
        """Write failures of stages that are missing without an event in the journal."""
        silent = [stage for stage in piece.stages if self.store.find(stage) is None]
        if not silent:
            return
        explained = {event.get("key") for event in self.journal.events(*journal.FAILURES)}
        silent = [stage for stage in silent if stage.key not in explained]
        for stage in silent[:1]:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            log = self._log(piece)
            last = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
            why = next((f": {line.strip()[:300]}" for line in reversed(last) if line.strip()), "") if code > 0 else ""
            message = f"{stage} failed: its process {how}{why}"
            self.journal.write("failed", stage, message=message, **({"log": str(log)} if log.exists() else {}))
        for stage in silent[1:]:
            self._not_run(stage, silent[0])

    def _drop_what_cannot_run(self) -> bool:
        """Drop the pieces of which no stage can be computed: what they read is missing, and no piece computes it.

        Returns whether there were some: what needs them cannot be computed either.
        """
        dropped = False
        coming = {key for piece in (*self.pool.waiting, *self.pool.running) for key in piece.keys}
        for piece in [piece for piece in self.pool.waiting if not piece.needs & coming]:
            keys, without = set(piece.keys), []
            for stage in piece.stages:
                needed = [parent for parent in stage.parents.values() if not parent.given]
                needed += self.executor.smaller_in_sweep(stage)
                lacks = next((need for need in needed if need.key not in keys and self.store.find(need) is None), None)
                if lacks is not None:
                    keys.discard(stage.key)
                    without.append((stage, lacks))
            if not keys:
                self.pool.drop(piece)
                dropped = True
                for stage, lacks in without:
                    self._not_run(stage, lacks)
        return dropped

    def _not_run(self, stage: Stage, lacks: Stage) -> None:
        message = f"{stage} was not run, as there is no {lacks}"
        self.journal.write("not_run", stage, message=message)

    def _elsewhere(self, piece: Piece) -> bool:
        """Return whether another command computes the piece's first missing stage at the moment."""
        first = next((stage for stage in piece.stages if self.store.find(stage) is None), None)
        return first is not None and not self.store.is_free(first)

    def _interrupt(self) -> None:
        """Ask each child to end; a training saves before."""
        for piece, process in self.processes.items():
            if piece not in self.interrupted and process.poll() is None:
                process.send_signal(signal.SIGINT)
                self.interrupted.add(piece)

    def _kill(self) -> None:
        """End what still runs, such as at a second Ctrl-C, with all that it has started."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


# --- inside a child


def main(folder: Path, threads: int, keys: list[str]) -> int:
    """Compute the stages of these keys, in their order. What fails is an event of the run's journal.

    threads: at most so many of a CPU. Returns the exit code: 0 also if a stage failed and the journal has it.
    """
    die_with_parent()
    interruption.listen()
    try:
        plan = RunPlan.load(folder)
        events = Journal(folder / journal.FILE)
        executor = run_executor(plan, events, plan.cell_of(keys[0]).config, assigned=keys, waits=True)
        function_of = executor.maker
        executor.maker = lambda kind: bounded(function_of(kind), threads)
        executor.compute([plan.by_key[key] for key in keys])
    except Interrupted:  # the journal has it
        return 0
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the parent ends the command with one line
        return 130
    return 0


def bounded(make: Maker, threads: int) -> Maker:
    """Return a maker that uses at most so many threads, whatever `compute.threads` allows to a process that runs
    alone.
    """

    def bounded_make(job: Job) -> None:
        job.stage = with_threads(job.stage, threads)
        make(job)

    return bounded_make


def with_threads(stage: Stage, most: int) -> Stage:
    """Return the stage with at most so many threads among its options, which are no part of its key."""
    options = stage.options
    if hasattr(options, "threads"):
        options = options.replace(threads=min(options.threads, most))
    elif hasattr(options, "compute"):
        compute = options.compute.replace(threads=min(options.compute.threads or most, most))
        options = options.replace(compute=compute)
    return replace(stage, options=options)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
