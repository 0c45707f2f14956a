"""Further sources of CT: a template, what is left out, and the files that CT reads."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadInput
from common.files import write_jsonl
from common.hub_data import Source
from train.data.corpus import hub
from train.data.corpus.documents import read_rows, training_files
from train.data.corpus.further_text import RUN, SHORTEST, HeldOut, check_source, columns_of, fill, write_source
from train.settings import TextSourceOptions, TextSourceSettings

PARALLEL = "English: {en}\nதமிழ்: {ta}"
ROWS: list[dict[str, Any]] = [
    {"en": "The river is wide.", "ta": "ஆறு அகலமானது.", "id": 1},
    {"en": "A house on the hill.", "ta": "மலையில் ஒரு வீடு.", "id": 2},
    {"en": "THE RIVER is wide!", "ta": "ஆறு அகலமானது", "id": 3},
    {"en": "", "ta": "தனியாக", "id": 4},
    {"en": "Nothing here", "ta": None, "id": 5},
]
LONG = " ".join(f"சொல்{number}" for number in range(80))
HELD_OUT = "மலைகள் மிகவும் உயரமானவை என்று அவர்கள் அன்று சொன்னார்கள்"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus" / "text").mkdir(parents=True)
    write_jsonl(
        tmp_path / "corpus" / "text" / "ta.test.jsonl",
        [{"id": "a", "text": f"முதல். {HELD_OUT}. கடைசி."}, {"id": "c", "text": LONG}],
    )
    trained = [{"id": "b", "text": "ஆறு அகலமானது இங்கே என்று ஒரு கதை"}]
    write_jsonl(tmp_path / "corpus" / "text" / "ta.train.jsonl", trained)
    return tmp_path / "corpus"


def written(
    corpus: Path, out: Path, rows: list[dict[str, Any]], workers: int = 1, **settings: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the documents and the counts of a source of these rows, in two files."""
    data = out.with_name(f"{out.name}-data")
    data.mkdir()
    half = (len(rows) + 1) // 2
    for number, some in enumerate((rows[:half], rows[half:])):
        if some:
            write_jsonl(data / f"{number}.jsonl", some)
    values = {"name": "pairs", "dataset": None, "seed": 0, **settings}
    options = TextSourceOptions(folder=str(data), workers=workers)
    write_source(TextSourceSettings(**values), options, corpus, out, out.with_name(f"{out.name}-work"))
    files = training_files(out, values["name"])
    return [row for file in files for row in read_rows(file)], json.loads((out / "counts.json").read_text())


def test_rows_become_documents_by_a_template_and_bad_ones_are_left_out_and_counted(
    corpus: Path, tmp_path: Path
) -> None:
    rows, counts = written(corpus, tmp_path / "out", ROWS, template=PARALLEL)
    assert {row["text"] for row in rows} == {
        "English: The river is wide.\nதமிழ்: ஆறு அகலமானது.",
        "English: A house on the hill.\nதமிழ்: மலையில் ஒரு வீடு.",
    }
    assert len({row["id"] for row in rows}) == 2
    assert counts["left_out"] == {"empty": 2, "repeated": 1} and counts["documents"] == 2
    assert counts["bytes"] == sum(len(row["text"].encode()) for row in rows)


def test_held_out_text_is_dropped_whatever_its_marks_and_training_text_is_not(corpus: Path, tmp_path: Path) -> None:
    rows = [
        {"en": "They said so.", "ta": f"«{HELD_OUT.replace(' ', ', ')}»"},
        {"en": "Short.", "ta": "மிகவும் உயரமானவை"},  # too short to tell
        {"en": "A story.", "ta": "ஆறு அகலமானது இங்கே என்று ஒரு கதை"},  # the corpus trains on it
        {"en": "A copy.", "ta": f"வேறு உரை {LONG.upper()} இன்னும்"},
        {"en": "A part.", "ta": f"வேறு உரை {' '.join(LONG.split()[20:60])} இன்னும்"},
        {"en": "A smaller part.", "ta": f"வேறு உரை {' '.join(LONG.split()[20:40])} இன்னும்"},
    ]
    documents, counts = written(corpus, tmp_path / "out", rows, template=PARALLEL)
    assert {row["text"].split("\n")[0] for row in documents} == {
        "English: Short.",
        "English: A story.",
        "English: A smaller part.",
    }
    assert counts["left_out"] == {"held_out": 3}


