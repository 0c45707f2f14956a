"""The command line. Torch is imported only once there is something to merge."""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub
from common.errors import BadInput, in_one_line, line_of
from common.stop_signals import Stopped, stopping_on_signals
from common.units import parse_bytes
from merge.chained import Stage, read_stages, recipes_of, write_stages
from merge.describe import describe
from merge.grid import expand
from merge.progress import Progress
from merge.recipe import Recipe

if TYPE_CHECKING:
    from merge.io.from_card import Card


def main(arguments: Sequence[str] | None = None, program: str = "python -m merge") -> int:
    """Run the command line; returns the exit code.

    0; 2 after one line on stderr, for bad input and for what the machine rejects; 128 + n when signal n stopped it.
    """
    options = _parser(program).parse_intermixed_args(arguments)
    try:
        with stopping_on_signals(), in_one_line():
            _allow_open_files()
            _run(options)
            sys.stdout.flush()
    except BadInput as error:
        _tell(error)
        return 2
    except Stopped as stop:
        _tell(stop)
        return 128 + stop.number
    return 0


def _tell(error: BaseException) -> None:
    """One line on stderr, where there is one."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"merge: {line_of(error)}", file=sys.stderr, flush=True)


def _note(line: str) -> None:
    """Print a line for the user on stderr, if there is one."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"merge: note: {line}", file=sys.stderr, flush=True)


