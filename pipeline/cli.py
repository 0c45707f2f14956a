"""The command line: `slackmerge COMMAND` and `python -m pipeline [COMMAND]`.

`VERBS` are the commands of the pipeline with their help; `merge` and `eval` have command lines in their packages. What
a command needs is imported when it runs: help, completion and refusals are quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from common.command_line import Command
from common.errors import BadInput, StageFailed, user_errors
from common.processes import silence
from common.project import CONF, describe_version

MULTIRUN = "Run all values of the experiment's sweep axes, or of those given here (ct.tokens=32k,128k seed=0,1)."
CONFIG_DIR = (
    "Also read configuration files from FOLDER, such as FOLDER/experiment/mine.yaml or FOLDER/language/xyz.yaml."
)
SETTINGS = """\
\b
Settings. conf/ documents every key; these are common:
  experiment=frontier       a whole experiment (default: tiny)
  ct.tokens=32k             token budget of continual pre-training (k, M, B)
  corpus.path='data/*.txt'  your own text, with language=mine
  sft.path=mine.jsonl       your own instructions (instruction, input, output), or conversations with sft.template
  model.path=folder         any local Hugging Face causal language model
  store=folder              directory for finished stages, reused by later runs
  launcher=gpus             all GPUs of this machine, the default with several; launcher=local: one process
  launcher=joblib           several runs at a time on this machine
  launcher=slurm            jobs on a cluster, with site=my.yaml
