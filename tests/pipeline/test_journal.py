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


def test_an_event_is_read_once_and_a_line_that_is_not_complete_yet_later(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.new_events() == []
    with journal.path.open("a") as file:
        file.write('{"event": "started"}\n{"event": ')
        file.flush()
        assert journal.new_events() == [{"event": "started"}] and journal.new_events() == []
        file.write('"published"}\n')
    assert journal.new_events() == [{"event": "published"}]
    assert journal.events("started", "published") == [{"event": "started"}, {"event": "published"}]


def test_a_line_that_was_cut_is_passed_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.jsonl")
    journal.path.write_text('{"event": "star{"event": "failed"}\n{"event": "published"}\n')
    assert journal.new_events() == [{"event": "published"}]
