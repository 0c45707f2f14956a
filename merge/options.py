"""What `slackmerge merge` takes. Imports no torch."""

from __future__ import annotations

import click

from common.command_line import Command, Several

COMMAND = Command(
    "merge",
    "Merge checkpoints by a recipe of slackmerge or a mergekit configuration.",
    "RECIPE is a YAML file (docs/reference/merging.md). OUT_DIR is a new folder for the merged checkpoint, its model "
    "card and its audit. A merge that fails leaves nothing behind.",
    (
        "merge.yml merged/",
        "merge.yml --plan",
        "merge.yml grid/ --grid lambda=0.3,0.5 slack=0,1",
        "merge.yml merged/ --push OWNER/NAME --private",
        "--from-card merged/README.md rebuilt/",
    ),
    [
        click.Argument(["recipe"], type=click.Path(), required=False),
        click.Argument(["out_dir"], type=click.Path(), required=False),
        click.Option(
            ["--from-card"], metavar="README.md", help="Repeat the merge of this model card, in place of a recipe."
        ),
        click.Option(
            ["--model"],
            multiple=True,
            metavar="NAME=FOLDER",
            help="With --from-card: where a model is that is neither on the Hub nor near the card.",
        ),
        click.Option(["--push"], metavar="OWNER/NAME", help="Upload the result to the Hub once it is complete."),
        click.Option(["--private"], is_flag=True, help="With --push: make the repository private."),
        click.Option(["--plan"], is_flag=True, help="Show what would be read and written; merge nothing."),
        click.Option(
            ["--audit-only"], is_flag=True, help="Print what the merge would discard, as JSON; write no weights."
        ),
        Several(
            ["--grid"],
            metavar="KEY=V,V...",
            takes=lambda word: "=" in word,
            help="Merge every combination in one pass, each into a folder of its own in OUT_DIR.",
        ),
        click.Option(["--no-audit"], is_flag=True, help="Do not count what is discarded."),
        click.Option(["--no-checksums"], is_flag=True, help="Do not put the files' SHA-256 into the model card."),
        click.Option(
            ["--device"],
            metavar="DEVICE",
            default="cpu",
            show_default=True,
            help="Where to compute: cpu, cuda, cuda:1.",
        ),
        click.Option(
            ["--threads"],
            type=int,
            metavar="N",
            help="Tensors in work at a time.  [default: torch's number of threads]",
        ),
        click.Option(
            ["--memory"],
            metavar="SIZE",
            default="512MB",
            show_default=True,
            help="Limit for working sets, such as 2GB.",
        ),
        click.Option(["--shard-size"], metavar="SIZE", help="Largest output file.  [default: 5GB]"),
        click.Option(["--quiet"], is_flag=True, help="Print no progress."),
    ],
)
