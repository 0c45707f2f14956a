"""What local data sets and the hub may refuse, each in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from common import hub_data
from common.errors import BadInput
from common.hub_data import Source
from tests.hub_layout import parquet_shards
from tests.toy_text import sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parquet_shards(tmp_path_factory.mktemp("hub") / "own", sentences(2, 40), 5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"subset": "zz"}, "zz"),
        ({"split": "dev"}, "split=dev"),
        ({"column": "content"}, "no column 'content' (it has text, url)"),
        ({"files": "nothing/*.parquet"}, "no data files that match corpus.text.files=nothing"),
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
                "corpus.text.dataset=uonlp/CulturaX is gated: accept its conditions at"
                " https://huggingface.co/datasets/uonlp/CulturaX, then say `hf auth login`"
            ),
        ),
        (
            datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
            "no such data set or revision",
        ),
        (
            ConnectionError("Couldn't reach 'uonlp/CulturaX' on the Hub (LocalEntryNotFoundError)"),
            "the hub cannot be reached",
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
