"""A sweep from its configs to its report: the shared data first, then the cells by Hydra's launcher, then the report over all of them."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput, Interrupted, StageFailed
from pipeline import check as checks
from pipeline import inputs as preflight
from pipeline import states
from pipeline.config import Config, validate
from pipeline.execute import Executor
from pipeline.plan import Cell, Stage, merged, plan_cell
from pipeline.run.console import Estimates, Journal, duration
from pipeline.stages import check_budget
from pipeline.store import Store
from pipeline.sweep import CONF, Sweep, out_of_reach

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pipeline.report import ReportPaths
    from pipeline.run.cluster.site import Site

SHARED = (
    "corpus",
    "items",
    "instructions",
    "leaks",
    "base",
    "ct_blocks",
    "sft_blocks",
)  # what cells share, made before any of them is launched
UNDONE = (("failed", "preempted"), ("refused",), ("not_run",))  # events of a stage that was not made
HERE = ("basic", "joblib", "submitit_local")  # launchers that run cells on this machine


def say(line: str) -> None:
    print(line, flush=True)


def plan(sweep: Sweep, network: bool = True) -> list[Cell]:
    """The cells of a sweep, with what they read from outside checked; `network`: whether the hub may be asked."""
    return [plan_cell(config, preflight.inputs(config, network)) for config in sweep.configs]


def missing(store: Store, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that have no entry in the store, or a damaged one."""
    return [stage for stage in stages if (entry := store.find(stage)) is None or entry.damage(thorough=False)]


def run(sweep: Sweep) -> int:
    """Runs what is missing and writes the report. 0; 1 where a stage crashed; 2 where input was refused on the way."""
    started = time.monotonic()
    cells = plan(sweep)
    config, stages = sweep.configs[0], merged(cells)
    site = _site(sweep.site, config)
    store = Store(Path(config.store))
    waiting = missing(store, stages)
    journal = Journal(run_folder(config) / "journal.jsonl")
    left = Estimates(store, config.compute.first_guess, sweep.jobs).of(stages)
    expected = f", about {duration(left)}" if waiting else ""
    say(
        f"{config.name}: {len(cells)} cells, {len(stages)} stages: {len(stages) - len(waiting)} done, {len(waiting)} to run{expected}"
    )
    if waiting:
        if check(sweep):
            return 2
        quiet(config)
        save_plan(journal.path.parent, stages, sweep.jobs)
        here = executor(config, stages, journal, sweep.jobs)
        try:
            if site:
                from pipeline.run import cluster

                cluster.run(site, config, stages, waiting, here, journal, say)
            else:
                if sweep.launcher in HERE:
                    here.run([stage for stage in stages if stage.kind in SHARED])
                    check_budgets(cells, store)
                launch(sweep, journal.path.parent)
        except (StageFailed, Interrupted) as error:  # of what cells share: cells tell of their own in the journal
            tell_failures([{"message": str(error)}], [])
            return 1
    states.drop_all(store, stages)
    paths = write_report(cells, store, config)
    ran = len(journal.events("published"))
    if ran and paths:
        from pipeline import tracking

        tracking.report(config, paths.results_csv, paths.curves, paths.page)
    absent = {stage.key for stage in stages if store.find(stage) is None}
    found = len(stages) - len(absent)
    say(
        f"{ran} stages were run and {found - ran} reused"
        if ran
        else f"nothing to run: all {found} stages were done before"
    )
    failed, refused, not_run = (
        [event for event in journal.events(*names) if event["key"] in absent] for names in UNDONE
    )
    tell_failures([*failed, *refused], not_run)
    results, page = (str(paths.results_csv), str(paths.page)) if paths else (None, None)
    summary = {
        "results": results,
        "report": page,
        "stages_run": ran,
        "stages_reused": found - ran,
        "seconds": round(time.monotonic() - started, 1),
    }
    say(json.dumps(summary))
    return 1 if failed else 2 if refused else 0


def check(sweep: Sweep) -> int:
    """Says everything that would stop a sweep, a line each. 0 where nothing would, else 2."""
    found = checks.sweep(sweep.configs, Store(Path(sweep.configs[0].store)))
    for finding in found:
        print(finding, file=sys.stderr)
    failed = sum(finding.fails for finding in found)
    say(
        f"{sweep.configs[0].name}: {failed or 'no'} failure{'s' if failed != 1 else ''}, {len(found) - failed} warning{'s' if len(found) - failed != 1 else ''}"
    )
    return 2 if failed else 0


def _site(given: str | None, config: Config) -> Site | None:
    if given is None:
        return None
    from pipeline.run.cluster import site

    found = site.read(given)
    site.check(found, config)
    return found


def tell_failures(failed: Sequence[Mapping[str, Any]], not_run: Sequence[Mapping[str, Any]]) -> None:
    """Names what failed, where its log is, what was not run for it, and the command that tries again."""
    for message, log in dict.fromkeys((event["message"], event.get("log")) for event in failed):
        print(message, *([f"  log: {log}"] if log else []), sep="\n", file=sys.stderr)
    for message in dict.fromkeys(event["message"] for event in not_run):
        print(message, file=sys.stderr)
    if failed or not_run:
        print(f"to try again, with what is done kept: {command()}", file=sys.stderr)


