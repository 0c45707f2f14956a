"""A user's own files, of each format."""

import json
from pathlib import Path

import pytest

from common.errors import BadInput
from train.data.corpus import sources


@pytest.mark.parametrize("suffix", sources.SUFFIXES)
def test_own_files_of_each_format(tmp_path: Path, suffix: str) -> None:
    texts = [f"document number {i} with some words" for i in range(50)]
    path = tmp_path / f"mine{suffix}"
    if suffix == ".txt":
        path.write_text("\n\n".join(texts))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        import pandas

        pandas.DataFrame({"text": texts}).to_parquet(path)
    assert list(sources.read_documents(str(path), "corpus.path")) == texts


def test_a_line_of_jsonl_ends_where_json_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    texts = ["mawu\u2028ena", "mawu\u2029ena", "mawu\x85ena", "mawu ena"]
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_bytes("\r\n".join([*rows[:2], "", *rows[2:]]).encode())
    assert [row["text"] for row in sources.read_jsonl_rows(path, ("text",), "corpus.path")] == texts


def test_a_column_of_categories_is_text(tmp_path: Path) -> None:
    import pandas

    pandas.DataFrame({"text": ["mawu", "ena", "mawu"]}, dtype="category").to_parquet(tmp_path / "mine.parquet")
    assert list(sources.read_documents(str(tmp_path / "mine.parquet"), "corpus.path")) == ["mawu", "ena", "mawu"]


def test_half_of_a_letter_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "mawu"}\n{"text": "\\ud800"}\n')
    with pytest.raises(BadInput, match=r"mine\.jsonl line 2: not JSON"):
        list(sources.read_documents(str(tmp_path / "mine.jsonl"), "corpus.path"))


def test_lines_of_a_document_stay(tmp_path: Path) -> None:
    text = "\ufeffMawu a\u00a0 mzere  umodzi.\nWachiwiri.\n \t\nབོད་སྐད།\n\u00a0\n\n தமிழ்\r\nமொழி \n"
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
    expected = ["Mawu a mzere umodzi.\nWachiwiri.", "བོད་སྐད།", "தமிழ்\nமொழி"]
    assert list(sources.read_documents(str(tmp_path / "mine.txt"), "corpus.path")) == expected


def test_a_byte_order_mark_of_jsonl_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('\ufeff{"text": "one\\n\\n\\n\\ntwo"}\n', encoding="utf-8")
    assert list(sources.read_documents(str(tmp_path / "mine.jsonl"), "corpus.path")) == ["one\n\ntwo"]


def test_a_nul_is_rejected_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("one\ntwo\0\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"mine\.txt line 2 contains a NUL"):
        list(sources.read_documents(str(tmp_path / "mine.txt"), "corpus.path"))


def test_a_folder_whose_name_is_a_pattern_is_found(tmp_path: Path) -> None:
    (tmp_path / "[old]").mkdir()
    (tmp_path / "[old]" / "part1.txt").write_text("one\n")
    assert list(sources.read_documents(str(tmp_path / "[old]" / "part1.txt"), "corpus.path")) == ["one"]


@pytest.mark.parametrize("blank", ["", " ", "\t", "\u00a0", " \r", "\n\n", "\u00a0\n \n"])
def test_a_blank_line_that_holds_spaces_ends_a_document(tmp_path: Path, blank: str) -> None:
    (tmp_path / "mine.txt").write_bytes(f"one\n{blank}\ntwo\n{blank}\nthree\n".encode())
    assert list(sources.read_documents(str(tmp_path / "mine.txt"), "k")) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("a.txt", "line 2 contains a NUL"), ("a.jsonl", "line 2: .*'text'.*NUL"), ("a.parquet", "row 2: .*NUL")],
)
def test_a_nul_is_refused_by_its_place(tmp_path: Path, name: str, says: str) -> None:
    texts = ["mawu", "e\0na"]
    if name == "a.txt":
        (tmp_path / name).write_text("\n".join(texts))
    elif name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        import pandas

        pandas.DataFrame({"text": texts}).to_parquet(tmp_path / name)
    with pytest.raises(BadInput, match=says):
        list(sources.read_documents(str(tmp_path / name), "corpus.path"))


def test_a_field_that_is_not_text_is_refused_by_its_type(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "mawu"}\n{"text": ["ena"]}\n')
    with pytest.raises(BadInput, match=r"mine\.jsonl line 2: the field 'text' must be text, got list"):
        list(sources.read_documents(str(tmp_path / "mine.jsonl"), "corpus.path"))


@pytest.mark.parametrize("pattern", ["[old]/*.txt", "[old]/**/*.txt", "[old]/a[1].txt", "[old]/a[[]1].txt"])
def test_a_folder_named_like_a_glob_is_found(tmp_path: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("[old]", "o"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a[1].txt").write_text("mawu")
    assert sources.matching_files(f"{tmp_path}/{pattern}", "k") == [tmp_path / "[old]" / "a[1].txt"]
    monkeypatch.chdir(tmp_path)
    assert sources.matching_files(pattern, "k") == [Path("[old]/a[1].txt")]
    assert sources.matching_files("[o]/*.txt", "k") == [Path("o/a[1].txt")]
