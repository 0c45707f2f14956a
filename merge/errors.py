"""What is refused, in one line."""


class BadInput(ValueError):
    """Input that cannot work: one line that names the file, tensor or key and says what would be right."""
