"""Check the subject of a commit: `python -m tests.commits FILE`, as git's commit-msg hook calls it (.ci/commit-msg)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

LONGEST = 72  # characters of a subject
NOT_IMPERATIVE = re.compile(r"(?:A|An|The|This|What|Which|Where|How|WIP|Wip|[A-Z][a-z]+(?:ed|ing))\b")


def fault(subject: str) -> str | None:
    """Describe what is wrong with a subject; None if nothing is."""
    if len(subject) > LONGEST:
        return f"must have at most {LONGEST} characters, got {len(subject)}. Put the reason into the body."
    if not re.match(r"[A-Z][a-z]+[ ,]", subject) or NOT_IMPERATIVE.match(subject):
        return f"must begin with an imperative, got {subject.partition(' ')[0]!r}. Write `Reject a density above 1`."
    if subject.endswith("."):
        return "must not end with a full stop. Remove it."
    return None


def main(arguments: list[str]) -> int:
    """Check the message in a file; return 1 for a bad subject."""
    subject = Path(arguments[0]).read_text(encoding="utf-8").partition("\n")[0]
    if wrong := fault(subject):
        print(f"commit subject: {wrong}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
