"""`python -m pipeline`: the entry point."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

HELP = """\
python -m pipeline [run|plan|check|report|verify] [-m] [group=choice] [key=value] ...

  run      make what is missing, then write the report (the default)
  plan     say which stages are done and which would run; computes nothing. With cluster=8xH100 (or cluster=here) also what they cost:
           tokens, FLOPs, GPU-hours (mfu=0.4 to state the utilisation), memory, disk, hours
  check    look at everything that can be refused before an hour is spent: access, text, tasks, tokenizer, disk; `run` does so too
  report   write the report over what is done
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

A second run of the same thing runs nothing. The last line is one JSON object: results, report, stages_run, stages_reused, seconds.
"""
VERBS = ("run", "plan", "check", "report", "verify")
CONF = Path(__file__).parents[1] / "conf"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a stage crashed, 2 bad input, said in one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given.pop(0) if given and given[0] in VERBS else "run"
    if {"-h", "--help", "help"} & set(given):
        groups = {
            folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
            for folder in sorted(CONF.iterdir())
            if folder.is_dir()
        }
        print(
            HELP.format(groups="\n".join(f"  {group:12}{', '.join(choices)}" for group, choices in groups.items())),
            end="",
        )
        return 0
    multirun = bool({"-m", "--multirun"} & set(given))
    overrides = [argument for argument in given if argument not in ("-m", "--multirun")]

    from common.errors import BadInput, StageFailed

    try:
        for argument in overrides:
            if "=" not in argument and not argument.startswith("~"):
                raise BadInput(
                    f"{argument}: neither a verb ({', '.join(VERBS)}) nor key=value; see python -m pipeline --help"
                )
        return command(verb, overrides, multirun)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except StageFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, and the next run goes on from there", file=sys.stderr)
        return 130


def command(verb: str, overrides: Sequence[str], multirun: bool) -> int:
    """Does what the verb says."""
    from common.errors import BadInput
    from pipeline import sweep
    from pipeline.run import local as run
    from pipeline.store import Store

    if verb == "plan":
        return plan(overrides, multirun)
    expanded = sweep.expand(overrides, multirun)
    config = expanded.configs[0]
    store = Store(Path(config.store))
    if verb == "run":
        return run.run(expanded)
    if verb == "verify":
        return run.verify(store)
    if verb == "check":
        return run.check(expanded)
    if run.write_report(run.plan(expanded), store, config) is None:
        raise BadInput(f"store={store.root}: nothing of this sweep is scored yet; run it first")
    return 0


def plan(overrides: Sequence[str], multirun: bool) -> int:
    """Prints the plan, with its costs where a cluster is named. Raises BadInput where the cluster cannot hold it."""
    from common.errors import BadInput
    from pipeline import sweep
    from pipeline.run import local as run
    from pipeline.store import Store

    asked = dict(argument.split("=", 1) for argument in overrides if argument.startswith(("cluster=", "mfu=")))
    expanded = sweep.expand([argument for argument in overrides if argument.partition("=")[0] not in asked], multirun)
    cells, store = run.plan(expanded, network=False), Store(Path(expanded.configs[0].store))
    if "cluster" not in asked:
        print(table(cells, store))
        return 0
    from pipeline.cost.table import report
    from pipeline.plan import merged

    try:
        mfu = float(asked["mfu"]) if "mfu" in asked else None
    except ValueError:
        mfu = 0.0
    if mfu is not None and not 0 < mfu <= 1:
        raise BadInput(
            f"mfu={asked['mfu']}: give the share of the peak FLOP/s that training reaches, above 0 and at most 1, such as 0.4"
        )
    text, refusal = report(cells, {stage.key for stage in run.missing(store, merged(cells))}, asked["cluster"], mfu)
    print(text)
    if refusal:
        raise BadInput(refusal)
    return 0


def table(cells: Sequence[object], store: object) -> str:
    """The plan for people: each stage, whether it is done, and how many cells share it."""
    from pipeline.plan import Cell, merged
    from pipeline.run.local import missing
    from pipeline.store import Store

    assert isinstance(store, Store)
    of = [cell for cell in cells if isinstance(cell, Cell)]
    stages = merged(of)
    waiting = {stage.key for stage in missing(store, stages)}
    shared = Counter(stage.key for cell in of for stage in cell.stages)
    width = max(len(stage.slug) for stage in stages)
    lines = [f"{'kind':13}{'stage':{width + 2}}{'key':14}{'cells':>5}  state"]
    for stage in stages:
        state = "to run" if stage.key in waiting else "done"
        lines.append(f"{stage.kind:13}{stage.slug:{width + 2}}{stage.key:14}{shared[stage.key]:5}  {state}")
    lines.append(f"{len(of)} cells, {len(stages)} stages: {len(stages) - len(waiting)} done, {len(waiting)} to run")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
