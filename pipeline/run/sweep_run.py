"""`slackmerge run`: a sweep from its configs to its report.

Plan, check, compute, report, and list what failed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from common.errors import Interrupted, StageFailed
from common.units import counted, duration
from pipeline import check as checks
from pipeline import inputs, locks, run_plan
from pipeline.journal import Journal
from pipeline.run import cluster, failures, gpus, live, local
from pipeline.run.collect import write_report
from pipeline.run.console import Estimates, say
from pipeline.run.failures import Failures
from pipeline.run.worker import JOURNAL, worker
from pipeline.run_plan import RunPlan
from pipeline.stages import trajectory
from pipeline.store import Store
from pipeline.sweep import GPUS, Sweep


def run(sweep: Sweep, arguments: Sequence[str]) -> int:
    """Run what is missing and write the report. `arguments`: of the command line, to say how to try again.

    Returns the exit code: 0; 1 where a stage crashed; 2 if input was rejected on the way. Raises BadInput.
    """
    started = time.monotonic()
    plan = replace(run_plan.plan(sweep), arguments=tuple(arguments))
    site = cluster.site_of(sweep, plan.config)
    missing = plan.missing()
    devices: tuple[str, ...] = ()
    if missing and sweep.launcher in (*local.LAUNCHERS, GPUS):
        inputs.check_device(plan.config.compute, plan.config.eval.gpus)
        sweep, devices = gpus.choose(sweep, plan.config.compute)
        plan = replace(plan, processes=sweep.processes)
    _say_plan(plan, len(missing))
    if devices:
        gpus.check(plan, devices)
        say(f"launcher=gpus: {len(devices)} GPUs, one process per piece of work")
    journal = Journal(plan.new_folder() / JOURNAL)
    if missing:
        if check(sweep):
            return 2
        if warning := locks.check(plan.store.root):
            say(f"warning: {warning}")
        plan.save(journal.path.parent)
        here = worker(plan, journal)
        try:
            with live.display(plan, journal):
                if site:
                    cluster.make(site, plan, missing, here, journal)
                elif devices:
                    gpus.make(plan, here, journal.path.parent, devices)
                else:
                    local.make(sweep, plan, here, journal.path.parent)
        except (StageFailed, Interrupted) as error:  # of stages that cells share: cells write theirs into the journal
            failures.tell(Failures(failed=[{"message": str(error)}]), arguments)
            return 1
    return _end(plan, journal, arguments, started)


def _say_plan(plan: RunPlan, missing: int) -> None:
    left = Estimates(plan.store, plan.config.compute.first_guess, plan.processes).of(plan.stages)
    expected = f", about {duration(left)}" if missing else ""
    say(
        f"{plan.config.name}: {counted(len(plan.cells), 'cell')}, {counted(len(plan.stages), 'stage')}: "
        f"{len(plan.stages) - missing} done, {missing} to run{expected}"
    )


def check(sweep: Sweep) -> int:
    """Print a line for each fact about a sweep and each thing that would stop it; returns 2 if one would, else 0."""
    config = sweep.configs[0]
    findings = checks.sweep(sweep.configs)
    for finding in findings:
        if finding.told:
            say(str(finding))
        else:
            print(finding, file=sys.stderr)
    failed = sum(finding.fails for finding in findings)
    warnings = sum(not finding.fails and not finding.told for finding in findings)
    say(
        f"{config.name}: {failed or 'no'} failure{'s' if failed != 1 else ''}, "
        f"{warnings} warning{'s' if warnings != 1 else ''}"
    )
    return 2 if failed else 0


def _end(plan: RunPlan, journal: Journal, arguments: Sequence[str], started: float) -> int:
    """Tidy up, write the report, report failures, and return the exit code of the run."""
    store, config = plan.store, plan.config
    trajectory.drop_all(store, plan.stages)
    paths = write_report(plan, arguments)
    ran = len(journal.events("published"))
    if ran and paths:
        from pipeline import tracking

        tracking.report(config, paths.results_csv, paths.curves, paths.page)
    absent = {stage.key for stage in plan.stages if store.find(stage) is None}
    done = len(plan.stages) - len(absent)
    say(
        f"{counted(ran, 'stage')} {'was' if ran == 1 else 'were'} run and {done - ran} reused"
        if ran
        else f"nothing to run: all {done} stages were done before"
    )
    left = failures.of_run(journal, absent)
    failures.tell(left, arguments)
    results, page = (str(paths.results_csv), str(paths.page)) if paths else (None, None)
    seconds = round(time.monotonic() - started, 1)
    summary = {"results": results, "report": page, "stages_run": ran, "stages_reused": done - ran, "seconds": seconds}
    say(json.dumps(summary))
    return left.exit_code


def verify(store: Store) -> int:
    """Check every file of every entry by checksum, and move damaged entries aside; the next run makes them again."""
    damaged = checked = 0
    for kind in store.kinds():
        for entry in store.entries(kind):
            checked += 1
            if damage := entry.damage(thorough=True):
                damaged += 1
                say(f"{entry.path}: {damage}; moved to {store.set_aside(entry)}")
    say(f"{checked} entries checked, {damaged} damaged")
    return 1 if damaged else 0
