"""The help of every command in Markdown, as `slackmerge COMMAND --help` prints it."""

from __future__ import annotations

import click

from pipeline.cli import COMMANDS, choices, command_of
from pipeline.reference.text import bullet

WIDTH = 98
REPEATED = "\nGroups and their choices:\n"  # what the help of several commands ends with


def markdown() -> str:
    """A table of the commands, and the help of each; groups and common settings once."""
    table = ["| Command | Does |", "|---|---|"]
    table += [f"| [`slackmerge {name}`](#{name}) | {summary.rstrip('.')} |" for name, (summary, _) in COMMANDS.items()]
    helps = {name: help_of(name) for name in COMMANDS}
    parts = ["\n".join(table)]
    parts += [f"## {name}\n\n```text\n{text.partition(REPEATED)[0].rstrip()}\n```" for name, text in helps.items()]
    groups = [bullet(f"`{group}`", ", ".join(names)) for group, names in choices().items()]
    parts.append("## Groups and their choices\n\n" + "\n".join(groups))
    return "\n\n".join(parts) + "\n"


def help_of(name: str) -> str:
    """What a command prints for --help, at one width."""
    command = command_of(name)
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=f"slackmerge {name}", **settings)
    return command.get_help(context)
