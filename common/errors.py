"""What ends a command other than success, each in one line."""


class BadInput(ValueError):
    """Input that cannot work: one line that names the config key or file and says what would be right."""


class Interrupted(RuntimeError):
    """A training was told to stop: it has saved, and the next run goes on from there."""


class StageFailed(RuntimeError):
    """A stage crashed: one line that names it. The cause is chained."""
