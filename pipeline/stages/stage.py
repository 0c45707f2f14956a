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
from typing import Any, Literal

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
        """Return what CT stages share that differ in their budget only (pipeline/stages/trajectory.py).

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
    def type(self) -> StageType:
        """Return what is known of all stages of its kind."""
        return STAGE_TYPES[self.kind]

    @property
    def given(self) -> bool:
        """Return whether this is a checkpoint that the user gave, a folder or a model of the Hub."""
        return self.kind == "model"

    def __str__(self) -> str:
        return f"{self.kind} {self.slug}"

    def _digest(self, settings: Mapping[str, Any]) -> str:
        parents = {role: parent.key for role, parent in self.parents.items()}
        revision = 0 if self.given else self.type.revision
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


Resource = Literal["data", "train", "score", "merge"]


@dataclass(frozen=True)
class StageType:
    """What is known of all stages of one kind.

    name: of its stages, and of its folder in the store. maker: `module:function`; the function gets a
    `pipeline.execute.Job`. revision: a part of every key. Raise it when the code changes what it makes: entries of
    older code are computed again. work: data (text on a CPU), train, score (a checkpoint or a merge reads tasks) or
    merge (weights alone). seconds: of one stage, until one was measured; of what trains, of a million tokens. On two
    cores, as in tiny. shared: made before the cells of a sweep start, as many of them read it. tracked: a run of its
    own in Weights & Biases.
    """

    name: str
    maker: str
    revision: int
    resource: Resource
    seconds: float
    shared: bool = False
    tracked: bool = False

    @property
    def trained(self) -> bool:
        """Return whether its time goes with its tokens, and it leaves a checkpoint."""
        return self.resource == "train"


STAGE_TYPES: dict[str, StageType] = {
    kind.name: kind
    for kind in (
        StageType("corpus", "pipeline.stages.data:run_corpus", 3, "data", 3, shared=True),
        StageType("items", "pipeline.stages.data:run_items", 2, "data", 10, shared=True),
        StageType("instructions", "pipeline.stages.data:run_instructions", 1, "data", 10, shared=True),
        StageType("target_instructions", "pipeline.stages.data:run_target_instructions", 1, "data", 10, shared=True),
        StageType("leaks", "pipeline.stages.scoring:run_contamination", 1, "data", 10, shared=True),
        StageType("base", "pipeline.stages.training:run_base", 1, "train", 250, shared=True, tracked=True),
        StageType("ct_blocks", "pipeline.stages.data:run_ct_blocks", 1, "data", 4, shared=True),
        StageType("sft_blocks", "pipeline.stages.data:run_sft_blocks", 1, "data", 10, shared=True),
        StageType("mixed_blocks", "pipeline.stages.data:run_mixed_blocks", 1, "data", 3),
        StageType("ct", "pipeline.stages.training:run_ct", 1, "train", 250, tracked=True),
        StageType("sft", "pipeline.stages.training:run_sft", 1, "train", 260, tracked=True),
        StageType("tune", "pipeline.stages.tuning:run_tune", 2, "score", 11, tracked=True),
        StageType("merge", "pipeline.stages.merging:run_merge", 2, "merge", 1),
        StageType("weights", "pipeline.stages.merging:run_weights", 1, "merge", 2),
        StageType("choose", "pipeline.stages.adapting:run_choose", 1, "merge", 1),
        StageType("adapted", "pipeline.stages.adapting:run_adapted", 1, "merge", 5),
        StageType("answers", "pipeline.stages.scoring:run_answers", 1, "score", 20),
        StageType("eval", "pipeline.stages.scoring:run_eval", 2, "score", 18, tracked=True),
    )
}
