"""Commands with a help of one form: an imperative summary, the usage, options with defaults, and examples.

click reads the words; what is wrong with them is one line. Imports nothing heavy.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import click

from common.units import parse_tokens

Options = SimpleNamespace  # the values of a command's parameters, by their names
WIDTH = 100


class Command(click.Command):
    """A command of slackmerge. examples: arguments, without the command's name."""

    def __init__(
        self, name: str, summary: str, text: str, examples: Sequence[str], params: Sequence[click.Parameter]
    ) -> None:
        super().__init__(
            name,
            params=list(params),
            help=f"{summary}\n\n{text}",
            short_help=summary,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
        )
        self.summary, self.text, self.examples = summary, text, tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"  {ctx.command_path} {example}".rstrip() + "\n")


class TokensType(click.ParamType[Any]):
    """A number of tokens, such as 8192 or 8k."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        if isinstance(value, str) and re.fullmatch(r"-?\d+", value):  # the code that takes it knows its bounds
            return int(value)
        try:
            return parse_tokens(value)
        except ValueError as error:
            self.fail(f"{error} Got {value}.", param, ctx)


TOKENS = TokensType()


class Several(click.Option):
    """An option that takes one or more values: `--grid a=1 b=2`, or `--grid a=1 --grid b=2`.

    takes: returns whether a word that follows is one more value.
    """

    def __init__(self, *args: Any, takes: Callable[[str], bool] = lambda word: True, **more: Any) -> None:
        super().__init__(*args, **more | {"multiple": True})
        self.takes = takes

    def spread(self, words: Sequence[str]) -> list[str]:
        """Return the words with the name of the option before each of its values."""
        spread: list[str] = []
        within = False
        for word in words:
            if word.startswith("-") and word != "-":
                within = word in self.opts
            elif within and spread[-1] not in self.opts:
                within = self.takes(word)
                spread += [self.opts[0]] if within else []
            spread.append(word)
        return spread


def parse_command_line(command: click.Command, words: Sequence[str] | None, program: str) -> Options | int:
    """Parse a command line; return its values, or the exit code after printing the help or the error."""
    arguments = list(sys.argv[1:] if words is None else words)
    for parameter in command.params:
        if isinstance(parameter, Several):
            arguments = parameter.spread(arguments)
    try:
        return Options(**command.make_context(program, arguments).params)
    except click.exceptions.Exit as exit_:  # the help is printed
        return exit_.exit_code
    except click.ClickException as error:
        print(f"{program}: {error.format_message()} See {program} --help.", file=sys.stderr)
        return error.exit_code
