"""The adapted model beside its report: a copy that can be given away, with its scores on the card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from common.errors import BadInput
from common.files import write_atomic
from pipeline import model_cards

MODEL, CARD, RECIPE = "model", "README.md", "merge.yml"
PART, OLD = ".model.part", ".model.old"


def publish(made: Path, out: Path, scores: str) -> Path | None:
    """Leaves a copy of the model of an entry in `out`, replaced as a whole; None where the entry has no model.

    A model that an earlier choice left in `out` is then removed: the report beside it is of another one. scores: the
    table of its card. Raises BadInput for a folder that is not ours.
    """
    source, target = made / MODEL, out / MODEL
    if target.exists() and not (target / RECIPE).is_file():
        raise BadInput(f"{target}: is not a model that was written here. Move it away.")
    for left in (out / PART, out / OLD):
        shutil.rmtree(left, ignore_errors=True)
    if not source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        return None
    if not _is_copy(source, target):
        shutil.copytree(source, out / PART)
        if target.exists():
            target.rename(out / OLD)
        (out / PART).rename(target)
        shutil.rmtree(out / OLD, ignore_errors=True)
    card = (source / CARD).read_text(encoding="utf-8")
    write_atomic(target / CARD, model_cards.with_scores(card, scores))
    return target


def lines(target: Path, choice: str) -> list[str]:
    """What a terminal shows of a written model. choice: the winner and its test scores, in one line."""
    shown = os.path.relpath(target) if target.absolute().is_relative_to(Path.cwd()) else str(target)
    talk = f"transformers serve   and beside it   transformers chat {shown}     or: vllm serve {shown}"
    return [f"written {shown}: {choice}", f"talk to it: {talk}"]


def _is_copy(source: Path, target: Path) -> bool:
    """Whether all files but the card are there, as old and as large: copies keep the time of their original."""
    names = [file.relative_to(source) for file in source.rglob("*") if file.is_file() and file.name != CARD]
    return all(_same(source / name, target / name) for name in names)


def _same(one: Path, other: Path) -> bool:
    if not other.is_file():
        return False
    first, second = one.stat(), other.stat()
    return (first.st_size, first.st_mtime_ns) == (second.st_size, second.st_mtime_ns)
