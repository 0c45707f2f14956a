"""The stages of a plan. A stage is one typed value; what plans and what makes a kind of it are in one file.

A new kind is a `StageType` in one of these files, or in a new one that is named here.
"""

from pipeline.stages import adapting, data, merging, scoring, training, tuning, vocabulary
from pipeline.stages.stage import GIVEN, StageType

STAGE_TYPES: dict[str, StageType] = {
    value.name: value
    for module in (data, vocabulary, training, scoring, tuning, merging, adapting)
    for value in vars(module).values()
    if isinstance(value, StageType) and value is not GIVEN
}
