"""What this room refuses, and how it says that it was asked to stop."""


class BadInput(ValueError):
    """Input that cannot work: one line that names the file or key and says what would be right."""


class Interrupted(RuntimeError):
    """A training was asked to stop: it has saved, and a later call with the same work folder goes on from there."""
