"""The command line. Torch is imported only once there is something to merge."""

from __future__ import annotations

import gc
import itertools
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common import hub_push
from common.command_line import Command, Options, Several, parse_command_line
from common.errors import BadInput, line_of, suggestion, user_errors
from common.hub_push import Target
from common.processes import Stopped, stopping_on_signals
from common.units import parse_bytes
from common.validation import parse_yaml
from merge.chained import Stage, read_stages, recipes_of, write_stages
from merge.methods import MODEL_DEFAULTS
from merge.recipe import Recipe

if TYPE_CHECKING:
    from merge.engine.outputs import Output
    from merge.engine.plan import Plan
    from merge.output.card import Card

    OnTensor = Callable[[Plan, Output], None]

LINE_EVERY_S = 10.0
LINE = "{percentage:.0f}%, {n_fmt}B of {total_fmt}B read, {rate_fmt}, about {remaining} left"
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
        _print_line(line_of(error))
        return 2
    except Stopped as stop:
        _print_line(line_of(stop))
        return 128 + stop.number
    return 0


def _print_line(line: str) -> None:
    """Print a line on stderr, if there is one."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"merge: {line}", file=sys.stderr, flush=True)


def _print_note(line: str) -> None:
    _print_line(f"note: {line}")


def _allow_open_files() -> None:
    """Allow as many open files as the system does: a grid of large models has one for every shard."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _run_stages(stages: list[Stage], options: Options) -> None:
    """Compute several merges of one file, of which some use results of others, or preview them."""
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
    from merge.engine.passes import Workers

    workers = Workers(options.device, options.threads, memory, note=_print_note)
    progress = partial(Progress, options.quiet, 2)
    how = _write_options(options, shard)
    _deliver([write_stages(options.recipe, options.out_dir, workers, progress, **how)], options)


def _run(options: Options) -> None:
    """Compute a merge, or a grid of merges in one pass; or preview or audit them."""
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
    from merge.engine.passes import Workers

    gc.freeze()
    gc.enable()
    with Progress(options.quiet, passes=1 if options.audit_only else 2) as progress:
        workers = Workers(options.device, options.threads, memory, progress, _print_note)
        if options.audit_only:
            from merge.auditing import audit_many

            reports = audit_many(recipes, workers)
            by_label = {label: report for (label, _), report in zip(labelled, reports, strict=True)}
            print(json.dumps(by_label if options.grid else reports[0]))
            return
        from merge.output.writer import write_many

        written = write_many(recipes, out_dirs, workers=workers, **_write_options(options, shard))
    if card is not None:
        card.check_result(written[0])
    _deliver(written, options)


def _card(options: Options) -> Card | None:
    """Return the card to merge by, if one is given. Raises BadInput for options that do not go together with it."""
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
    from merge.output.card import read_card

    return read_card(Path(options.from_card), options.model)


def _limits(options: Options) -> tuple[int, int]:
    """Return bytes of working sets and of the largest output file. Raises BadInput for them and for --threads."""
    limits = _size(options.memory, "--memory"), _size(options.shard_size or "5GB", "--shard-size")
    if options.threads is not None and options.threads < 1:
        raise BadInput(f"--threads: must be 1 or more, got {options.threads}.")
    return limits


def _write_options(options: Options, shard: int) -> dict[str, Any]:
    """Return options of `write_many`."""
    return {"audit": not options.no_audit, "checksums": not options.no_checksums, "shard_bytes": shard}


def _check_target(options: Options) -> None:
    """Reject a missing output folder, and a push that cannot succeed."""
    if not options.audit_only and options.out_dir is None:
        raise BadInput("OUT_DIR: missing. Pass a new folder for the merged checkpoint.")
    if options.push is not None:
        if options.grid or options.audit_only:
            raise BadInput("--push: needs one merge that is written. Leave out --grid and --audit-only.")
        hub_push.check(Target(options.push, private=options.private))


def _deliver(written: list[Path], options: Options) -> None:
    """Push the result if this is wanted, then print where the results are."""
    if options.push is not None:
        from merge.output.sharing import share, upload

        try:
            print(upload(share(written[0]), Target(options.push, private=options.private), "Merge by slackmerge"))
        except BadInput as error:
            again = f"slackmerge push {written[0]} {options.push}{' --private' if options.private else ''}"
            raise BadInput(f"--push: the merge is whole; push it by `{again}`. {error}") from None
    print("\n".join(map(str, written)))


def _size(text: str, key: str) -> int:
    """Return the bytes of an option. Raises BadInput that names it."""
    try:
        size = parse_bytes(text)
    except ValueError:
        size = 0
    if not isinstance(size, int) or size < 1:
        raise BadInput(f"{key}: must be a size such as 512MB or 2GB, got {text!r}.")
    return size


