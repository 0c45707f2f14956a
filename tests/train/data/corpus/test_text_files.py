"""A user's own files, of each format."""

import json
from pathlib import Path

import pytest

from train.data.corpus import text_files


@pytest.mark.parametrize("suffix", text_files.FORMATS)
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
    assert list(text_files.documents(str(path), "corpus.path")) == texts