def _allow_open_files() -> None:
    """As many open files as the system allows: a grid of large models has one for every shard."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description="Merge checkpoints of one architecture.")
    parser.add_argument("recipe", nargs="?", help="YAML file: a recipe (docs/reference/merging.md) or a mergekit file")
    parser.add_argument(
        "out_dir", nargs="?", help="new folder for the merged checkpoint (with --grid: for one folder per combination)"
    )
    parser.add_argument(
        "--from-card", metavar="README.md", help="in place of a recipe: make the merge of this card again, bit for bit"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="where a model of the card is, if neither on the hub nor near the card",
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="put the result on the hub once it is whole")
    parser.add_argument("--private", action="store_true", help="what --push makes there is for this account alone")
    parser.add_argument(
        "--plan", action="store_true", help="show what would be read, written and needed; merge nothing"
    )
    parser.add_argument(
        "--audit-only", action="store_true", help="print what the merge would discard, as JSON; write no weights"
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        metavar="KEY=V,V",
        default=[],
        help="merge every combination in one pass, e.g. slack=0,0.5,1",
    )
    parser.add_argument("--no-audit", action="store_true", help="do not count what is discarded")
    parser.add_argument("--no-checksums", action="store_true", help="do not put the files' sha256 into the model card")
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    parser.add_argument("--threads", type=int, help="tensors worked on at a time (default: torch's number of threads)")
    parser.add_argument("--memory", default="512MB", help="limit for working sets, e.g. 2GB (default: 512MB)")
    parser.add_argument("--shard-size", help="largest output file (default: 5GB)")
    parser.add_argument("--quiet", action="store_true", help="say nothing of the progress")
    return parser


def _run_stages(stages: list[Stage], options: argparse.Namespace) -> None:
    """Several merges of one file."""
    if options.grid or options.audit_only:
        raise BadInput(
            f"{options.recipe}: --grid and --audit-only need a file with one merge, got {len(stages)}. Split the file."
        )
    memory, shard = _limits(options)
    if options.plan:
        out_dirs = [] if options.out_dir is None else [Path(options.out_dir)]
        for stage, recipe in zip(stages, recipes_of(stages, Path("/"), Path(options.recipe).parent), strict=True):
            lines, refusal = [f"read      {', '.join(stage.needs)}: not made yet, checked when they are"], None
            if not stage.needs:
                lines, refusal = describe([recipe], memory, out_dirs)
            print(f"merge     {stage.name or 'the last one'}", *lines, sep="\n", flush=True)
            if refusal is not None:
                raise BadInput(refusal)
        return
    _check_target(options)
    from merge.stream.threads import Workers

    workers = Workers(options.device, options.threads, memory, note=_note)
    progress = partial(Progress, options.quiet, 2)
    extras = _extras(options, shard)
    _deliver([write_stages(options.recipe, options.out_dir, workers, progress, **extras)], options)


def _run(options: argparse.Namespace) -> None:
    card = _card(options)
    if card is None and (stages := read_stages(Path(options.recipe))) is not None:
        return _run_stages(stages, options)
    recipe = Recipe.from_yaml(options.recipe) if card is None else card.recipe
    memory, shard = _limits(options)
    if card is not None and options.shard_size is None:
        shard = card.shard_bytes or shard
    labelled = expand(recipe, options.grid) if options.grid else [("", recipe)]
    recipes = [recipe for _, recipe in labelled]
    out_dirs = [Path(options.out_dir, label) for label, _ in labelled] if options.out_dir is not None else []
    if options.plan:
        lines, refusal = describe(recipes, memory, out_dirs)
        print("\n".join(lines), flush=True)
        if refusal is not None:
            raise BadInput(refusal)
        return
    _check_target(options)
    if card is not None and not options.audit_only:
        card.check_models()
    # torch's half a million objects stay: to look through them again and again costs a tenth of its import and more
    gc.disable()
    from merge.stream.threads import Workers

    gc.freeze()
    gc.enable()
    with Progress(options.quiet, passes=1 if options.audit_only else 2) as progress:
        workers = Workers(options.device, options.threads, memory, progress, _note)
        if options.audit_only:
            from merge.auditing import audit_many

            reports = audit_many(recipes, workers)
            print(
                json.dumps(
                    {label: report for (label, _), report in zip(labelled, reports, strict=True)}
                    if options.grid
                    else reports[0]
                )
            )
            return
        from merge.io.writer import write_many

        written = write_many(recipes, out_dirs, workers=workers, **_extras(options, shard))
    if card is not None:
        card.check_result(written[0])
    _deliver(written, options)


def _card(options: argparse.Namespace) -> Card | None:
    """The card to merge by. Raises BadInput for what does not go with one."""
    if options.from_card is None:
        if options.model:
            raise BadInput(
                "--model: needs --from-card: it gives the folders of the models on a card. "
                "Add --from-card, or leave it out."
            )
        if options.recipe is None:
            raise BadInput("RECIPE: missing. Pass a YAML file, or a card with --from-card.")
        return None
    if options.out_dir is not None or options.grid:
        raise BadInput("--from-card: the card contains the recipe. Pass OUT_DIR alone, without RECIPE and --grid.")
    options.out_dir = options.recipe
    from merge.io.from_card import read_card

    return read_card(Path(options.from_card), options.model)


def _limits(options: argparse.Namespace) -> tuple[int, int]:
    """Bytes of working sets, and of the largest output file. Raises BadInput for these and for --threads."""
    limits = _size(options.memory, "--memory"), _size(options.shard_size or "5GB", "--shard-size")
    if options.threads is not None and options.threads < 1:
        raise BadInput(f"--threads: must be 1 or more, got {options.threads}.")
    return limits


def _extras(options: argparse.Namespace, shard: int) -> dict[str, Any]:
    """How results are written."""
    return {"audit": not options.no_audit, "checksums": not options.no_checksums, "shard_bytes": shard}


def _check_target(options: argparse.Namespace) -> None:
    """Reject what is to be written nowhere, or cannot be pushed."""
    if not options.audit_only and options.out_dir is None:
        raise BadInput("OUT_DIR: missing. Pass a new folder for the merged checkpoint.")
    if options.push is not None:
        if options.grid or options.audit_only:
            raise BadInput("--push: needs one merge that is written. Leave out --grid and --audit-only.")
        hub.check_push(options.push, "--push")


def _deliver(written: list[Path], options: argparse.Namespace) -> None:
    """Says where results lie, after the push of one that is to be on the Hub."""
    if options.push is not None:
        print(hub.push(written[0], options.push, "--push", options.private))
    print("\n".join(map(str, written)))


def _size(text: str, key: str) -> int:
    """Bytes of an option. Raises BadInput that names it."""
    try:
        size = parse_bytes(text)
    except ValueError:
        size = 0
    if not isinstance(size, int) or size < 1:
        raise BadInput(f"{key}: must be a size such as 512MB or 2GB, got {text!r}.")
    return size
