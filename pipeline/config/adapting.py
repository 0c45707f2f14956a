"""How one checkpoint is chosen among a chat model and its merges with CT, and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from common.errors import suggestion
from common.settings import Settings

if TYPE_CHECKING:
    from pipeline.config.cell import Config

AUTO, BEST = "auto", "best"
TASKS = "tasks"  # the mean of the lm-eval tasks in the language, which `auto` stands for where there are some
BITS = "bits_per_byte"
ENGLISH = ("acc_en", "bits_per_byte_en")
ACCURACIES = ("acc", "acc_en")  # of our own items, and of lm-eval tasks that state their language


class Adapt(Settings):
    """The choice on dev, and the folder that is written.

    gain: the measure to raise; keep: the one that may fall by `tolerance` at most, in its own unit. A measure is acc or
    bits_per_byte (the language's), acc_en or bits_per_byte_en (English), or the name of a task. auto: the mean of the
    lm-eval tasks in the language, else acc, else bits_per_byte. write: best, or the method whose best try is written.
    dtype: of the folder, and of all that is scored.
    """

    gain: Annotated[str, Field(min_length=1)]
    keep: Annotated[str, Field(min_length=1)]
    tolerance: Annotated[float, Field(ge=0)]
    write: Annotated[str, Field(min_length=1)]
    dtype: Literal["float32", "bfloat16"]


def why_not_adapted(config: Config) -> str | None:
    """What keeps a config from adapting a model: a pair, methods that have to do with it, and measures are needed."""
    adapt, methods = config.adapt, config.merge.methods
    if adapt is None:
        return None
    if not config.sft.source:
        return "sft.source=null: names no chat model. Set it to a folder or hub:owner/name."
    if config.model.path is None:
        return "model.path=null: names no base. Set it to a folder or hub:owner/name."
    if not methods:
        return "merge.methods={}: there is nothing to choose among. Set merge=adapt."
    if adapt.write not in (BEST, *methods):
        return f"adapt.write={adapt.write}: names no merge. {suggestion(adapt.write, [BEST, *methods])}"
    for name, method in methods.items():
        if "sft" not in (*method.of, method.from_):
            return (
                f"merge.methods.{name}.of={list(method.of)}: has no part of the chat model. Add sft, or set from: sft."
            )
    return _why_not_scored(config, adapt)


def _why_not_scored(config: Config, adapt: Adapt) -> str | None:
    """The same of what is scored."""
    scored = config.eval
    others = {
        "frontier": (scored.frontier, None),
        "default_settings": (scored.default_settings, False),
        "split": (scored.split, "test"),
    }
    for key, (given, wanted) in {**others, "dtype": (scored.dtype, adapt.dtype)}.items():
        if given != wanted:
            value = "null" if wanted is None else str(wanted).lower()
            return f"eval.{key}={given}: an adaptation needs eval.{key}={value}. Set that, or adapt=null."
    if missing := [name for name in ("base", "sft", "ct", "sft_then_ct") if name not in scored.baselines]:
        return f"eval.baselines={scored.baselines}: the results compare {missing[0]} too. Add it."
    has_items, has_tasks = bool(config.families), bool(scored.tasks or scored.include_path)
    for key, measure in (("gain", adapt.gain), ("keep", adapt.keep)):
        if measure in ACCURACIES and not (has_items or has_tasks):
            named = ", ".join(scored.families)
            why = f"there are no items, as eval.families=[{named}]"
            return f"adapt.{key}={measure}: {why}. Set a family, or another measure."
        if measure not in (AUTO, *ACCURACIES, BITS, *ENGLISH) and not has_tasks:
            known = [*ACCURACIES, BITS, *ENGLISH[1:]]
            return f"adapt.{key}={measure}: names no measure and no task. {suggestion(measure, known)}"
    if adapt.keep == AUTO:
        return "adapt.keep=auto: only adapt.gain may be auto. Set acc_en, bits_per_byte_en or a task."
    return None
