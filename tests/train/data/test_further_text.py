"""Further sources of CT: a template, what is left out, and the files that CT reads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadInput
from common.files import write_jsonl
from train.data.corpus import further_text
from train.data.corpus.documents import read_rows, training_files
from train.data.corpus.further_text import HeldOut, columns_of, documents, fill, write_source

PARALLEL = "English: {en}\nதமிழ்: {ta}"
ROWS: list[dict[str, Any]] = [
    {"en": "The river is wide.", "ta": "ஆறு அகலமானது.", "id": 1},
    {"en": "A house on the hill.", "ta": "மலையில் ஒரு வீடு.", "id": 2},
    {"en": "THE RIVER is wide!", "ta": "ஆறு அகலமானது", "id": 3},
    {"en": "", "ta": "தனியாக", "id": 4},
    {"en": "Nothing here", "ta": None, "id": 5},
]
HELD_OUT = "மலைகள் மிகவும் உயரமானவை என்று அவர்கள் அன்று சொன்னார்கள்"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus" / "text").mkdir(parents=True)
    write_jsonl(tmp_path / "corpus" / "text" / "ta.test.jsonl", [{"id": "a", "text": f"முதல். {HELD_OUT}. கடைசி."}])
    text = "ஆறு அகலமானது இங்கே என்று ஒரு கதை"
    write_jsonl(tmp_path / "corpus" / "text" / "ta.train.jsonl", [{"id": "b", "text": text}])
    return tmp_path / "corpus"


def test_rows_become_documents_by_a_template_and_bad_ones_are_left_out_and_counted(corpus: Path) -> None:
    counts: Counter[str] = Counter()
    made = list(documents(ROWS, PARALLEL, "ct.sources.pairs", HeldOut(corpus), counts))
    assert [row["text"] for row in made] == [
        "English: The river is wide.\nதமிழ்: ஆறு அகலமானது.",
        "English: A house on the hill.\nதமிழ்: மலையில் ஒரு வீடு.",
    ]
    assert counts == {"repeated": 1, "empty": 2} and len({row["id"] for row in made}) == 2


def test_held_out_text_is_dropped_whatever_its_marks_and_training_text_is_not(corpus: Path) -> None:
    rows = [
        {"en": "They said so.", "ta": f"«{HELD_OUT.replace(' ', ', ')}»"},
        {"en": "Short.", "ta": "மிகவும் உயரமானவை"},  # too short to tell
        {"en": "A story.", "ta": "ஆறு அகலமானது இங்கே என்று ஒரு கதை"},  # the corpus trains on it
    ]
    counts: Counter[str] = Counter()
    made = list(documents(rows, PARALLEL, "key", HeldOut(corpus), counts))
    assert [row["text"].split("\n")[0] for row in made] == ["English: Short.", "English: A story."]
    assert counts == {"held_out": 1}


def test_ct_reads_what_is_written_and_bytes_are_bounded(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(further_text, "SHARD_BYTES", 60)
    rows = [{"text": f"வரி எண் {number}"} for number in range(20)]
    write_source("tamil", rows, "{text}", corpus, tmp_path / "all", key="ct.sources.tamil")
    files = training_files(tmp_path / "all", "tamil")
    assert len(files) > 3
    assert [row["text"] for file in files for row in read_rows(file)] == [row["text"] for row in rows]
    write_source("tamil", rows, "{text}", corpus, tmp_path / "some", key="ct.sources.tamil", max_bytes=100)
    counts = json.loads((tmp_path / "some" / "counts.json").read_text())
    assert 0 < counts["bytes"] <= 100 and 0 < counts["documents"] < 20


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no column", "must name a column"),
        ("{}", "name of a column"),
        ("{a!r}", "name of a column"),
        ("{a:>3}", "name of a column"),
        ("{a.b}", "name of a column"),
        ("{a[0]}", "name of a column"),
        ("{a", "braces that are no column"),
        ("a}", "braces that are no column"),
    ],
)
def test_a_bad_template_is_one_line(template: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        columns_of(template, "ct.sources.pairs.template")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("ct.sources.pairs.template")


def test_bad_rows_are_one_line(corpus: Path, tmp_path: Path) -> None:
    for number, (rows, message) in enumerate(
        (
            ([{"txt": "a"}], "no column 'text'.*txt"),
            ([{"text": 3}], "row 1: column 'text' must have text, got int"),
            ([{"text": " "}], r"no document is left \(1 empty\)"),
            ([], r"no document is left \(no rows\)"),
        )
    ):
        with pytest.raises(BadInput, match=message):
            write_source("s", rows, "{text}", corpus, tmp_path / str(number), key="ct.sources.s")


@given(st.text(), st.text())
def test_values_are_filled_in_as_they_are(one: str, other: str) -> None:
    assert fill("<{a}> {{x}} {b}{a}", {"a": one, "b": other}) == f"<{one}> {{x}} {other}{one}"
    assert columns_of("<{a}> {{x}} {b}{a}", "key") == ("a", "b")
