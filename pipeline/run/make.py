"""`slackmerge make KIND SLUG`: compute one stage of a plan, after those of its parents that are missing.

A stage has the names that `slackmerge plan` prints: its kind, and its slug or key.
"""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from common.errors import BadInput, Interrupted, StageFailed, listed
from common.units import counted, duration
from pipeline import check, inputs, journal, locks, run_plan, sweep
from pipeline.journal import Journal
from pipeline.run.cells import run_executor
from pipeline.run.display import Estimates, RunView, print_line, shown
from pipeline.run.run import report_failures
from pipeline.run_plan import RunPlan
from pipeline.stages import STAGE_TYPES
from pipeline.stages.stage import Stage
from pipeline.sweep import IN_THIS_PROCESS, Sweep

WRITTEN = "merge.write=true"  # has a plan hold the weights of every merge; no key depends on it


def make(kind: str, slug: str, settings: Sequence[str], multirun: bool, arguments: Sequence[str]) -> int:
    """Compute the stage and print its folder; return the exit code.

    arguments: the command line, to say how to try again. Raises BadInput, before anything is computed.
    """
    started = time.monotonic()
    expanded, plan, goal = find_planned(kind, slug, settings, multirun)
    if expanded.launcher_given and expanded.launcher != IN_THIS_PROCESS:
        raise BadInput(
            f"launcher: `make` computes in this process, got {expanded.launcher}. "
            "Leave launcher= out; in a cluster, start the command in a job of your own."
        )
    plan = replace(plan, processes=1)
    missing = missing_ancestry(plan, goal)
    _print_plan(plan, goal, missing)
    events = Journal(plan.new_folder() / journal.FILE)
    if missing:
        if _check(plan, goal, missing):
            return 2
        config = plan.cell_of(goal.key).config
        # drops no trainer state: a sweep on the same store may need one
        executor = run_executor(plan, events, config, stages=missing, drops_states=False)
        try:
            with shown(RunView(plan, events.path, missing)):
                executor.compute(missing, stop_at_failure=True)
        except (StageFailed, Interrupted) as error:
            report_failures([{"event": "failed", "message": str(error)}], arguments)
            return 1
    entry = plan.store.find(goal)
    assert entry is not None
    ran, seconds = len(events.events("published")), round(time.monotonic() - started, 1)
    print_line(json.dumps({"folder": str(entry.path), "stages_run": ran, "seconds": seconds}))
    return 0


def missing_ancestry(plan: RunPlan, goal: Stage) -> list[Stage]:
    """List what is missing of a stage and what it is made from, parents first; nothing if the stage is finished.

    The parents of a finished stage are not needed.
    """
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.given or stage.key in found or not plan.is_missing(stage):
            return
        for parent in stage.parents.values():
            visit(parent)
        found[stage.key] = stage

    visit(goal)
    return list(found.values())


def _print_plan(plan: RunPlan, goal: Stage, missing: Sequence[Stage]) -> None:
    """Print how many stages this is, about how long they take, and which they are."""
    if not missing:
        print_line(f"{goal}: finished before; nothing to compute")
        return
    left = Estimates.of_plan(plan).total(missing)
    parents = f", {len(missing) - 1} of them parents that are missing" if len(missing) > 1 else ""
    print_line(f"{goal}: {counted(len(missing), 'stage')} to compute{parents}, about {duration(left)}")
    for stage in missing:
        print_line(f"  {stage}")


def _check(plan: RunPlan, goal: Stage, missing: Sequence[Stage]) -> bool:
    """Make the checks of `run` for one stage, and print what they find; return whether one fails."""
    cell = plan.cell_of(goal.key)
    inputs.check_device(cell.config.compute, cell.config.eval.gpus)
    findings = check.check_plan(replace(plan, cells=(cell,)), missing)
    for finding in findings:
        print(finding, file=sys.stdout if finding.fact else sys.stderr, flush=True)
    if any(finding.fails for finding in findings):
        return True
    if warning := locks.check(plan.store.root):
        print_line(f"warning: {warning}")
    return False


# --- a stage by its names


def find_planned(kind: str, slug: str, settings: Sequence[str], multirun: bool) -> tuple[Sweep, RunPlan, Stage]:
    """Compose an experiment and find one stage of its plan.

    `weights` of merges are found whether or not the experiment writes them. Raises BadInput, before anything is
    computed.
    """
    check_kind(kind)
    expanded = sweep.expand([*settings, *([WRITTEN] if kind == "weights" else [])], multirun)
    plan = run_plan.plan(expanded)
    return expanded, plan, find_stage(plan.stages, kind, slug, multirun)


def check_kind(kind: str) -> None:
    """Raise BadInput if there is no such kind of stage."""
    if kind not in STAGE_TYPES:
        raise BadInput(f"KIND: no such kind of stage, got {kind}. {_nearest(kind, list(STAGE_TYPES))}")


def find_stage(stages: Sequence[Stage], kind: str, name: str, multirun: bool = False) -> Stage:
    """Find the stage of this kind and slug, or key. Raises BadInput that lists the nearest names."""
    of_kind = [stage for stage in stages if stage.kind == kind]
    if not of_kind:
        present = list(dict.fromkeys(stage.kind for stage in stages))
        raise BadInput(f"KIND: this plan has no stage of this kind, got {kind}. It has {', '.join(present)}.")
    found = [stage for stage in of_kind if name in (stage.slug, stage.key)]
    if len(found) == 1:
        return found[0]
    if found:
        keys = listed(stage.key for stage in found)
        raise BadInput(f"SLUG: {len(found)} stages of kind {kind} have this name, got {name}. Pass a key: {keys}.")
    others = list(dict.fromkeys(stage.kind for stage in stages if name == stage.slug))
    advice = f"Kinds that have it: {', '.join(others)}." if others else _nearest(name, [s.slug for s in of_kind])
    more = "" if multirun or others else " With -m, a plan holds all runs of the experiment."
    raise BadInput(f"SLUG: the plan has no {kind} stage of this name, got {name}. {advice}{more}")


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return the nearest names as a question; if there are none, what there is."""
    names = list(dict.fromkeys(known))
    if near := difflib.get_close_matches(name, names, n=3):
        return f"Did you mean {' or '.join(near)}?"
    return f"Choose one of {listed(names)}."