def shares_text(held_out: list[list[str]], passage: list[str]) -> bool:
    """The rule by its words: RUN words in a row, or all of the shorter text if that has SHORTEST or more."""

    def inside(short: list[str], long: list[str]) -> bool:
        return any(long[start : start + len(short)] == short for start in range(len(long) - len(short) + 1))

    for document in held_out:
        size = min(RUN, len(document), len(passage))
        runs = [passage[start : start + size] for start in range(len(passage) - size + 1)]
        if size >= SHORTEST and any(inside(run, document) for run in runs):
            return True
    return False


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("ab"), max_size=40), min_size=1, max_size=3),
    st.lists(st.sampled_from("ab"), max_size=60),
)
def test_held_out_text_is_found_by_hashes_as_by_words(held_out: list[list[str]], passage: list[str]) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "text").mkdir()
        write_jsonl(Path(folder) / "text" / "xx.dev.jsonl", [{"id": "", "text": " ".join(text)} for text in held_out])
        assert HeldOut(Path(folder)).overlaps(" ".join(passage)) == shares_text(held_out, passage)


def test_files_are_read_in_shards_that_any_number_of_processes_makes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"வரி எண் {number}"} for number in range(20)]
    documents, _ = written(corpus, tmp_path / "whole", rows)
    assert sorted(row["text"] for row in documents) == sorted(row["text"] for row in rows)
    assert written(corpus, tmp_path / "two", rows, workers=2)[0] == documents
    monkeypatch.setattr(hub, "SHARD_BYTES", 60)
    assert written(corpus, tmp_path / "small", rows)[0] == documents
    assert len(training_files(tmp_path / "small", "pairs")) > 3


def test_bytes_are_bounded(corpus: Path, tmp_path: Path) -> None:
    rows = [{"text": f"வரி எண் {number}"} for number in range(20)]
    documents, counts = written(corpus, tmp_path / "some", rows, max_bytes=100)
    assert 0 < counts["bytes"] <= 100 and 0 < counts["documents"] == len(documents) < 20
    with pytest.raises(BadInput, match="no document is left.*max_bytes"):
        written(corpus, tmp_path / "none", rows, max_bytes=3)


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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"txt": "a"}], "no column 'text'.*txt"),
        ([{"text": 3}], "row 1: column 'text' must have text in every row, got int"),
        ([{"text": " "}], r"no document is left \(left out: 1 empty\)"),
        ([{"text": HELD_OUT}], r"no document is left \(left out: 1 held out\)"),
    ],
)
def test_bad_rows_are_one_line(corpus: Path, tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        written(corpus, tmp_path / "out", rows)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("ct.sources.pairs")


def test_the_first_rows_are_checked(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"en": "A river.", "ta": " "}, {"en": "", "ta": "ஆறு"}])
    source = Source(str(tmp_path))
    check_source(source, "{en}", "ct.sources.pairs")
    for template, message in ((PARALLEL, "no text in en and ta in its first rows"), ("{tam}", "no column 'tam'")):
        with pytest.raises(BadInput, match=message):
            check_source(source, template, "ct.sources.pairs")
    check_source(source, "{en}", "ct.sources.pairs", len("A river."))
    with pytest.raises(BadInput, match=r"^ct\.sources\.pairs\.max_bytes=7: the shortest .* has 8 bytes"):
        check_source(source, "{en}", "ct.sources.pairs", 7)


@given(st.text(), st.text())
def test_values_are_filled_in_as_they_are(one: str, other: str) -> None:
    assert fill("<{a}> {{x}} {b}{a}", {"a": one, "b": other}) == f"<{one}> {{x}} {other}{one}"
    assert columns_of("<{a}> {{x}} {b}{a}", "key") == ("a", "b")
