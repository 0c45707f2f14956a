"""What `slackmerge eval` takes. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import click

from common.chat import DEFAULT_DAY
from common.command_line import Command, Several
from eval.generation import MODES
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
            ["--excerpt"], type=int, metavar="N", help="Measure bits per byte on the first N characters of a document."
        ),
        click.Option(
            ["--trained-length"],
            type=int,
            metavar="TOKENS",
            help="Block length of the model's training; text is read within it.  [default: the model's context]",
        ),
        click.Option(
            ["--batch-tokens"],
            type=int,
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
