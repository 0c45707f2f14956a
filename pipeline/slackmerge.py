"""`slackmerge`: one command for the pipeline, merging and scoring. Subcommands are imported lazily."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module

import click

from common.project import describe_version
from pipeline.commands import VERBS, PipelineCommand

# name: what it does, and `module:function`, which gets the arguments and the name of the command
COMMANDS = {
    **{name: (verb.summary, "pipeline.__main__:main") for name, verb in VERBS.items()},
    "merge": ("Merge checkpoints by a recipe of slackmerge or a mergekit configuration.", "merge.cli:main"),
    "eval": ("Score one checkpoint with lm-eval.", "eval.__main__:main"),
}


def _print_version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        print(f"slackmerge {describe_version()}")
        context.exit()


class _Commands(click.Group):
    """The commands. To run one, its words are handed over; to complete its words, its own options are looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands, in the order in which an experiment needs them."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The name of the command that a line begins with, the command, and the other words."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, own(name) if name in COMMANDS and ctx.resilient_parsing else command, rest


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


def own(name: str) -> click.Command:
    """The command itself, with its options."""
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
            add_help_option=False,  # each has a help of its own
        )
    )


if __name__ == "__main__":
    sys.exit(main())