def describe(recipes: Sequence[Recipe], memory: int, out_dirs: Sequence[Path]) -> tuple[list[str], str | None]:
    """Describe what merges into `out_dirs` would read, write and need, and why they cannot be written, if so.

    All checks that need no weights come first. Without out_dirs, disk space is that of the working directory.
    """
    from merge.engine.plan import make_plan, out_dtype
    from merge.output.card import differences, places
    from merge.output.out_folder import OutFolder
    from merge.output.writer import METADATA, METADATA_OF_TENSOR, plan_sidecars

    nearest = [OutFolder(out_dir).check() for out_dir in out_dirs] or [Path.cwd()]
    plan = make_plan(recipes)
    try:
        names = ", ".join(sorted({recipe.method for recipe in recipes}))
        lines = [f"method    {names} ({len(recipes)} merge(s) in one pass)"]
        for parent in plan.parents.values():
            infos = parent.tensors.values()
            lines.append(
                f"read      {parent.folder}: {len(infos)} tensors, {sum(info.nbytes for info in infos) / 1e9:.2f} GB"
            )
        lines += [f"note      {line}" for line in differences(plan, places(plan))]
        beside = sum(file.stat().st_size for file in plan_sidecars(plan).values())
        beside += METADATA + METADATA_OF_TENSOR * len(plan.outputs)
        size = sum(
            beside + sum(output.numel * out_dtype(recipe, plan, output).itemsize for output in plan.outputs)
            for recipe in recipes
        )
        free = shutil.disk_usage(nearest[0]).free
        lines.append(
            f"write     {len(recipes)} × {len(plan.outputs)} tensors, {size / 1e9:.2f} GB; "
            f"{free / 1e9:.1f} GB free{'' if free >= size else ': NOT ENOUGH'}"
        )
        lines.append(f"memory    torch, slices of a few MB, and up to {memory / 1e6:.0f} MB to select magnitudes")
        if free >= size:
            return lines, None
        lacking = f"{free / 1e9:.2f} GB free where {size / 1e9:.2f} GB are needed"
        return lines, f"{(out_dirs or nearest)[0]}: {lacking}; free some, or merge elsewhere"
    finally:
        plan.close()


def expand(recipe: Recipe, axes: Sequence[str]) -> list[tuple[str, Recipe]]:
    """Return (label, recipe) for every combination, with labels such as `slack=0.5,density=0.2`.

    An axis is key=value,value,...: a key of the recipe, a per-model key (set for all models), or model.key. No setting
    is on two axes, and no value twice on one, so that labels are true and no two are equal. Raises BadInput.
    """
    parsed = [_axis(axis) for axis in axes]
    _check_apart([key for key, _ in parsed], recipe)
    labelled = []
    for combination in itertools.product(*(values for _, values in parsed)):
        data = recipe.to_dict()
        chosen = list(zip((key for key, _ in parsed), combination, strict=True))
        for key, value in chosen:
            _set(data, key, value)
            for part in data.get("slices", ()):
                if "." in key or key in MODEL_DEFAULTS or key in part:
                    _set(part, key, value)
        label = ",".join(f"{key}={value}" for key, value in chosen)
        labelled.append((label, Recipe.from_dict(data, where=f"--grid {label}")))
    return labelled


def _axis(text: str) -> tuple[str, list[Any]]:
    key, equals, listed = text.partition("=")
    if not equals or not key or not listed:
        raise BadInput(f"--grid {text}: expected key=value,value,... such as slack=0,0.5,1.")
    try:
        values = [parse_yaml(value) for value in listed.split(",")]
    except BadInput as error:
        raise BadInput(f"--grid {text}: {error}") from None
    for i, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise BadInput(f"--grid {text}: expected numbers and words, got {value!r}.")
        if value in values[:i]:
            raise BadInput(f"--grid {text}: {value} is listed twice. List it once.")
    if "/" in key or any("/" in str(value) for value in values):
        raise BadInput(
            f"--grid {text}: keys and values become names of folders, so they must not contain /. Remove it."
        )
    return key, values


def _check_apart(keys: Sequence[str], recipe: Recipe) -> None:
    """Reject two axes that set the same thing: the later one would win, and labels would be wrong."""
    seen: dict[tuple[str, str], str] = {}
    for key in keys:
        model, dot, model_key = key.rpartition(".")
        names = [each.name for each in recipe.models]
        if dot and model not in names:
            raise BadInput(f"--grid {key}: no such model, got {model!r}. {suggestion(model, names)}")
        places = [(model, model_key)] if dot else [("", key)]
        if not dot and key in MODEL_DEFAULTS:
            places = [(name, key) for name in names]
        for place in places:
            if place in seen:
                other = seen[place]
                raise BadInput(f"--grid {other}=… {key}=…: both set {'.'.join(filter(None, place))}. Pass one of them.")
            seen[place] = key


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    model, dot, model_key = key.rpartition(".")
    if dot:
        if model in data["models"]:
            data["models"][model][model_key] = value
    elif key in MODEL_DEFAULTS:
        for entry in data["models"].values():
            entry[key] = value
    else:
        data[key] = value


class Progress:
    """Show bytes read in all passes, speed and time left on stderr: a bar on a terminal, else a line now and then.

    As a context it returns the callback for every tensor, None if `quiet`. name: that of one merge among several.
    """

    def __init__(self, quiet: bool, passes: int, name: str = ""):
        self.quiet, self.passes, self.name = quiet, passes, f" {name}" if name else ""
        self.terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar: Any = None
        self.done = 0
        self.started = self.printed = time.monotonic()

    def __enter__(self) -> OnTensor | None:
        return None if self.quiet else self._bar if self.terminal else self._line

    def _total(self, plan: Plan) -> int:
        return self.passes * sum(plan.bytes_of(each) for each in plan.outputs)

    def _bar(self, plan: Plan, output: Output) -> None:
        from tqdm import tqdm

        if self.bar is None:
            tensors = f"{self.name} {len(plan.outputs)} tensors".strip()
            self.bar = tqdm(total=self._total(plan), unit="B", unit_scale=True, desc=tensors, leave=False)
        self.bar.set_postfix_str(output.name.removeprefix("model."), refresh=False)
        self.bar.update(plan.bytes_of(output))

    def _line(self, plan: Plan, output: Output) -> None:
        self.done += plan.bytes_of(output)
        now = time.monotonic()
        if now - self.printed < LINE_EVERY_S:
            return
        from tqdm import tqdm

        self.printed = now
        parse_command_line = {"n": self.done, "total": self._total(plan), "elapsed": now - self.started}
        line = tqdm.format_meter(**parse_command_line, unit="B", unit_scale=True, bar_format=LINE)
        print(f"merge{self.name}: {line}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
