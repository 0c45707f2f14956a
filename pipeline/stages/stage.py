"""A stage of a plan: one typed value. Pure: no torch, no files.

A stage's key is a hash of what decides its result (kind, settings, parents' keys) and of nothing else, so that the same
work has the same key in every cell of every sweep, and is done once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from common.settings import NoSettings, Settings
from train.settings import Compute

if TYPE_CHECKING:
    from pipeline.execute import Job

TRUNK = "trunk"  # the role of the CT stage that the decay of a wsd schedule starts from
CALIBRATION = "calibration"  # the role of the blocks that decide which columns a CT stage freezes
NONE, ONE_PROCESS = NoSettings(), Compute()
Resource = Literal["data", "train", "score", "merge"]


@dataclass(frozen=True)
class StageType:
    """What is known of all stages of one kind.

    name: of its stages, and of its folder in the store. run: makes a stage. revision: a part of every key. Raise it
    when the code changes what it makes: entries of older code are computed again. resource: data (text on a CPU),
    train, score (a checkpoint or a merge reads tasks) or merge (weights alone). seconds: of one stage, until one was
    measured; of what trains, of a million tokens. On two cores, as in tiny. shared: made before the cells of a sweep
    start, as many of them read it. tracked: a run of its own in Weights & Biases.
    """

    name: str
    run: Callable[[Job[Any, Any]], None]
    revision: int
    resource: Resource
    seconds: float
    shared: bool = False
    tracked: bool = False

    @property
    def trained(self) -> bool:
        """Return whether its time goes with its tokens, and it leaves a checkpoint."""
        return self.resource == "train"


@dataclass(frozen=True, eq=False)
class Stage:
    """A unit of work.

    settings: what decides the result besides the parents: part of the key. options: what the work needs but does not
    change the result (paths, devices): not part of the key. No option has the name of a setting. inputs: checksums of
    the user's files that it reads, part of the key; None: it reads none. method: what it belongs to in the results.
    """

    type: StageType
    slug: str
    settings: Any = NONE  # a `Settings` of the type, as are the options
    parents: Mapping[str, Stage] = field(default_factory=dict)
    options: Any = NONE
    inputs: tuple[str, ...] | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        if both := self.settings.field_names() & self.options.field_names():
            raise ValueError(f"{self}: {min(both)} is a setting and an option")

    @cached_property
    def key(self) -> str:
        """12 hex digits that stand for the result."""
        return self._digest(self.key_content)

    @cached_property
    def key_content(self) -> dict[str, Any]:
        """Return the part of the key that is not the parents': settings and checksums, as plain values."""
        inputs = {} if self.inputs is None else {"inputs": list(self.inputs)}
        return self.settings.key_content() | inputs

    @cached_property
    def trajectory(self) -> str | None:
        """Return what CT stages share that differ in their budget only (pipeline/stages/trajectory.py).

        None for other kinds, for a decay, and for CT on all of the text: no larger budget resumes from these.
        """
        content = self.key_content
        if self.kind != "ct" or content.get("decay_tokens") or content.get("tokens", 0) is None:
            return None
        return self._digest({name: value for name, value in content.items() if name != "tokens"})

    @property
    def kind(self) -> str:
        """Return the name of its type."""
        return self.type.name

    @property
    def tokens(self) -> int:
        """Return the tokens of a training: its budget; if that is all of the text, an estimate."""
        return int(self.settings.tokens)

    @property
    def compute(self) -> Compute:
        """Return how a training is computed; of other stages, one process."""
        compute: Compute = getattr(self.options, "compute", ONE_PROCESS)
        return compute

    @property
    def given(self) -> bool:
        """Return whether this is a checkpoint that the user gave, a folder or a model of the Hub."""
        return self.kind == GIVEN.name

    def __str__(self) -> str:
        return f"{self.kind} {self.slug}"

    def _digest(self, settings: Mapping[str, Any]) -> str:
        parents = {role: parent.key for role, parent in self.parents.items()}
        content = {"kind": self.kind, "revision": self.type.revision, "settings": settings, "parents": parents}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


class GivenSettings(Settings):
    """A checkpoint from outside.

    special_tokens: whether its tokenizer puts some around a text: what is trained and scored with it has changed.
    """

    sha256: str | None  # of its folder, or its commit on the Hub
    special_tokens: bool = False


class GivenOptions(Settings):
    """path: a folder, or hub:owner/name@commit."""

    path: str


def run_given(job: Job[GivenSettings, GivenOptions]) -> None:
    """Raise: the executor opens or fetches what was given."""
    raise AssertionError(f"{job.stage}: was given, and is not made")


GIVEN = StageType("model", run_given, 0, "data", 0)


@dataclass(frozen=True)
class Inputs:
    """Checksums of what comes from outside.

    model, ct, sft_model: folders of checkpoints, or their commits on the Hub; corpus: text files, or the packages that
    hold text; base_corpus: the same of the corpus that a base is trained on, where it is another; sft, tasks: files of
    instructions and of lm-eval tasks. special_tokens: those of model, ct and sft_model whose tokenizers put special
    tokens around a text (common/special_tokens.py). template: the text of the chat template that SFT learns; None if
    there is none, or only the network would know it. asks_date: whether a chat template that checkpoints may be scored
    by writes the date, or only the network would know it. questions: those of eval.questions; None: there are none.
    sources: of the local folders among ct.sources, by name. checkpoints: those of merge.checkpoints, by name; in
    special_tokens they are `checkpoints.NAME`. variants: the inputs of each variant, by name.
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
    sources: Mapping[str, str] = field(default_factory=dict)
    checkpoints: Mapping[str, str | None] = field(default_factory=dict)
    variants: Mapping[str, Inputs] = field(default_factory=dict)


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
