"""The help of each command of the pipeline: what it does, examples, options. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from common.command_line import Command
from common.errors import BadInput
from common.project import CONF
from pipeline.stages.stage import STAGE_TYPES

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
    """A command. takes: settings (`key=value`), folders, or both. words: what else it takes, in its usage line."""

    summary: str
    text: str
    examples: tuple[str, ...]
    takes: tuple[str, ...] = ("settings",)
    words: str = ""


@dataclass(frozen=True)
class Given:
    """What a command got: settings and other words, whether it is a multirun, and the values of its own options."""

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


OWN_OPTIONS: dict[str, tuple[click.Option, ...]] = {
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
    """Groups of conf/ and the choices of each."""
    folders = sorted(folder for folder in CONF.iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


class PipelineCommand(Command):
    """A command whose usage line names what it takes, and whose help lists groups and common keys of settings."""

    def __init__(self, name: str, verb: Verb) -> None:
        options: list[click.Parameter] = [
            click.Argument(["words"], nargs=-1, type=click.UNPROCESSED, shell_complete=complete),
            click.Option(["-m", "--multirun"], is_flag=True, help=MULTIRUN),
            click.Option(["--config-dir"], metavar="FOLDER", multiple=True, help=CONFIG_DIR),
        ]
        options += OWN_OPTIONS.get(name, ())
        super().__init__(
            name, verb.summary, verb.text, verb.examples, options if "settings" in verb.takes else options[:1]
        )
        self.verb = verb

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """What the usage line shows behind the name of the command."""
        words = [self.verb.words] if self.verb.words else []
        settings = [*words, "[GROUP=CHOICE]...", "[KEY=VALUE]..."] if "settings" in self.verb.takes else words
        options = ["[OPTIONS]"] if len(self.params) > 1 else []
        return [*options, *settings, *(["[FOLDER]..."] if "folders" in self.verb.takes else [])]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples; groups, choices and common keys of a command that composes a configuration."""
        super().format_epilog(ctx, formatter)
        if "settings" in self.verb.takes and self.name != "verify":
            with formatter.section("Groups and their choices"):
                formatter.write_dl([(group, ", ".join(names)) for group, names in choices().items()])
            formatter.write_paragraph()
            formatter.write(SETTINGS.removeprefix("\b\n"))


def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`experiment=ti` to `experiment=tiny`. Bash has split it at the `=` already, and wants `tiny` alone.

    The first word of a command that takes a stage is a kind.
    """
    groups = choices()
    takes_stage = isinstance(context.command, PipelineCommand) and "KIND" in context.command.verb.words
    if takes_stage and not context.params.get("words"):
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
    """The help of the pipeline as a whole."""
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
    """The override that has Hydra look into further folders."""
    for folder in folders:
        if not Path(folder).is_dir():
            raise BadInput(
                f"--config-dir: no such folder, got {folder}. Pass a folder that holds groups, such as language/."
            )
    listed = ",".join(f"'file://{Path(folder).absolute()}'" for folder in folders)
    return [f"hydra.searchpath=[{listed}]"] if folders else []
