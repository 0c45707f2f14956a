"""What is refused, in one line."""

from eval.errors import BadInput as EvalBadInput
from merge.errors import BadInput as MergeBadInput
from train.errors import BadInput as TrainBadInput


class BadInput(ValueError):
    """Input that cannot work: one line that names the config key or file and says what would be right."""


class StageFailed(RuntimeError):
    """A stage crashed: one line that names it. The cause is chained."""


class Preempted(RuntimeError):
    """A training was told to stop: it has saved, and the next run goes on from there."""


BAD_INPUT = (BadInput, TrainBadInput, MergeBadInput, EvalBadInput)  # the rooms do not know each other; the pipeline knows them all