def command() -> str:
    """The command line of this run."""
    python = sys.executable if sys.prefix == sys.base_prefix else os.path.relpath(sys.executable)
    return shlex.join([python, "-m", "pipeline", *sys.argv[1:]])


def run_folder(config: Config) -> Path:
    """A new folder for what one run leaves beside its results: plan, journal, Hydra's configs and logs."""
    return Path(config.outputs).absolute() / config.name / "runs" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{os.getpid()}"


def quiet(config: Config) -> None:
    """Libraries keep to themselves: the console is ours. Set before they are imported, and inherited by launched processes."""
    for name, value in {
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    if config.compute.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def save_plan(folder: Path, stages: Sequence[Stage], jobs: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.pickle").write_bytes(pickle.dumps((tuple(stages), jobs)))


def executor(config: Config, stages: Sequence[Stage], journal: Journal, jobs: int) -> Executor:
    from pipeline.tracking import tracker

    return Executor(
        Store(Path(config.store)),
        stages,
        journal,
        first_guess=config.compute.first_guess,
        jobs=jobs,
        say=say,
        track=tracker(config, journal.path.parents[2]),
    )


def check_budgets(cells: Sequence[Cell], store: Store) -> None:
    """Refuses a sweep with a budget that the packed corpus cannot fill, before anything is trained."""
    for cell in cells:
        for stage in cell.stages:
            if stage.kind == "ct" and (blocks := store.find(stage.parents["blocks"])):
                check_budget(blocks.path, stage.settings["tokens"])


def launch(sweep: Sweep, folder: Path) -> None:
    """Hands the cells to Hydra: its sweeper, its launcher, its folders."""
    import hydra

    before = sys.argv
    flags = ["-m"] if sweep.multirun else []
    sys.argv = ["pipeline", *flags, *sweep.overrides, f"hydra.run.dir='{folder}'", f"hydra.sweep.dir='{folder}'"]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run_cell)()
    finally:
        sys.argv = before


def run_cell(composed: DictConfig) -> None:
    """A cell, in whichever process Hydra's launcher starts it. A cell that stops says so in the journal; the others go on."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    job = HydraConfig.get()
    folder = Path(job.sweep.dir if job.mode == RunMode.MULTIRUN else job.run.dir)
    journal = Journal(folder / "journal.jsonl")
    try:
        container = OmegaConf.to_container(composed, resolve=True)
        config = validate(container)  # type: ignore[arg-type]
        if out_of_reach(config):  # Hydra expands the axes by itself
            return
        quiet(config)
        cell = plan_cell(config, preflight.inputs(config))
        stages, jobs = pickle.loads((folder / "plan.pickle").read_bytes())
        worker = executor(config, stages, journal, jobs)
        worker.run(cell.stages)
        if jobs > 1:  # rather than stand idle while a longer cell is made beside it
            worker.run(stages)
    except (StageFailed, Interrupted, BadInput) as error:
        say(f"cell {' '.join(job.overrides.task)} stops: {error}")


def write_report(cells: Sequence[Cell], store: Store, config: Config) -> ReportPaths | None:
    """The report over all cells, a folder a language where there are several; None where nothing was scored yet."""
    from pipeline import report

    languages = list(dict.fromkeys(cell.language for cell in cells))
    written = None
    for language in languages:
        own = [cell for cell in cells if cell.language == language]
        evaluations = [
            report.Evaluation(method, cell.ct_tokens, cell.seed, entry.path)
            for cell in own
            for method, stage in cell.evals.items()
            if (entry := store.find(stage))
        ]
        if not evaluations:
            continue
        merges = [(method, cell, stage) for cell in own for method, stage in cell.merges.items()]
        audits = [
            report.Audit(method, cell.ct_tokens, cell.seed, entry.path)
            for method, cell, stage in merges
            if (entry := store.find(stage))
        ]
        choices = [
            report.Choice(method, cell.ct_tokens, cell.seed, entry.path)
            for method, cell, stage in merges
            if (entry := store.find(stage.parents["tune"]))
        ]
        found = own[0].leaks and store.find(own[0].leaks)
        leaks = json.loads((found.path / "leaks.json").read_text(encoding="utf-8")) if found else None
        records = [entry.record for stage in merged(own) if (entry := store.find(stage))]
        out = Path(config.outputs) / config.name
        configs = {str(cell): cell.config.model_dump() for cell in own}
        subject = report.Subject(
            config.name,
            language,
            own[0].config.language.name,
            configs,
            f"python -m pipeline {shlex.join(sys.argv[1:])}".strip(),
        )
        paths = report.render(
            evaluations, audits, choices, records, out / language if len(languages) > 1 else out, subject, leaks
        )
        say(report.terminal_table(report.gather(evaluations), language))
        for path in (paths.results_csv, paths.results_md, paths.curves, paths.page):
            say(str(path))
        written = written or paths
    return written


def verify(store: Store) -> int:
    """Checks every file of every entry by checksum, and moves damaged entries aside; the next run makes them anew."""
    damaged = checked = 0
    for kind in store.kinds():
        for entry in store.entries(kind):
            checked += 1
            if damage := entry.damage(thorough=True):
                damaged += 1
                say(f"{entry.path}: {damage}; moved to {store.set_aside(entry)}")
    say(f"{checked} entries checked, {damaged} damaged")
    return 1 if damaged else 0
