"""`python -m pipeline`: the entry point."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HELP = """\
{program} [run|plan|check|report|watch|verify] [-m] [group=choice] [key=value] ...
{program} report FOLDER ... [out=FOLDER]
{program} watch [FOLDER]

  run      make what is missing, then write the report (the default)
  plan     say which stages are done and which would run; computes nothing. With cluster=8xH100 (or cluster=here)
           also what they cost: tokens, FLOPs, GPU-hours (mfu=0.4 to state the utilisation), memory, disk, hours.
           plan --memory-table prints which model sizes train on GPUs of 16 to 80 GB
  check    look at everything that can be refused before an hour is spent: access, text, tasks, tokenizer, disk;
           `run` does so too
  report   write the report over what is done; of FOLDERs, draw it anew: of outputs/<experiment>, or of what lm-eval
           wrote by itself (--output_path, --log_samples); several are compared
  watch    show a run of outputs/<experiment> as it goes, the newest where FOLDER is left out; draws the page as cells
           are scored
  verify   check every file in the store by checksum; damaged entries are moved aside and made anew by the next run

  -m       a multirun: all values of the experiment's sweep axes, or of those given here (ct.tokens=32k,128k seed=0,1)

Groups and their choices:
{groups}

Keys are explained where they stand, in conf/. Some that are often set:
  ct.tokens=32k             token budget of continual pre-training (k, M, B)
  corpus.path='data/*.txt'  your own text, with language=mine
  sft.path=mine.jsonl       your own instructions (instruction, input, output)
  model.path=folder         any local Hugging Face causal language model
  store=folder              where finished stages live and are found again
  launcher=gpus             all GPUs of this machine, the default with several; launcher=local: one process
  launcher=joblib           cells side by side on this machine; launcher=slurm site=my.yaml: jobs on a cluster

A second run of the same thing runs nothing.
The last line is one JSON object: results, report, stages_run, stages_reused, seconds.
"""
VERBS = ("run", "plan", "check", "report", "watch", "verify")
CONF = Path(__file__).parents[1] / "conf"


def main(arguments: Sequence[str] | None = None, program: str = "python -m pipeline") -> int:
    """Exit code: 0 done, 1 a stage crashed, 2 bad input, said in one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = list(arguments)
    verb = given.pop(0) if given and given[0] in VERBS else "run"
    if {"-h", "--help", "help"} & set(given):
        groups = {
            folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
            for folder in sorted(CONF.iterdir())
            if folder.is_dir()
        }
        print(
            HELP.format(
                program=program,
                groups="\n".join(f"  {group:12}{', '.join(choices)}" for group, choices in groups.items()),
            ),
            end="",
        )
        return 0
    multirun = bool({"-m", "--multirun"} & set(given))
    overrides = [argument for argument in given if argument not in ("-m", "--multirun")]

    from yaml import MarkedYAMLError

    from common.errors import BadInput, StageFailed, in_one_line

    try:
        with in_one_line():
            folders = [argument for argument in overrides if "=" not in argument and not argument.startswith("~")]
            if verb == "plan" and "--memory-table" in overrides:
                from pipeline.cost import memory_table

                print(memory_table.markdown())
                return 0
            if verb == "watch":
                from pipeline.run import live

                return live.watch(Path(folders[0] if folders else "outputs"))
            if verb == "report" and folders:
                return report_folders(folders, [argument for argument in overrides if argument not in folders])
            for argument in overrides:
                if "=" not in argument and not argument.startswith("~"):
                    raise BadInput(
                        f"{argument}: neither a verb ({', '.join(VERBS)}) nor key=value; see {program} --help"
                    )
            return command(verb, overrides, multirun, arguments)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except MarkedYAMLError as error:  # of Hydra, which reads the files of conf/
        mark = error.problem_mark or error.context_mark
        where = f"{mark.name}: line {mark.line + 1}: " if mark else ""
        print(f"{where}not YAML: {error.problem or error.context}; mend it there", file=sys.stderr)
        return 2
    except StageFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, and the next run goes on from there", file=sys.stderr)
        return 130


def report_folders(folders: Sequence[str], others: Sequence[str]) -> int:
    """The report of results that lie in folders. `others`: `out=FOLDER`, where it is to be written."""
    from common.errors import BadInput
    from pipeline.report.folders import report

    if wrong := [other for other in others if not other.startswith("out=")]:
        raise BadInput(f"{wrong[0]}: a report of folders takes out=FOLDER and nothing else")
    out = Path(others[-1].removeprefix("out=")) if others else None
    paths = report([Path(folder) for folder in folders], out)
    print(paths.table, paths.page, sep="\n")
    return 0


def command(verb: str, overrides: Sequence[str], multirun: bool, arguments: Sequence[str]) -> int:
    """Does what the verb says. `arguments`: the whole command line, as given."""
    from common.errors import BadInput
    from pipeline import sweep
    from pipeline.run import collect, plan_table, run_plan, sweep_run
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
        raise BadInput(f"store={store}: nothing of this sweep is scored yet; run it first")
    return 0


if __name__ == "__main__":
    sys.exit(main())
