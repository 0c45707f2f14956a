"""What is written in a run's journal comes back, whatever is in its messages."""

from __future__ import annotations

from pathlib import Path

from pipeline.journal import Journal

MESSAGE = "a text's \u2028 own \u0085 ends of\r\n lines"


def test_ends_of_lines_in_a_message_are_not_the_journals(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("refused", message=MESSAGE)
    journal.write("started")
    assert [event.get("message") for event in journal.events("refused", "started")] == [MESSAGE, None]
