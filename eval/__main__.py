"""`slackmerge eval MODEL --items FOLDER --out FOLDER`, or `python -m eval`: score one checkpoint.

Imports no torch before the options are read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import click

from common.chat import DEFAULT_DAY, read_chat_template
from common.command_line import TOKENS, Command, Options, Several, parse_command_line
from common.errors import BadInput, user_errors
from common.processes import silence
from common.special_tokens import format_control_counts
from eval.prompting import MODES, Prompting
from eval.task_set import UNDETERMINED

FOLDER = click.Path(path_type=Path)

COMMAND = Command(
    "eval",
    "Score one checkpoint with lm-eval.",
    "MODEL is a Hugging Face checkpoint folder. scores.jsonl and samples.jsonl are written into --out, and the scores "
    "are printed with their 95% intervals. Pass --items, --text, --include-path or --tasks, or several of them.",
    (
        "merged/ --text text/ --out scores/",
        "merged/ --include-path my_tasks/ --tasks next_nya --out scores/",
        "merged/ --items items/ --split dev --limit 100 --out scores/",
        "merged/ --tasks belebele_nya_Latn --chat auto --fewshot 2 --out scores/",
    ),
    [
        click.Argument(["model"], type=FOLDER),
        click.Option(["--out"], type=FOLDER, metavar="FOLDER", required=True, help="Folder to write to."),
        click.Option(
            ["--items"],
            type=FOLDER,
            metavar="FOLDER",
            help="Measure accuracy on items: <family>_<language>.<split>.jsonl.",
        ),
        click.Option(
            ["--text"],
            type=FOLDER,
            metavar="FOLDER",
            help="Measure bits per byte on documents: <language>.<split>.jsonl.",
        ),
        click.Option(
            ["--include-path"],
            type=FOLDER,
            metavar="FOLDER",
            help="Your own lm-eval YAML files. Paths of data in them are absolute or relative to this folder.",
        ),
        Several(
            ["--tasks"],
            metavar="NAME...",
            help="Tasks of --include-path, or tasks that lm-eval ships.  [default: all of --include-path]",
        ),
        click.Option(
            ["--language"],
            default=UNDETERMINED,
            show_default=True,
            metavar="CODE",
            help="Language of tasks that do not state theirs.",
        ),
        click.Option(
            ["--split"],
            type=click.Choice(["dev", "test"]),
            default="test",
            show_default=True,
            help="Split of items and text.",
        ),
        click.Option(["--limit"], type=int, metavar="N", help="Take only the first N documents of each task."),
        click.Option(
            ["--max-chars"],
            type=int,
            metavar="N",
            help="Measure bits per byte on the first N characters of a document.",
        ),
        click.Option(["--excerpt"], type=int, hidden=True),  # the name before 0.2, in this release only
        click.Option(
            ["--trained-length"],
            type=TOKENS,
            metavar="TOKENS",
            help="Block length of the model's training; text is read within it.  [default: the model's context]",
        ),
        click.Option(
            ["--batch-tokens"],
            type=TOKENS,
            metavar="TOKENS",
            help="Tokens in one forward pass.  [default: 1024 on a CPU, 8192 elsewhere]",
        ),
        click.Option(
            ["--gpus"],
            type=int,
            default=1,
            show_default=True,
            metavar="N",
            help="Spread the model over N GPUs, with --device cuda.",
        ),
        click.Option(
            ["--chat"],
            type=click.Choice(["none", "auto", "both"]),
            default="none",
            show_default=True,
            help="Put prompts into the checkpoint's chat template; both: score plain prompts too.",
        ),
        click.Option(["--system"], metavar="TEXT", help="System message that all chat prompts begin with."),
        click.Option(
            ["--date"],
            default=DEFAULT_DAY,
            show_default=True,
            metavar="DAY",
            help="Today, for chat templates that write it.",
        ),
        click.Option(
            ["--fewshot"],
            type=int,
            metavar="N",
            help="Examples in each prompt of lm-eval's tasks.  [default: as each task states]",
        ),
        click.Option(
            ["--generation"],
            type=click.Choice(MODES),
            default="own",
            show_default=True,
            help="Generate by the checkpoint's generation_config, or greedily with its stops alone.",
        ),
        click.Option(
            ["--device"],
            metavar="DEVICE",
            default="cpu",
            show_default=True,
            help="Where to compute: cpu, cuda, cuda:1.",
        ),
    ],
)


def prompting_of(given: Options) -> Prompting:
    """Return how the checkpoint is prompted. Raises BadInput."""
    try:
        date.fromisoformat(given.date)
    except ValueError:
        raise BadInput(
            f"--date: must be a day such as {DEFAULT_DAY}, got {given.date!r}. Set it, or leave it out."
        ) from None
    if given.chat != "none" and not read_chat_template(given.model):
        raise BadInput(
            f"--chat: must be none for a checkpoint without a chat template, got {given.chat}. Leave it out, or add"
            f" chat_template.jinja to {given.model}."
        )
    return Prompting(given.chat, given.system, given.generation, given.date)


def main(arguments: Sequence[str] | None = None, program: str = "python -m eval") -> int:
    """Evaluate, write and print the scores; return 2 for input that cannot work."""
    given = parse_command_line(COMMAND, arguments, program)
    if isinstance(given, int):
        return given
    if given.excerpt is not None:
        print("--excerpt: the name is now --max-chars. The old one is accepted in this release only.", file=sys.stderr)
        given.max_chars = given.excerpt if given.max_chars is None else given.max_chars
    silence()
    try:
        with user_errors():
            from eval import harness, task_set

            if not (given.model / "config.json").is_file():  # before tasks are built and torch is imported
                raise BadInput(f"model: {given.model} is not a Hugging Face checkpoint folder (no config.json)")
            prompting = prompting_of(given)
            harness.check_out(given.out)
            tasks = task_set.prepare(
                given.items,
                given.text,
                split=given.split,
                limit=given.limit,
                max_chars=given.max_chars,
                include_path=given.include_path,
                names=given.tasks,
                language=given.language,
                fewshot=given.fewshot,
            )
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # an error is one line
            scores = harness.evaluate_folder(
                given.model,
                tasks,
                batch_tokens=given.batch_tokens,
                device=given.device,
                trained_length=given.trained_length,
                gpus=given.gpus,
                prompting=prompting,
            )
            harness.write_scores(scores, given.out)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    for row in scores.records:
        mark = "*" if row["primary"] else " "
        value = f"{row['value']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]"
        print(f"{row['task']:24} {row['metric']:14}{mark} {value}  n={row['n']}")
    print(f"written to {given.out}{format_control_counts(scores.control)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
