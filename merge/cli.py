"""The command line. Torch is imported only once there is something to merge."""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub_push
from common.command_line import Options, parse_command_line
from common.errors import BadInput, line_of, user_errors
from common.hub_push import Target
from common.processes import Stopped, stopping_on_signals
from common.units import parse_bytes
from merge.chained import Stage, read_stages, recipes_of, write_stages
from merge.describe import describe
from merge.grid import expand
from merge.options import COMMAND
from merge.progress import Progress
from merge.recipe import Recipe

if TYPE_CHECKING:
    from merge.io.from_card import Card


def main(arguments: Sequence[str] | None = None, program: str = "python -m merge") -> int:
    """Run the command line; returns the exit code.

    0; 2 after one line on stderr, for bad input and for what the machine rejects; 128 + n when signal n stopped it.
    """
    options = parse_command_line(COMMAND, arguments, program)
    if isinstance(options, int):
        return options
    try:
        with stopping_on_signals(), user_errors():
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


def _run_stages(stages: list[Stage], options: Options) -> None:
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


def _run(options: Options) -> None:
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


def _card(options: Options) -> Card | None:
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


def _limits(options: Options) -> tuple[int, int]:
    """Bytes of working sets, and of the largest output file. Raises BadInput for these and for --threads."""
    limits = _size(options.memory, "--memory"), _size(options.shard_size or "5GB", "--shard-size")
    if options.threads is not None and options.threads < 1:
        raise BadInput(f"--threads: must be 1 or more, got {options.threads}.")
    return limits


def _extras(options: Options, shard: int) -> dict[str, Any]:
    """How results are written."""
    return {"audit": not options.no_audit, "checksums": not options.no_checksums, "shard_bytes": shard}


def _check_target(options: Options) -> None:
    """Reject what is to be written nowhere, or cannot be pushed."""
    if not options.audit_only and options.out_dir is None:
        raise BadInput("OUT_DIR: missing. Pass a new folder for the merged checkpoint.")
    if options.push is not None:
        if options.grid or options.audit_only:
            raise BadInput("--push: needs one merge that is written. Leave out --grid and --audit-only.")
        hub_push.check(Target(options.push, private=options.private))


def _deliver(written: list[Path], options: Options) -> None:
    """Say where results lie, after the push of one that is to be on the Hub."""
    if options.push is not None:
        from merge.io.shared_folder import share, upload

        try:
            print(upload(share(written[0]), Target(options.push, private=options.private), "Merge by slackmerge"))
        except BadInput as error:
            again = f"slackmerge push {written[0]} {options.push}{' --private' if options.private else ''}"
            raise BadInput(f"--push: the merge is whole; push it by `{again}`. {error}") from None
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
