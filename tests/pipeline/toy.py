"""A plan of toy stages over real store, locks and journal.

As a script, a process that can be made to kill itself at a chosen point.

`python toy.py STORE JOURNAL [POINT]`
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline import store as store_module
from pipeline.execute import Executor, Job
from pipeline.journal import Journal
from pipeline.run.display import RunView
from pipeline.stages.stage import Stage
from pipeline.store import Store
from tests.pipeline.toy_stage import toy_stage

POINTS = ("start", "mid_stage", "before_record", "fsync", "before_rename", "after_rename", "discard")


def plan(budgets: tuple[int, ...] = (20, 40)) -> tuple[Stage, ...]:
    corpus = toy_stage("corpus", "toy", {"words": 3})
    model = toy_stage("base", "toy", {"tokens": 1_000_000}, {"corpus": corpus})
    ct = [
        toy_stage("ct", f"toy-{tokens}", {"tokens": tokens, "seed": 0}, {"model": model, "blocks": corpus})
        for tokens in budgets
    ]
    evals = [
        toy_stage("eval", f"toy-{tokens}", {"split": "test"}, {"checkpoint": stage})
        for tokens, stage in zip(budgets, ct, strict=True)
    ]
    return (corpus, model, *ct, *evals)


def annealed(budgets: tuple[int, ...] = (20, 40), decay: int = 5) -> tuple[Stage, ...]:
    """The same with a decay of its own for each budget: CT at a budget starts from a trunk that ends `decay` before."""
    corpus, model, *_ = plan(())
    parents = {"model": model, "blocks": corpus}
    trunks = [toy_stage("ct", f"trunk-{tokens}", {"tokens": tokens - decay, "seed": 0}, parents) for tokens in budgets]
    settings = [{"tokens": tokens, "seed": 0, "decay_tokens": decay} for tokens in budgets]
    ct = [
        toy_stage("ct", f"toy-{each['tokens']}", each, {**parents, "trunk": trunk})
        for each, trunk in zip(settings, trunks, strict=True)
    ]
    return (corpus, model, *trunks, *ct)


class Makers(dict[str, object]):
    """Makers of the toy kinds.

    `ct` counts up to its budget, a step at a time, and goes on from its scratch folder or a smaller budget.
    """

    def __init__(self, point: str | None = None, pause: float = 0.0) -> None:
        self.point, self.pause = point, pause
        super().__init__(corpus=self.text, base=self.text, ct=self.train, eval=self.score)

    def text(self, job: Job) -> None:
        if self.point == "start":
            die()
        (job.out / "model").mkdir()
        (job.out / "model" / "words").write_text(f"{job.stage.kind} {sorted(job.stage.key_content)}")
        time.sleep(self.pause)

    def train(self, job: Job) -> None:
        checkpoint = job.work / "step"
        start = 0
        if checkpoint.exists():
            start = int(checkpoint.read_text())
        elif job.resume:
            start = int((job.resume.path / "state").read_text())
        for step in range(start, job.settings.tokens):
            aside = job.work / "aside"
            aside.write_text(str(step + 1))
            os.replace(aside, checkpoint)
            if self.point == "mid_stage" and step == job.settings.tokens // 2:
                die()
        time.sleep(self.pause)
        (job.out / "state").write_text(str(job.settings.tokens))
        (job.out / "weights").write_text(str(job.settings.tokens))
        (job.out / "steps_here").write_text("same whatever was resumed")

    def score(self, job: Job) -> None:
        (job.out / "scores.jsonl").write_text((job.folders["checkpoint"] / "weights").read_text())


def view(store: Store, stages: Sequence[Stage], journal: Journal) -> RunView:
    """What is shown of a run of these stages."""
    config = SimpleNamespace(name="toy", compute=SimpleNamespace(stage_seconds={}))
    plan: Any = SimpleNamespace(stages=stages, config=config, processes=1, store=store, reports={})
    return RunView(plan, journal.path)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(point: str) -> None:
    """Makes the store's file operations fatal at a point of the first CT stage's publication."""
    publishing = {"ct": False}
    publish, fsync, rename, discard = Store.publish, store_module.fsync, os.rename, Store.discard_work

    def watched_publish(self, stage, out, about):  # type: ignore[no-untyped-def]
        publishing["ct"] = stage.kind == "ct"
        if point == "before_record" and publishing["ct"]:
            die()
        return publish(self, stage, out, about)

    def watched_fsync(path):  # type: ignore[no-untyped-def]
        if point == "fsync" and publishing["ct"]:
            die()
        fsync(path)

    def watched_rename(source, target):  # type: ignore[no-untyped-def]
        if point == "before_rename" and publishing["ct"]:
            die()
        rename(source, target)
        if point == "after_rename" and publishing["ct"]:
            die()

    def watched_discard(self, stage):  # type: ignore[no-untyped-def]
        if point == "discard" and publishing["ct"]:
            die()
        discard(self, stage)

    Store.publish, Store.discard_work = watched_publish, watched_discard  # type: ignore[method-assign]
    store_module.fsync, store_module.os.rename = watched_fsync, watched_rename


def main() -> None:
    root, journal, point = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None
    if point:
        die_at(point)
    stages = plan()
    executor = Executor(Store(root), stages, Journal(journal), maker=Makers(point, pause=0.05).__getitem__)
    executor.compute(stages, stop_at_failure=True)


if __name__ == "__main__":
    main()
