"""Run the pieces of a plan as child processes, each bound to its GPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from common.errors import BadInput
from common.processes import die_with_parent
from pipeline import interruption
from pipeline.run.cluster.schedule import Task
from pipeline.run.gpus.devices import VISIBLE, cores
from pipeline.run.gpus.pool import Pool, pieces
from pipeline.run.local import check_budgets
from pipeline.run.worker import Worker
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage

CHILD = "pipeline.run.gpus"  # the module that a child runs
LOOK_EVERY_S = 0.1
EXPLAINED = ("failed", "refused", "not_run", "preempted")  # events with the reason why a stage was not computed
ROOT = Path(__file__).parents[3]


class Children:
    """The pieces of a run that wait, and the processes of those that run. Not for use outside the main thread:
    a child ends with the thread that started it.

    `here`: this process's worker, for its journal, its lines and the order of budgets. `folder`: of the run.
    """

    def __init__(
        self, plan: RunPlan, keys: Collection[str], here: Worker, folder: Path, devices: Sequence[str]
    ) -> None:
        self.plan, self.here, self.folder, self.store = plan, here, folder, plan.store
        self.threads = max(1, cores() // len(devices))
        readers = max(int(stage.options.get("workers", 1)) for stage in plan.stages)
        without_device = max(1, min(len(devices), cores() // readers))
        self.pool = Pool(pieces(plan.stages, keys), devices, without_device, self._elsewhere)
        self.processes: dict[Task, subprocess.Popen[bytes]] = {}
        self.interrupted: set[Task] = set()

    def make(self) -> None:
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
                for task in self._ended():
                    try:
                        self._end(task, told_to_end=stopping)
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
            task, devices = chosen
            if not any(map(self.plan.is_missing, task.stages)):  # another command was faster
                self.pool.end(task)
            else:
                self.processes[task] = self._child(task, devices)
                self.here.journal.write("piece_started", piece=task.name, devices=list(devices))

    def _child(self, task: Task, devices: Sequence[str]) -> subprocess.Popen[bytes]:
        words = [str(self.folder), str(self.threads), *(stage.key for stage in task.stages)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        threads = {name: os.environ.get(name, str(self.threads)) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
        log = self._log(task)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as sink:
            return subprocess.Popen(  # before exec: two system calls, safe next to other threads
                [sys.executable, "-m", CHILD, *words],
                env={**os.environ, **threads, "PYTHONPATH": path, VISIBLE: ",".join(devices)},
                stdin=subprocess.DEVNULL, stderr=sink,
                process_group=0,  # a terminal's Ctrl-C comes to this process alone, which passes it on once
                preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509
            )  # fmt: skip

    def _log(self, task: Task) -> Path:
        """Return the file of a child's stderr."""
        return self.folder / "logs" / f"{task.name}.log"

    def _ended(self) -> list[Task]:
        """Wait until a child has ended or a Ctrl-C came; the pieces whose children have ended."""
        pressed = interruption.requested()
        while not (ended := [task for task, process in self.processes.items() if process.poll() is not None]):
            if interruption.requested() and not pressed:
                return []
            time.sleep(LOOK_EVERY_S)
        return ended

    def _end(self, task: Task, told_to_end: bool) -> None:
        """Free a piece's GPUs, and say what its process did not live to say. Raises BadInput as `make` does."""
        code = self.processes.pop(task).returncode
        self.pool.end(task)
        self.here.journal.write("piece_ended", piece=task.name, code=code)
        log = self._log(task)
        with contextlib.suppress(OSError):
            if not log.stat().st_size:
                log.unlink()
        if told_to_end or interruption.requested():
            return
        self._lost(task, code)
        if task.work == "data":
            check_budgets(self.plan)

    def _lost(self, task: Task, code: int) -> None:
        """Write failures of stages that are not made, and of which the child's journal says nothing."""
        silent = [stage for stage in task.stages if self.store.find(stage) is None]
        if not silent:
            return
        explained = {event.get("key") for event in self.here.journal.events(*EXPLAINED)}
        silent = [stage for stage in silent if stage.key not in explained]
        for stage in silent[:1]:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            log = self._log(task)
            last = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
            why = next((f": {line.strip()[:300]}" for line in reversed(last) if line.strip()), "") if code > 0 else ""
            message = f"{stage} failed: its process {how}{why}"
            self.here.journal.write("failed", stage, message=message, **({"log": str(log)} if log.exists() else {}))
            self.here.progress.say(stage, message)
        for stage in silent[1:]:
            self._not_run(stage, silent[0])

    def _drop_what_cannot_run(self) -> bool:
        """Take out the pieces of which no stage can be made: what they read was not made, and no piece makes it.

        True if there were some: what needs them cannot be made either.
        """
        dropped = False
        coming = {key for task in (*self.pool.waiting, *self.pool.running) for key in task.keys}
        for task in [task for task in self.pool.waiting if not task.needs & coming]:
            own, without = set(task.keys), []
            for stage in task.stages:
                needed = [parent for parent in stage.parents.values() if not parent.given]
                needed += self.here.smaller_in_sweep(stage)
                lacks = next((need for need in needed if need.key not in own and self.store.find(need) is None), None)
                if lacks is not None:
                    own.discard(stage.key)
                    without.append((stage, lacks))
            if not own:
                self.pool.drop(task)
                dropped = True
                for stage, lacks in without:
                    self._not_run(stage, lacks)
        return dropped

    def _not_run(self, stage: Stage, lacks: Stage) -> None:
        message = f"{stage} was not run, as there is no {lacks}"
        self.here.journal.write("not_run", stage, message=message)
        self.here.progress.say(stage, f"not run: {message}")

    def _elsewhere(self, task: Task) -> bool:
        """Return whether another command makes the piece's first missing stage at the moment."""
        first = next((stage for stage in task.stages if self.store.find(stage) is None), None)
        return first is not None and not self.store.is_free(first)

    def _interrupt(self) -> None:
        """Have each child end: a training saves before."""
        for task, process in self.processes.items():
            if task not in self.interrupted and process.poll() is None:
                process.send_signal(signal.SIGINT)
                self.interrupted.add(task)

    def _kill(self) -> None:
        """End what still runs, such as at a second Ctrl-C, with all that it has started."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
