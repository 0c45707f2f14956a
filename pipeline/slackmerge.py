"""`slackmerge`: one command for `python -m pipeline`, `python -m merge` and `python -m eval`, which it hands over to.

Imports nothing of theirs before it knows which is asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path

import click
from click.shell_completion import CompletionItem

CONF = Path(__file__).parents[1] / "conf"
# name: what it does, and `module:function`, which gets the arguments and what to call itself
PIPELINE = "pipeline.__main__:main"
COMMANDS = {
    "merge": ("Merge checkpoints by a recipe, ours or mergekit's.", "merge.cli:main"),
    "run": ("Make what is missing of an experiment, then write the report.", PIPELINE),
    "plan": ("Say which stages are done and which would run; with cluster=8xH100 what they cost.", PIPELINE),
    "check": ("Look at everything that can be refused before an hour is spent.", PIPELINE),
    "report": ("Write the report anew: of a sweep, of folders beside each other, of lm-eval's own results.", PIPELINE),
    "watch": ("Show a run as it goes.", PIPELINE),
    "verify": ("Check every file in the store by checksum.", PIPELINE),
    "eval": ("Score one checkpoint with lm-eval.", "eval.__main__:main"),
}


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`slackmerge COMMAND --help` says more. To have COMMAND and group=choice completed by bash: "
    'eval "$(_SLACKMERGE_COMPLETE=bash_source slackmerge)"; zsh and fish likewise.',
)
@click.version_option(package_name="slackmerge")
def slackmerge() -> None:
    """Model merging for low-resource languages: continual pre-training, SFT, merges with slack, evaluation."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 a stage crashed, 2 bad input, said in one line on stderr, 130 after Ctrl-C."""
    try:
        return int(slackmerge.main(arguments, "slackmerge", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        print(f"slackmerge: {error.format_message()}", file=sys.stderr)
        return error.exit_code


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`experiment=ti` to `experiment=tiny`. Bash has split it at the `=` already, and wants `tiny` alone."""
    groups = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir())
    group, equals, start = incomplete.rpartition("=")
    before = [word for word in context.params.get("arguments", ()) if word != "="][-1:]
    if not equals and before and before[0] in groups:
        group = before[0]
    if group:
        choices = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
        kept = f"{group}=" if equals else ""
        return [CompletionItem(kept + choice) for choice in choices if choice.startswith(start)]
    matching = [CompletionItem(f"{group}=") for group in groups if group.startswith(incomplete)]
    return matching or [CompletionItem(incomplete, type="file")]


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
    with suppress(OSError, ValueError):  # whoever read it has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # everything is on disk: torch would take half a second more to take itself apart


for _name, (_summary, _place) in COMMANDS.items():
    slackmerge.add_command(
        click.Command(
            _name,
            context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
            params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED, shell_complete=_complete)],
            callback=partial(_hand_over, _name, _place),
            short_help=_summary,
            add_help_option=False,  # each has a help of its own
        )
    )


if __name__ == "__main__":
    sys.exit(main())