"""


@dataclass(frozen=True)
class Verb:
    """The help of a command. takes: settings (`key=value`), folders, or both. words: its other arguments."""

    summary: str
    text: str
    examples: tuple[str, ...]
    takes: tuple[str, ...] = ("settings",)
    words: str = ""


@dataclass(frozen=True)
class Given:
    """The words of a command line: settings and others, whether it is a multirun, and the values of other options."""

    words: list[str]
    multirun: bool
    options: Mapping[str, Any]


VERBS = {
    "run": Verb(
        "Run the unfinished stages of an experiment and write the report.",
        "Stages that the store already has are reused, so a second run of the same command computes nothing. "
        "An interrupted run resumes where it stopped. "
        "The last line is one JSON object: results, report, stages_run, stages_reused, seconds.",
        (
            "-m experiment=tiny",
            "experiment=tiny ct.tokens=40k seed=3",
            "-m experiment=paper launcher=slurm site=my.yaml",
        ),
    ),
    "plan": Verb(
        "List finished and unfinished stages; with cluster=8xH100, estimate what they cost.",
        "Nothing is computed. With cluster=8xH100 (or cluster=here) the plan shows tokens, FLOPs, GPU-hours, "
        "memory, disk and hours. mfu=0.4 sets the share of the peak FLOP/s that training reaches.",
        (
            "-m experiment=tiny",
            "-m experiment=paper cluster=8xH100",
            "experiment=tiny model.path=my-model cluster=here",
        ),
    ),
    "check": Verb(
        "Validate data, models, tasks and disk space without running anything.",
        "Checks access, text, tasks, tokenizer and disk, and prints every problem that it finds. "
        "`run` makes the same checks before it starts.",
        ("-m experiment=tiny", "language=mine corpus.path='data/*.txt'"),
    ),
    "watch": Verb(
        "Show the progress of a run and update its report.",
        "FOLDER is outputs/<experiment>, or a folder that holds several; the newest run in it is shown "
        "(default: outputs). Ctrl-C ends the display and not the run.",
        ("", "outputs/tiny"),
        ("folders",),
    ),
    "report": Verb(
        "Write a report for a sweep, for several folders (compared), or for lm-eval output.",
        "Without FOLDER, the report of the experiment that the settings name, from what is finished. "
        "FOLDER is outputs/<experiment>, or what lm-eval wrote (--output_path with --log_samples). "
        "Several folders are compared in one report. With FOLDER, the only setting is out=FOLDER, "
        "where the report is written.",
        ("-m experiment=tiny", "outputs/tiny", "outputs/tiny outputs/evidence out=comparison"),
        ("settings", "folders"),
    ),
    "make": Verb(
        "Compute one stage of an experiment, and its parents if they are missing.",
        "KIND and SLUG (or the key) are those that `plan` prints for the same settings. Missing parents are computed "
        "first; before it starts, the command prints how many stages that is and about how long they take. "
        "It computes in this process, and may run beside `run` on the same store. The last line is one JSON object: "
        "folder, stages_run, seconds.",
        (
            "ct nya-4096-s0 experiment=test",
            "eval nya-ties_sv_1-450k-s0 -m experiment=tiny",
            "weights nya-ties_sv_1-4096-s0 experiment=test",
        ),
        words="KIND SLUG",
    ),
    "push": Verb(
        "Upload a checkpoint to the Hugging Face Hub.",
        "FOLDER holds a model or an adapter. KIND and SLUG name a checkpoint of the store, as `plan` prints them for "
        "the same settings. Weights, config, tokenizer, chat template, model card and merge.yml are uploaded, and "
        "nothing else. The token is HF_TOKEN, or that of `hf auth login`. A repository that holds other files is left "
        "alone. The last line is the address.",
        (
            "merged/ me/my-model --private",
            "ct nya-4096-s0 me/my-ct experiment=test --dry-run",
            "weights nya-ties_sv_1-450k-s0 me/my-merge -m experiment=tiny",
            "store/ct/my-lora/adapter me/my-lora --base OWNER/BASE",
        ),
        words="{FOLDER | KIND SLUG} OWNER/NAME",
    ),
    "verify": Verb(
        "Compare every file in the store with its checksum.",
        "Damaged entries are moved aside; the next run computes them again.",
        ("", "store=/data/store"),
    ),
}


OPTIONS: dict[str, tuple[click.Option, ...]] = {
    "plan": (
        click.Option(
            ["--memory-table"],
            is_flag=True,
            help="Print which model sizes train on GPUs of 16 to 80 GB, and nothing else.",
        ),
    ),
    "push": (
        click.Option(["--private"], is_flag=True, help="Make the repository private. An existing one is not changed."),
        click.Option(
            ["--revision"],
            metavar="BRANCH",
            default="main",
            show_default=True,
            help="Branch to upload to, made if it is missing. A new branch holds the upload alone.",
        ),
        click.Option(["--replace"], is_flag=True, help="Delete what the branch holds besides the upload."),
        click.Option(["--dry-run"], is_flag=True, help="List the files and their sizes; ask the Hub nothing."),
        click.Option(["--base"], metavar="OWNER/NAME", help="Of an adapter: the model of the Hub that it is for."),
    ),
}


def choices() -> dict[str, list[str]]:
    """Return the groups of conf/ and the choices of each."""
    folders = sorted(folder for folder in CONF.iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


class PipelineCommand(Command):
    """A command whose usage line names its arguments, and whose help lists groups and common keys of settings."""

    def __init__(self, name: str, verb: Verb) -> None:
        options: list[click.Parameter] = [
            click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, shell_complete=complete),
            click.Option(["-m", "--multirun"], is_flag=True, help=MULTIRUN),
            click.Option(["--config-dir"], metavar="FOLDER", multiple=True, help=CONFIG_DIR),
        ]
        options += OPTIONS.get(name, ())
        super().__init__(
            name, verb.summary, verb.text, verb.examples, options if "settings" in verb.takes else options[:1]
        )
        self.verb = verb

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return what the usage line shows after the name of the command."""
        words = [self.verb.words] if self.verb.words else []
        settings = [*words, "[GROUP=CHOICE]...", "[KEY=VALUE]..."] if "settings" in self.verb.takes else words
        options = ["[OPTIONS]"] if len(self.params) > 1 else []
        return [*options, *settings, *(["[FOLDER]..."] if "folders" in self.verb.takes else [])]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write examples; for a command that composes a configuration, also groups, choices and common keys."""
        super().format_epilog(ctx, formatter)
        if "settings" in self.verb.takes and self.name != "verify":
            with formatter.section("Groups and their choices"):
                formatter.write_dl([(group, ", ".join(names)) for group, names in choices().items()])
            formatter.write_paragraph()
            formatter.write(SETTINGS.removeprefix("\b\n"))


def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete `experiment=ti` to `experiment=tiny`. Bash has split it at the `=` already, and wants `tiny` alone.

    The first word of a command that takes a stage is a kind.
    """
    groups = choices()
    takes_stage = isinstance(context.command, PipelineCommand) and "KIND" in context.command.verb.words
    if takes_stage and not context.params.get("words"):
        from pipeline.stages import STAGE_TYPES  # late: it takes half a second

        kinds = [CompletionItem(kind) for kind in STAGE_TYPES if kind.startswith(incomplete)]
        return [*kinds, CompletionItem(incomplete, type="file")]
    group, equals, start = incomplete.rpartition("=")
    before = [word for word in context.params.get("words") or () if word != "="][-1:]
    if not equals and before and before[0] in groups:
        group = before[0]
    if group:
        kept = f"{group}=" if equals else ""
        return [CompletionItem(kept + choice) for choice in groups.get(group, ()) if choice.startswith(start)]
    matching = [CompletionItem(f"{group}=") for group in groups if group.startswith(incomplete)]
    return matching or [CompletionItem(incomplete, type="file")]


