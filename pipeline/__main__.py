"""`python -m pipeline`: the entry point."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from common.processes import silence
from pipeline.commands import VERBS, Given, overview, parse


def main(arguments: Sequence[str] | None = None, program: str = "python -m pipeline") -> int:
    """Return the exit code: 0 done, 1 a stage crashed, 2 bad input (one line on stderr), 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    silence()
    given = list(arguments)
    if given and given[0] in ("-h", "--help", "help"):
        print(overview(program))
        return 0
    verb = given.pop(0) if given and given[0] in VERBS else "run"
    words = ["--help" if word == "help" else word for word in given]

    from yaml import MarkedYAMLError

    from common.errors import BadInput, StageFailed, user_errors

    try:
        with user_errors():
            return _act(verb, parse(verb, words, program), arguments, program)
    except click.exceptions.Exit as asked:  # the help is printed
        return asked.exit_code
    except click.ClickException as error:
        print(f"{program} {verb}: {error.format_message()} See {program} {verb} --help.", file=sys.stderr)
        return error.exit_code
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except MarkedYAMLError as error:  # of Hydra, which reads the files of conf/
        mark = error.problem_mark or error.context_mark
        where = f"{mark.name}: line {mark.line + 1}: " if mark else ""
        print(f"{where}not YAML: {error.problem or error.context}. Correct it there.", file=sys.stderr)
        return 2
    except StageFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished stages are kept, and the next run resumes", file=sys.stderr)
        return 130


def _act(verb: str, given: Given, arguments: Sequence[str], program: str) -> int:
    """Do what a command says. `arguments`: the whole command line, as given."""
    from common.errors import BadInput

    if given.options.get("memory_table"):
        from pipeline.cost import table

        print(table.memory_table())
        return 0
    names = [word for word in given.words if "=" not in word and not word.startswith("~")]
    settings = [word for word in given.words if word not in names]
    if verb == "watch":
        from pipeline.run import live

        return live.watch(Path(names[0] if names else "outputs"))
    if verb == "make":
        return _make(names, settings, given.multirun, arguments, program)
    if verb == "push":
        from pipeline.run import push

        return push.push(names, settings, given.multirun, push.Options(**given.options))
    if verb == "report" and names:
        return report_folders(names, settings)
    if names:
        raise BadInput(f"{names[0]}: neither a command ({', '.join(VERBS)}) nor key=value. See {program} --help.")
    return command(verb, given.words, given.multirun, arguments)


def _make(names: Sequence[str], settings: Sequence[str], multirun: bool, arguments: Sequence[str], program: str) -> int:
    """Compute one stage."""
    from common.errors import BadInput
    from pipeline.run import one_stage

    if len(names) != 2:
        raise BadInput(
            f"make: takes KIND and SLUG, got {' '.join(names) or 'neither'}. "
            f"{program} plan prints them; settings are key=value."
        )
    return one_stage.make(names[0], names[1], settings, multirun, arguments)


def report_folders(folders: Sequence[str], others: Sequence[str]) -> int:
    """The report of results that lie in folders. `others`: `out=FOLDER`, where it is to be written."""
    from common.errors import BadInput
    from pipeline.report.sources import report

    if wrong := [other for other in others if not other.startswith("out=")]:
        raise BadInput(f"{wrong[0]}: a report of folders accepts only out=FOLDER. Leave it out.")
    out = Path(others[-1].removeprefix("out=")) if others else None
    paths = report([Path(folder) for folder in folders], out)
    print(paths.table, paths.page, sep="\n")
    return 0


def command(verb: str, overrides: Sequence[str], multirun: bool, arguments: Sequence[str]) -> int:
    """Carry out a command on a sweep. `arguments`: the whole command line, as given."""
    from common.errors import BadInput
    from pipeline import run_plan, sweep
    from pipeline.run import collect, plan_table, sweep_run
    from pipeline.run.cluster import site
    from pipeline.store import Store

    if verb == "plan":
        return plan_table.show(overrides, multirun)
    expanded = sweep.expand(overrides, multirun)
    if expanded.site is not None:
        site.read(expanded.site)
    if verb == "run":
        return sweep_run.run(expanded, arguments)
    if verb == "check":
        return sweep_run.check(expanded)
    store = expanded.configs[0].store
    if verb == "verify":
        return sweep_run.verify(Store(Path(store)))
    if collect.write_report(run_plan.plan(expanded), arguments) is None:
        raise BadInput(f"store={store}: no result of this sweep is there yet. Run the sweep first.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
