"""`slackmerge push`: a checkpoint to the Hugging Face Hub, from a folder or from the store."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import hub_push
from common.errors import BadInput
from common.hub_push import Target
from common.units import counted
from merge.output.sharing import CARD, Shared, share, upload
from pipeline import model_cards
from pipeline.stages import STAGE_TYPES
from pipeline.stages.stage import in_order

WEIGHTS, ADAPTED = "weights", "adapted"  # kinds that leave a checkpoint with a card of its own
PUSHED = (*(kind.name for kind in STAGE_TYPES.values() if kind.trained), WEIGHTS, ADAPTED)


@dataclass(frozen=True)
class Options:
    """Options of the command line. base: of an adapter, the id of its base on the Hub."""

    revision: str = hub_push.MAIN
    private: bool = False
    replace: bool = False
    dry_run: bool = False
    base: str | None = None


def push(names: Sequence[str], settings: Sequence[str], multirun: bool, options: Options) -> int:
    """Upload FOLDER, or the checkpoint of KIND SLUG, and print its address. Returns the exit code. Raises BadInput."""
    if len(names) not in (2, 3):
        raise BadInput(
            f"push: takes FOLDER OWNER/NAME, or KIND SLUG OWNER/NAME, got {' '.join(names) or 'nothing'}. "
            "See slackmerge push --help."
        )
    target = Target(names[-1], options.revision, options.private, options.replace)
    hub_push.check_name(target)
    if len(names) == 3:
        shared = of_stage(names[0], names[1], settings, multirun, target, options.base)
    elif settings:
        raise BadInput(f"push: a folder takes no settings, got {settings[0]}. Pass settings with KIND and SLUG.")
    else:
        shared = with_card(share(Path(names[0]), options.base), target)
    for line in listed(shared, target) if options.dry_run else notes(shared):
        print(line)
    if not options.dry_run:
        print(upload(shared, target, "Push by slackmerge"))
    return 0


def of_stage(kind: str, slug: str, settings: Sequence[str], multirun: bool, target: Target, base: str | None) -> Shared:
    """Return the files of a checkpoint in the store, with a card. Raises BadInput for a stage without one."""
    from pipeline.run.make import check_kind, find_planned  # late: a folder needs no plan

    check_kind(kind)
    if kind not in PUSHED:
        made = f" Compute its weights: slackmerge make {WEIGHTS} {slug}." if kind == "merge" else ""
        raise BadInput(f"KIND: only {', '.join(PUSHED)} stages hold a checkpoint, got {kind}.{made}")
    _, plan, stage = find_planned(kind, slug, settings, multirun)
    entry = plan.store.find(stage)
    making = shlex.join(["slackmerge", "make", kind, slug, *(["-m"] if multirun else []), *settings])
    if entry is None:
        raise BadInput(f"{stage}: not computed yet in store={plan.store.root}. First run {making}.")
    if damage := entry.damage(thorough=True):
        raise BadInput(f"{entry.path}: {damage}. Run slackmerge verify, then {making}.")
    title, folder = target.repo.partition("/")[2], entry.path / "model"
    if kind in (WEIGHTS, ADAPTED):
        if not folder.is_dir():
            raise BadInput(f"{stage}: holds no model, as the chat model itself was chosen. Use that one.")
        text = (folder / CARD).read_text(encoding="utf-8")
        return share(folder, base, re.sub(r"^# .*$", f"# {title}", text, count=1, flags=re.MULTILINE))
    versions = entry.record.get("versions", {})
    return share(folder, base, model_cards.render_checkpoint(title, in_order([stage]), versions, settings))


def with_card(shared: Shared, target: Target) -> Shared:
    """Return the files of a folder; an adapter without a card gets one that names its base."""
    if shared.adapter_of is None or CARD in shared.files:
        return shared
    text = model_cards.of_adapter(target.repo.partition("/")[2], shared.adapter_of)
    return replace(shared, files={CARD: text, **shared.files})


def notes(shared: Shared) -> list[str]:
    """Return what a user should know of an upload before it starts."""
    lines = [f"an adapter; its base is {shared.adapter_of}"] if shared.adapter_of else []
    if CARD not in shared.files:
        lines.append(f"note: {shared.folder} has no {CARD}, so the Hub will show no model card")
    if shared.left_out:
        named = ", ".join(shared.left_out[:3]) + (" ..." if len(shared.left_out) > 3 else "")
        lines.append(f"note: not uploaded: {counted(len(shared.left_out), 'other file')} of the folder ({named})")
    return lines


def listed(shared: Shared, target: Target) -> list[str]:
    """List the files of an upload with their sizes, for --dry-run."""
    sizes = {place: shared.bytes_of(place) for place in shared.files}
    width = max(len(f"{size:,}") for size in sizes.values())
    rows = [
        f"  {size:{width},} bytes  {place}{'  (rewritten)' if isinstance(shared.files[place], str) else ''}"
        for place, size in sizes.items()
    ]
    total = f"{counted(len(sizes), 'file')}, {sum(sizes.values()) / 1e6:,.1f} MB"
    visible = "private" if target.private else "public if new"
    return [f"{target} ({visible}): {total}; nothing is uploaded", *rows, *notes(shared)]
