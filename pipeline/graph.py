"""The graph of stages: a stage, its parents and its key. Pure: no torch, no files.

A stage is a value. Its key is a hash of what decides its result (kind, settings, parents' keys) and of nothing else, so
that the same work has the same key in every cell of every sweep, and is done once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pipeline.kinds import KINDS

TRUNK = "trunk"  # the role of the CT stage that the decay of a wsd schedule starts from


@dataclass(frozen=True, eq=False)
class Stage:
    """A unit of work.

    settings: what decides the result besides the parents: part of the key. options: what the work needs but does not
    change the result (paths, devices): not part of the key. No option has the name of a setting.
    """

    kind: str
    slug: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, Stage] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if both := self.settings.keys() & self.options.keys():
            raise ValueError(f"{self}: {min(both)} is a setting and an option")

    @cached_property
    def key(self) -> str:
        """12 hex digits that stand for the result."""
        return self._digest(self.settings)

    @cached_property
    def trajectory(self) -> str | None:
        """Return what CT stages share that differ in their budget only (pipeline/trajectory.py).

        None for other kinds, for a decay, and for CT on all of the text: no larger budget resumes from these.
        """
        if self.kind != "ct" or self.settings.get("decay_tokens") or self.settings.get("tokens", 0) is None:
            return None
        return self._digest({name: value for name, value in self.settings.items() if name != "tokens"})

    @property
    def tokens(self) -> int:
        """Return the tokens of a training: its budget; if that is all of the text, as many as were expected."""
        stated = self.settings["tokens"]
        return int(self.options["expected_tokens"] if stated is None else stated)

    @property
    def given(self) -> bool:
        """Return whether this is a checkpoint that the user gave, a folder or a model of the Hub."""
        return self.kind == "model"

    def __str__(self) -> str:
        return f"{self.kind} {self.slug}"

    def _digest(self, settings: Mapping[str, Any]) -> str:
        parents = {role: parent.key for role, parent in self.parents.items()}
        revision = 0 if self.given else KINDS[self.kind].revision
        content = {"kind": self.kind, "revision": revision, "settings": settings, "parents": parents}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Inputs:
    """Checksums of what comes from outside.

    model, ct, sft_model: folders of checkpoints, or their commits on the Hub; corpus: text files, or the packages that
    hold text; base_corpus: the same of the corpus that a base is trained on, where it is another; sft, tasks: files of
    instructions and of lm-eval tasks. special_tokens: those of model, ct and sft_model whose tokenizers put special
    tokens around a text (common/special_tokens.py). template: the text of the chat template that SFT learns; None if
    there is none, or only the network would know it. asks_date: whether a chat template that checkpoints may be scored
    by writes the date, or only the network would know it. questions: those of eval.questions; None: there are none.
    """

    model: str | None = None
    ct: str | None = None
    sft_model: str | None = None
    corpus: tuple[str, ...] = ()
    sft: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    base_corpus: tuple[str, ...] = ()
    special_tokens: tuple[str, ...] = ()
    template: str | None = None
    asks_date: bool = False
    questions: tuple[str, ...] | None = None


def in_order(goals: Iterable[Stage]) -> tuple[Stage, ...]:
    """Return the goals and all that they need, each once, parents first; what was given is left out."""
    ordered: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key in ordered or stage.given:
            return
        for parent in stage.parents.values():
            visit(parent)
        ordered[stage.key] = stage

    for goal in goals:
        visit(goal)
    return tuple(ordered.values())
