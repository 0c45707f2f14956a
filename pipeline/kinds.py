"""The table of stage kinds. Pure and light: it names the function of a kind, which is imported when a stage runs.

A new kind is a row here, and the function that the row names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Work = Literal["data", "train", "score", "merge"]


@dataclass(frozen=True)
class Kind:
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
    work: Work
    seconds: float
    shared: bool = False
    tracked: bool = False

    @property
    def trained(self) -> bool:
        """Return whether its time goes with its tokens, and it leaves a checkpoint."""
        return self.work == "train"


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("corpus", "pipeline.stages:corpus", 3, "data", 3, shared=True),
        Kind("items", "pipeline.stages:items", 2, "data", 10, shared=True),
        Kind("instructions", "pipeline.stages:instructions", 1, "data", 10, shared=True),
        Kind("target_instructions", "pipeline.stages:target_instructions", 1, "data", 10, shared=True),
        Kind("leaks", "pipeline.stages:leaks", 1, "data", 10, shared=True),
        Kind("base", "pipeline.stages:base", 1, "train", 250, shared=True, tracked=True),
        Kind("ct_blocks", "pipeline.stages:ct_blocks", 1, "data", 4, shared=True),
        Kind("sft_blocks", "pipeline.stages:sft_blocks", 1, "data", 10, shared=True),
        Kind("mixed_blocks", "pipeline.stages:mixed_blocks", 1, "data", 3),
        Kind("ct", "pipeline.stages:ct", 1, "train", 250, tracked=True),
        Kind("sft", "pipeline.stages:sft", 1, "train", 260, tracked=True),
        Kind("tune", "pipeline.tune:tune", 2, "score", 11, tracked=True),
        Kind("merge", "pipeline.stages:merge", 2, "merge", 1),
        Kind("weights", "pipeline.stages:weights", 1, "merge", 2),
        Kind("choose", "pipeline.adapting:choose", 1, "merge", 1),
        Kind("adapted", "pipeline.adapting:adapted", 1, "merge", 5),
        Kind("answers", "pipeline.answering:answers", 1, "score", 20),
        Kind("eval", "pipeline.stages:evaluate", 2, "score", 18, tracked=True),
    )
}
