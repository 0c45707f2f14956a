"""What local data sets and the hub may refuse, each in one line."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from common import hub_data
from common.errors import BadInput
from common.hub_data import Source
from tests.hub_layout import parquet_shards
from tests.messages import assert_one_line
from tests.toy_text import sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parquet_shards(tmp_path_factory.mktemp("hub") / "own", sentences(2, 40), 5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"subset": "zz"}, "zz"),
        ({"split": "dev"}, "split=dev"),
        ({"column": "content"}, "no column 'content'. Choose one of text, url."),
        ({"split": "dev"}, "subset=xx split=dev: cannot be opened (Bad split: dev."),
        ({"files": "nothing/*.parquet"}, "no data file matches corpus.text.files=nothing"),
        ({"dataset": "no/such folder"}, "corpus.text.dataset=no/such folder"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(folder: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as refusal:
        source = Source(str(folder), None if "files" in changes else "xx", revision="a" * 40)
        source = replace(source, **{name: value for name, value in changes.items() if name != "column"})
        hub_data.check(source, (changes.get("column", "text"),), "corpus.text")
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'uonlp/CulturaX' is a gated dataset on the Hub. You must be authenticated to access it."
            ),
            (
                "corpus.text.dataset=uonlp/CulturaX: is gated. Accept its conditions at"
                " https://huggingface.co/datasets/uonlp/CulturaX, then run `hf auth login`"
            ),
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
            "no such data set or revision",
        ),
        (
            ConnectionError("Couldn't reach 'uonlp/CulturaX' on the Hub (LocalEntryNotFoundError)"),
            "the Hub is unreachable",
        ),
    ],
)
def test_what_the_hub_refuses(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(BadInput) as refusal:
        hub_data.check(Source("uonlp/CulturaX", revision="a" * 40), ("text",), "corpus.text")
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([["a", "b"], ["c"]], "row 1: column 'text' must have text in every row, got list"),
        ([{"role": "user"}], "row 1: column 'text' must have text in every row, got dict"),
        ([1, 2], "row 1: column 'text' must have text in every row, got int"),
    ],
)
def test_a_column_that_holds_no_text_is_named_with_its_row(tmp_path: Path, values: list[Any], says: str) -> None:
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "part.parquet")
    with pytest.raises(BadInput, match=re.escape(says)):
        hub_data.check(Source(str(tmp_path)), ("text",), "corpus.text")


def read_all(folder: Path) -> list[tuple[str, ...]]:
    source = Source(str(folder))
    return list(hub_data.rows(hub_data.open_stream(source, "corpus.text"), ("text",), source, "corpus.text"))


def test_a_later_row_that_holds_no_text_is_found_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "part.jsonl").write_text("".join(f'{{"text": "{word}"}}\n' for word in "abcde") + '{"text": ["f"]}\n')
    with pytest.raises(BadInput, match=r"^corpus\.text: .*(row 6|cannot be read)") as refusal:
        read_all(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("part.jsonl", '{"text": "mawu"}\n'.encode("utf-16")),
        ("part.jsonl", '{"text": "caf\u00e9"}\n'.encode("cp1252")),
        ("part.csv", "text\ncaf\u00e9\n".encode("cp1252")),
        ("part.parquet", b""),  # replaced by a shard that is cut off
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    if not content:
        parquet.write_table(pyarrow.table({"text": sentences(2, 400)}), tmp_path / name)
        content = (tmp_path / name).read_bytes()[:-200]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as refusal:
        read_all(tmp_path)
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)


def jsonl(*texts: object) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([0] * 3, "row 1: column 'text' must have text in every row, got int"),
        (["a"] * 5 + [6, "a"], "row 6: column 'text' must have text in every row, got int"),
    ],
)
def test_check_reads_the_first_rows(tmp_path: Path, texts: list[object], says: str) -> None:
    (tmp_path / "own.jsonl").write_bytes(jsonl(*texts))
    with pytest.raises(BadInput) as refusal:
        hub_data.check(Source(str(tmp_path)), ("text",), "corpus.text")
    assert f"corpus.text: {tmp_path} {says}" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_column_that_is_null_is_empty(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(jsonl("a", None))
    source = Source(str(tmp_path))
    assert list(hub_data.rows(hub_data.open_stream(source, "k"), ("text",), source, "k")) == [("a",), ("",)]


def test_rows_that_were_skipped_count(tmp_path: Path) -> None:
    source = Source(str(tmp_path))
    (tmp_path / "own.jsonl").write_bytes(jsonl("a", "b", "c", 4))
    rows = hub_data.rows(
        hub_data.open_stream(source, "k").skip(2), ("text",), source, "k", before=2, file="file 1 of 9"
    )
    with pytest.raises(BadInput, match="file 1 of 9 row 4: "):
        list(rows)


@pytest.mark.parametrize("case", ["cut.jsonl", "cut.jsonl.gz", "damaged.parquet"])
def test_check_names_a_cut_or_damaged_file_in_one_line(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = jsonl(*(f"é {i}" for i in range(2000)))
    if case == "damaged.parquet":
        parquet.write_table(pyarrow.table({"text": [f"doc {i}" for i in range(1000)]}), tmp_path / case)
        whole = (tmp_path / case).read_bytes()
        content = whole[:100] + bytes(800) + whole[900:]
    else:
        content = {
            "cut.jsonl": lines[:-9],
            "cut.jsonl.gz": gzip.compress(lines)[:-300],
        }[case]
    (tmp_path / case).write_bytes(content)
    with pytest.raises(BadInput) as refusal:
        hub_data.check(Source(str(tmp_path)), ("text",), "corpus.text")
    assert str(tmp_path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not caplog.records


def test_a_failing_network_is_not_bad_input() -> None:
    def cut() -> Any:
        yield {"text": "a"}
        raise ConnectionError("reset")

    with pytest.raises(ConnectionError):
        list(hub_data.rows(cut(), ("text",), Source("owner/name"), "corpus.text"))


@pytest.mark.parametrize(
    ("files", "says"),
    [({}, "has no data file"), ({"a.jsonl": b""}, "its files are empty"), ({"a.jsonl.gz": b"{}"}, "cannot be opened")],
)
def test_a_folder_without_rows_is_one_line(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as refusal:
        hub_data.check(Source(str(tmp_path)), ("text",), "corpus.text")
    assert_one_line(refusal.value, f"corpus.text.dataset={tmp_path}")
    assert says in str(refusal.value)


@pytest.mark.parametrize("name", ["json", "text", "csv"])
def test_a_folder_may_have_the_name_of_a_format(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` has readers of these names, which would take every file of the working directory."""
    monkeypatch.chdir(tmp_path)
    for folder, text in ((name, "ours"), ("other", "not ours")):
        Path(folder).mkdir()
        (Path(folder) / "a.jsonl").write_bytes(jsonl(text))
    source = Source(name)
    assert list(hub_data.rows(hub_data.open_stream(source, "k"), ("text",), source, "k")) == [("ours",)]
