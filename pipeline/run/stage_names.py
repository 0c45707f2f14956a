"""A stage of a plan by the names that `slackmerge plan` prints: its kind, and its slug or key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from common.errors import BadInput, listed
from pipeline import run_plan, sweep
from pipeline.run_plan import RunPlan
from pipeline.stages.stage import STAGE_TYPES, Stage
from pipeline.sweep import Sweep

WRITTEN = "merge.write=true"  # has a plan hold the weights of every merge; no key depends on it


def planned(kind: str, slug: str, settings: Sequence[str], multirun: bool) -> tuple[Sweep, RunPlan, Stage]:
    """Compose an experiment and find one stage of its plan.

    `weights` of merges are found whether or not the experiment writes them. Raises BadInput, before anything is
    computed.
    """
    check_kind(kind)
    expanded = sweep.expand([*settings, *([WRITTEN] if kind == "weights" else [])], multirun)
    plan = run_plan.plan(expanded)
    return expanded, plan, find(plan.stages, kind, slug, multirun)


def check_kind(kind: str) -> None:
    """Raise BadInput if there is no such kind of stage."""
    if kind not in STAGE_TYPES:
        raise BadInput(f"KIND: no such kind of stage, got {kind}. {_nearest(kind, list(STAGE_TYPES))}")


def find(stages: Sequence[Stage], kind: str, name: str, multirun: bool = False) -> Stage:
    """Find the stage of this kind and slug, or key. Raises BadInput that lists the nearest names."""
    of_kind = [stage for stage in stages if stage.kind == kind]
    if not of_kind:
        present = list(dict.fromkeys(stage.kind for stage in stages))
        raise BadInput(f"KIND: this plan has no stage of this kind, got {kind}. It has {', '.join(present)}.")
    found = [stage for stage in of_kind if name in (stage.slug, stage.key)]
    if len(found) == 1:
        return found[0]
    if found:
        keys = listed(stage.key for stage in found)
        raise BadInput(f"SLUG: {len(found)} stages of kind {kind} have this name, got {name}. Pass a key: {keys}.")
    others = list(dict.fromkeys(stage.kind for stage in stages if name == stage.slug))
    advice = f"Kinds that have it: {', '.join(others)}." if others else _nearest(name, [s.slug for s in of_kind])
    more = "" if multirun or others else " With -m, a plan holds all runs of the experiment."
    raise BadInput(f"SLUG: the plan has no {kind} stage of this name, got {name}. {advice}{more}")


def _nearest(name: str, known: Sequence[str]) -> str:
    """The nearest names as a question; without any, what there is."""
    names = list(dict.fromkeys(known))
    if near := difflib.get_close_matches(name, names, n=3):
        return f"Did you mean {' or '.join(near)}?"
    return f"Choose one of {listed(names)}."
