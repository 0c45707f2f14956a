"""`slackmerge run`: a sweep from its configs to its report: plan, check, compute, report, and list what failed.

`check` and `verify` are here too.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.errors import Interrupted, StageFailed
from common.units import counted, duration
from pipeline import check as checks
from pipeline import inputs, journal, locks, run_plan
from pipeline.config import Config
from pipeline.journal import Journal
from pipeline.run import cells, cluster, gpus
from pipeline.run.collect import write_report
from pipeline.run.display import Estimates, RunView, print_line, shown
from pipeline.run_plan import RunPlan
from pipeline.stages import trajectory
from pipeline.store import Store
from pipeline.sweep import GPUS, Sweep


def run(sweep: Sweep, arguments: Sequence[str]) -> int:
    """Run what is missing and write the report. arguments: of the command line, to say how to try again.

    Returns the exit code: 0; 1 if a stage crashed; 2 if input was rejected on the way. Raises BadInput.
    """
    started = time.monotonic()
    plan = replace(run_plan.plan(sweep), arguments=tuple(arguments))
    site = cluster.site_of(sweep, plan.config)
    missing = plan.missing()
    devices: tuple[str, ...] = ()
    if missing and sweep.launcher in (*cells.LAUNCHERS, GPUS):
        inputs.check_device(plan.config.compute, plan.config.eval.gpus)
        sweep, devices = gpus.choose_launcher(sweep, plan.config.compute)
        plan = replace(plan, processes=sweep.processes)
    _print_plan(plan, len(missing))
    if devices:
        gpus.check(plan, devices)
        print_line(f"launcher=gpus: {len(devices)} GPUs, one process per piece of work")
    events = Journal(plan.new_folder() / journal.FILE)
    folder = events.path.parent
    if missing:
        if print_findings(plan, checks.check_plan(plan)):
            return 2
        if warning := locks.check(plan.store.root):
            print_line(f"warning: {warning}")
        plan.save(folder)
        executor = cells.run_executor(plan, events)
        try:
            with shown(RunView(plan, events.path)):
                if site:
                    cluster.compute(site, plan, missing, executor)
                elif devices:
                    gpus.compute(plan, executor, devices)
                else:
                    cells.compute_cells(sweep, plan, executor, folder)
        except (StageFailed, Interrupted) as error:  # of stages that cells share: those of cells are in the journal
            report_failures([{"event": "failed", "message": str(error)}], arguments)
            return 1
    return _end(plan, events, arguments, started)


def _print_plan(plan: RunPlan, missing: int) -> None:
    expected = f", about {duration(Estimates.of_plan(plan).total(plan.stages))}" if missing else ""
    print_line(
        f"{plan.config.name}: {counted(len(plan.cells), 'cell')}, {counted(len(plan.stages), 'stage')}: "
        f"{len(plan.stages) - missing} done, {missing} to run{expected}"
    )


def check(sweep: Sweep) -> int:
    """Print a line for each fact about a sweep and each thing that would stop it; return 2 if one would, else 0."""
    return print_findings(*check_configs(sweep.configs))


def check_configs(configs: Sequence[Config]) -> tuple[RunPlan, list[checks.Finding]]:
    """Plan cells as far as their inputs allow, without the network, and return the plan and what is wrong with it."""
    plan, rejections = run_plan.plan_for_checks(configs)
    findings = [*(checks.Finding(True, rejection) for rejection in rejections), *checks.check_plan(plan)]
    return plan, list(dict.fromkeys(findings))


def print_findings(plan: RunPlan, findings: Sequence[checks.Finding]) -> int:
    """Print findings, facts on stdout and the others on stderr; return 2 if one is a failure, else 0."""
    for finding in findings:
        if finding.fact:
            print_line(str(finding))
        else:
            print(finding, file=sys.stderr)
    failed = sum(finding.fails for finding in findings)
    warnings = sum(not finding.fails and not finding.fact for finding in findings)
    print_line(
        f"{plan.config.name}: {failed or 'no'} failure{'s' if failed != 1 else ''}, "
        f"{warnings} warning{'s' if warnings != 1 else ''}"
    )
    return 2 if failed else 0


def _end(plan: RunPlan, events: Journal, arguments: Sequence[str], started: float) -> int:
    """Tidy up, write the report, report failures, and return the exit code of the run."""
    store, config = plan.store, plan.config
    trajectory.drop_all(store, plan.stages)
    paths = write_report(plan, arguments)
    ran = len(events.events("published"))
    if ran and paths:
        from pipeline import tracking

        tracking.report(config, paths.results_csv, paths.curves, paths.page)
    missing = {stage.key for stage in plan.stages if store.find(stage) is None}
    done = len(plan.stages) - len(missing)
    print_line(
        f"{counted(ran, 'stage')} {'was' if ran == 1 else 'were'} run and {done - ran} reused"
        if ran
        else f"nothing to run: all {done} stages were done before"
    )
    failures = failures_of(events, missing)
    report_failures(failures, arguments)
    results, page = (str(paths.results_csv), str(paths.page)) if paths else (None, None)
    seconds = round(time.monotonic() - started, 1)
    summary = {"results": results, "report": page, "stages_run": ran, "stages_reused": done - ran, "seconds": seconds}
    print_line(json.dumps(summary))
    names = {event["event"] for event in failures}
    return 1 if names & {"failed", "preempted"} else 2 if "refused" in names else 0


# --- what was not computed


def failures_of(events: Journal, missing: Collection[str]) -> list[dict[str, Any]]:
    """Return the events that say why stages, given by their keys, are not in the store: crashes first."""
    found = [event for event in events.events(*journal.FAILURES) if event["key"] in missing]
    order = {"failed": 0, "preempted": 0, "refused": 1, "not_run": 2}
    return sorted(found, key=lambda event: order[event["event"]])


def report_failures(failures: Sequence[Mapping[str, Any]], arguments: Sequence[str]) -> None:
    """Print what failed, where its log is, what was not run because of it, and the command that tries again."""
    for message, log in dict.fromkeys((event["message"], event.get("log")) for event in failures):
        print(message, *([f"  log: {log}"] if log else []), sep="\n", file=sys.stderr)
    if failures:
        print(f"to try again, with what is done kept: {_command(arguments)}", file=sys.stderr)


def _command(arguments: Sequence[str]) -> str:
    """Return the command line of a run, from the folder that it was started in."""
    if os.path.basename(sys.argv[0]) == "slackmerge":
        return shlex.join(["slackmerge", *arguments])
    python = sys.executable if sys.prefix == sys.base_prefix else os.path.relpath(sys.executable)
    return shlex.join([python, "-m", "pipeline", *arguments])


# --- `slackmerge verify`


def verify(store: Store) -> int:
    """Check every file of every entry by checksum, and move damaged entries away; the next run computes them again."""
    damaged = checked = 0
    for kind in store.kinds():
        for entry in store.entries(kind):
            checked += 1
            if damage := entry.damage(thorough=True):
                damaged += 1
                print_line(f"{entry.path}: {damage}; moved to {store.quarantine(entry)}")
    print_line(f"{checked} entries checked, {damaged} damaged")
    return 1 if damaged else 0
