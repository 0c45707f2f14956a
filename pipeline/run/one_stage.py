"""`slackmerge make KIND SLUG`: compute one stage of a plan, after those of its parents that are missing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from common.errors import BadInput, Interrupted, StageFailed
from common.units import counted, duration
from pipeline import check, inputs, locks
from pipeline.execute import Executor
from pipeline.journal import Journal
from pipeline.run import failures
from pipeline.run.console import Estimates, say
from pipeline.run.failures import Failures
from pipeline.run.stage_names import planned
from pipeline.run.worker import JOURNAL, LOG, quiet
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import Stage
from pipeline.sweep import IN_THIS_PROCESS, Sweep
from pipeline.tracking import tracker


def make(kind: str, slug: str, settings: Sequence[str], multirun: bool, arguments: Sequence[str]) -> int:
    """Make the stage and print its folder; return the exit code.

    `arguments`: the whole command line, to say how to try again. Raises BadInput, before anything is computed.
    """
    started = time.monotonic()
    expanded, plan, goal = planned(kind, slug, settings, multirun)
    _check_launcher(expanded)
    missing = needed(plan, goal)
    _announce(plan, goal, missing)
    journal = Journal(plan.new_folder() / JOURNAL)
    if missing:
        if _check(plan, goal, missing):
            return 2
        try:
            _executor(plan, goal, missing, journal).run(missing)
        except (StageFailed, Interrupted) as error:
            failures.tell(Failures(failed=[{"message": str(error)}]), arguments)
            return 1
    entry = plan.store.find(goal)
    assert entry is not None
    ran, seconds = len(journal.events("published")), round(time.monotonic() - started, 1)
    say(json.dumps({"folder": str(entry.path), "stages_run": ran, "seconds": seconds}))
    return 0


def needed(plan: RunPlan, goal: Stage) -> list[Stage]:
    """List what is missing of a stage and what it is made from, parents first; nothing if the stage is finished.

    The parents of a finished stage are not needed.
    """
    listed: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.given or stage.key in listed or not plan.is_missing(stage):
            return
        for parent in stage.parents.values():
            visit(parent)
        listed[stage.key] = stage

    visit(goal)
    return list(listed.values())


def _check_launcher(expanded: Sweep) -> None:
    if expanded.launcher_given and expanded.launcher != IN_THIS_PROCESS:
        raise BadInput(
            f"launcher: `make` computes in this process, got {expanded.launcher}. "
            "Leave launcher= out; in a cluster, start the command in a job of your own."
        )


def _announce(plan: RunPlan, goal: Stage, missing: Sequence[Stage]) -> None:
    """Print how many stages this is, about how long they take, and which they are."""
    if not missing:
        say(f"{goal}: finished before; nothing to compute")
        return
    left = Estimates(plan.store, plan.config.compute.first_guess).of(missing)
    parents = f", {len(missing) - 1} of them parents that are missing" if len(missing) > 1 else ""
    say(f"{goal}: {counted(len(missing), 'stage')} to compute{parents}, about {duration(left)}")
    for stage in missing:
        say(f"  {stage}")


def _check(plan: RunPlan, goal: Stage, missing: Sequence[Stage]) -> bool:
    """Make the checks of `run` for one stage, and print what they find; return whether one fails."""
    config = plan.config_of(goal.key)
    inputs.check_device(config.compute, config.eval.gpus)
    findings = check.sweep([config], missing)
    for finding in findings:
        print(finding, file=sys.stdout if finding.told else sys.stderr, flush=True)
    if any(finding.fails for finding in findings):
        return True
    if warning := locks.check(plan.store.root):
        say(f"warning: {warning}")
    return False


def _executor(plan: RunPlan, goal: Stage, missing: Sequence[Stage], journal: Journal) -> Executor:
    """An executor of these stages, which drops no trainer state: a sweep beside it may need one."""
    config = plan.config_of(goal.key)
    quiet(config, journal.path.parent / LOG)
    return Executor(
        plan.store,
        missing,
        journal,
        first_guess=config.compute.first_guess,
        say=say,
        track=tracker(config, plan.outputs.absolute()),
        drops_states=False,
    )