def overview(program: str) -> str:
    """Return the help of `python -m pipeline`."""
    width = max(map(len, VERBS)) + 2
    lines = [f"  {name:{width}}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            f"Usage: {program} COMMAND [OPTIONS] [ARGUMENTS]...",
            "",
            "Commands (default: run):",
            *lines,
            "",
            f"`{program} COMMAND --help` describes one command.",
        ]
    )


def parse(verb: str, words: list[str], program: str) -> Given:
    """Read the words of a command: its options, settings, folders and other words.

    Raises click.exceptions.Exit after printing the help, click.ClickException for an unknown option, and BadInput.
    """
    parameters = PipelineCommand(verb, VERBS[verb]).make_context(f"{program} {verb}", words).params
    options = dict(parameters)
    folders, multirun = options.pop("config_dir", ()) or (), bool(options.pop("multirun", False))
    return Given([*_search_path(folders), *options.pop("words")], multirun, options)


def _search_path(folders: tuple[str, ...]) -> list[str]:
    """Return the override that has Hydra search further folders."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise BadInput(
                f"--config-dir: no such folder, got {folder}. Pass a folder that holds groups, such as language/."
            )
    listed = ",".join(f"'file://{Path(folder).absolute()}'" for folder in folders)
    return [f"hydra.searchpath=[{listed}]"] if folders else []


# --- `python -m pipeline`


def pipeline_main(arguments: Sequence[str] | None = None, program: str = "python -m pipeline") -> int:
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

    try:
        with user_errors():
            return _act(verb, parse(verb, words, program), arguments, program)
    except click.exceptions.Exit as exit:  # the help is printed
        return exit.exit_code
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
    """Carry out a command. arguments: the complete command line, as given."""

    if given.options.get("memory_table"):
        from pipeline.cost import table

        print(table.memory_table())
        return 0
    names = [word for word in given.words if "=" not in word and not word.startswith("~")]
    settings = [word for word in given.words if word not in names]
    if verb == "watch":
        from pipeline.run import display

        return display.watch(Path(names[0] if names else "outputs"))
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
    from pipeline.run.make import make

    if len(names) != 2:
        raise BadInput(
            f"make: takes KIND and SLUG, got {' '.join(names) or 'neither'}. "
            f"{program} plan prints them; settings are key=value."
        )
    return make(names[0], names[1], settings, multirun, arguments)


def report_folders(folders: Sequence[str], others: Sequence[str]) -> int:
    """Write the report of results in folders. others: `out=FOLDER`, for the report."""
    from pipeline.report.sources import render_folders

    if wrong := [other for other in others if not other.startswith("out=")]:
        raise BadInput(f"{wrong[0]}: a report of folders accepts only out=FOLDER. Leave it out.")
    out = Path(others[-1].removeprefix("out=")) if others else None
    paths = render_folders([Path(folder) for folder in folders], out)
    print(paths.table, paths.page, sep="\n")
    return 0


def command(verb: str, overrides: Sequence[str], multirun: bool, arguments: Sequence[str]) -> int:
    """Carry out a command on a sweep. arguments: the complete command line, as given."""
    if verb == "plan":
        from pipeline.run import plan_table

        return plan_table.show(overrides, multirun)
    from pipeline import run_plan, sweep
    from pipeline.run import collect, run
    from pipeline.run.cluster import site
    from pipeline.store import Store

    expanded = sweep.expand(overrides, multirun)
    if expanded.site is not None:
        site.read(expanded.site)
    if verb == "run":
        return run.run(expanded, arguments)
    if verb == "check":
        return run.check(expanded)
    store = expanded.configs[0].store
    if verb == "verify":
        return run.verify(Store(Path(store)))
    if collect.write_report(run_plan.plan(expanded), arguments) is None:
        raise BadInput(f"store={store}: no result of this sweep is there yet. Run the sweep first.")
    return 0


# --- `slackmerge`

# name: what it does, and `module:function`, which gets the arguments and the name of the command
COMMANDS = {
    **{name: (verb.summary, "pipeline.cli:pipeline_main") for name, verb in VERBS.items()},
    "merge": ("Merge checkpoints by a recipe of slackmerge or a mergekit configuration.", "merge.cli:main"),
    "eval": ("Score one checkpoint with lm-eval.", "eval.__main__:main"),
}


def _print_version(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        print(f"slackmerge {describe_version()}")
        context.exit()


class _Commands(click.Group):
    """The commands. To run one, its words are handed over; to complete its words, its options are looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order in which an experiment needs them."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the name of the command that a line begins with, the command, and the other words."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command_of(name) if name in COMMANDS and ctx.resilient_parsing else command, rest


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`slackmerge COMMAND --help` describes one command. For completion of commands and settings in bash: "
    'eval "$(_SLACKMERGE_COMPLETE=bash_source slackmerge)"; zsh and fish likewise.',
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version (from a clone, the commit too) and exit.",
)
def slackmerge() -> None:
    """Model merging for low-resource languages: continual pre-training, SFT, merges with slack, evaluation."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 a stage crashed, 2 bad input (one line on stderr), 130 after Ctrl-C."""
    try:
        return int(slackmerge.main(arguments, "slackmerge", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        print(f"slackmerge: {error.format_message()}", file=sys.stderr)
        return error.exit_code


def _hand_over(name: str, place: str, arguments: Sequence[str]) -> int:
    module, _, function = place.partition(":")
    command: Callable[[Sequence[str], str], int] = getattr(import_module(module), function)
    try:
        if module.startswith("pipeline"):
            return command([name, *arguments], "slackmerge")
        code = command(list(arguments), f"slackmerge {name}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    with suppress(OSError, ValueError):  # the program that read it has ended
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # everything is on disk: torch would take half a second more to take itself apart


def command_of(name: str) -> click.Command:
    """Return a command with its options."""
    if name in VERBS:
        return PipelineCommand(name, VERBS[name])
    command: click.Command = import_module(COMMANDS[name][1].partition(":")[0]).COMMAND
    return command


for _name, (_summary, _place) in COMMANDS.items():
    slackmerge.add_command(
        click.Command(
            _name,
            context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
            params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
            callback=partial(_hand_over, _name, _place),
            short_help=_summary,
            add_help_option=False,  # each prints its help itself
        )
    )


if __name__ == "__main__":
    sys.exit(main())
