"""Corpora from local folders in the layout of the hub, and what the hub may refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from common import hub_data as hub
from common.errors import BadInput
from tests.train.conftest import sentences
from train.data import instructions
from train.data.corpus import build as corpus
from train.data.corpus import shards as parts
from train.data.corpus.build import files_of, read_jsonl, read_rows


def parquet_shards(folder: Path, documents: list[str], shards: int, column: str = "text") -> Path:
    """A data set as the hub keeps it: a card that names a configuration, and Parquet shards."""
    (folder / "xx").mkdir(parents=True)
    (folder / "README.md").write_text('---\nconfigs:\n- config_name: xx\n  data_files: "xx/*.parquet"\n---\n')
    for shard in range(shards):
        rows = documents[shard::shards]
        parquet.write_table(
            pyarrow.table({column: rows, "url": ["u"] * len(rows)}), folder / "xx" / f"xx_part_{shard:05d}.parquet"
        )
    return folder


def jsonl_shards(folder: Path, documents: list[str], language: str) -> Path:
    """A data set of a JSONL file a language and no configurations."""
    folder.mkdir(parents=True)
    rows = (json.dumps({"title": "t", "text": text, "url": "u"}) + "\n" for text in documents)
    (folder / f"{language}-crawl-only.jsonl").write_text("".join(rows))
    return folder


def source(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "dataset": str(folder),
        "subset": None,
        "files": None,
        "split": "train",
        "revision": None,
        "column": "text",
        **changes,
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("hub")
    same = ["The Same, words!", "the same words", "The same -- words"]
    return parquet_shards(root / "own", [*sentences(2, 400), *same], 5), jsonl_shards(
        root / "english", sentences(3, 200), "en"
    )


def settings(folders: tuple[Path, Path], **changes: Any) -> dict[str, Any]:
    text, english = source(folders[0], subset="xx"), source(folders[1], files="en-crawl*.jsonl")
    shares = {"dev": 0.1, "test": 0.1, "seed": 0, "text_bytes": None, "english_bytes": None}
    return {"source": "hub", "language": "xx", "text": text, "english": english, "workers": 1, **shares, **changes}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_corpus_of_both_layouts(folders: tuple[Path, Path], tmp_path: Path) -> None:
    corpus.build(settings(folders), tmp_path / "out", tmp_path / "work")
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())["languages"]
    for language, total in (("xx", 403), ("en", 200)):
        documents = {
            split: read_jsonl(tmp_path / "out" / "text" / f"{language}.{split}.jsonl") for split in ("dev", "test")
        }
        documents["train"] = [row for path in files_of(tmp_path / "out", language) for row in read_rows(path)]
        for split, rows in documents.items():
            assert counts[language][split]["documents"] == len(rows)
        by_id = [{row["id"] for row in rows} for rows in documents.values()]
        assert not by_id[0] & by_id[1] and not by_id[0] & by_id[2] and not by_id[1] & by_id[2]
        assert sum(map(len, documents.values())) <= total and 0.6 * total < len(documents["train"]) < 0.95 * total
    names = {row["id"] for row in (*documents["train"], *documents["dev"], *documents["test"])}
    assert names <= {
        corpus.hashlib.sha256(corpus.normalised(text).encode()).hexdigest()[:16] for text in sentences(3, 200)
    }


def test_the_same_corpus_for_any_number_of_workers(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for workers in (1, 2):
        corpus.build(
            settings(folders, workers=workers, text_bytes=40_000), tmp_path / str(workers), tmp_path / f"work{workers}"
        )
    one, two = (contents(tmp_path / str(workers)) for workers in (1, 2))
    assert one == two and len(one) > 5


def test_text_is_taken_up_to_a_number_of_bytes(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 2_000)
    corpus.build(settings(folders, text_bytes=40_000, english_bytes=30_000), tmp_path / "out", tmp_path / "work")
    counts = json.loads((tmp_path / "out" / "counts.json").read_text())["languages"]
    longest = max(len(text) for text in sentences(2, 400) + sentences(3, 200))
    for language, wanted in (("xx", 40_000), ("en", 30_000)):
        assert wanted <= counts[language]["train"]["bytes"] < wanted + 2_000 + longest
        held = sum(len(row["text"]) for path in files_of(tmp_path / "out", language) for row in read_rows(path))
        assert held == counts[language]["train"]["bytes"]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from train.data.corpus import build as corpus, shards as parts
parts.PART_BYTES = 3_000
write, left = parts.write_part, int(sys.argv[4])
def watched(*arguments, **more):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments, **more)
parts.write_part = watched
corpus.build(json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_kill_costs_the_part_that_was_being_read(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = json.dumps(settings(folders))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, described, str(tmp_path / "killed"), str(tmp_path / "work"), "13"], check=False
    )
    assert killed.returncode == -9
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.parquet")}
    assert len(kept) == 12
    monkeypatch.setattr(parts, "PART_BYTES", 3_000)
    corpus.build(settings(folders), tmp_path / "out", tmp_path / "work")
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.parquet")}.items()
    corpus.build(settings(folders), tmp_path / "straight", tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_instructions_in_the_layout_of_flan(tmp_path: Path) -> None:
    (tmp_path / "flan" / "flan_zsopt_data").mkdir(parents=True)
    for part in range(2):
        rows = {
            "inputs": [f"What is {part} + {i}?" for i in range(30)],
            "targets": [str(part + i) for i in range(29)] + [""],
            "_task_name": ["add"] * 30,
        }
        parquet.write_table(pyarrow.table(rows), tmp_path / "flan" / "flan_zsopt_data" / f"part.{part}.parquet")
    flan = source(tmp_path / "flan", files="flan_*_data/*.parquet", prompt="inputs", answer="targets", bytes=None)
    instructions.from_hub({"hub": flan, "seed": 0}, tmp_path / "items", tmp_path / "work")
    made = [row for path in instructions.instruction_files(tmp_path / "items") for row in read_rows(path)]
    assert len(made) == 58 and {"prompt": "What is 1 + 7?", "output": "8", "family": "hub"} in made
    assert json.loads((tmp_path / "items" / "counts.json").read_text())["sft"] == {"hub": 58}


def test_items_of_a_corpus_from_the_hub(folders: tuple[Path, Path], tmp_path: Path) -> None:
    corpus.build(settings(folders), tmp_path / "corpus", tmp_path / "work")
    wanted = {"language": "xx", "families": ["next"], "sft_items": 9, "eval_items": 7, "sft_path": None, "seed": 0}
    instructions.build(tmp_path / "corpus", wanted, tmp_path / "items")
    assert len(read_jsonl(tmp_path / "items" / "sft.jsonl")) == 9
    assert len(read_jsonl(tmp_path / "items" / "tasks" / "next_xx.test.jsonl")) == 7


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
def test_a_source_that_cannot_be_read_is_named(folders: tuple[Path, Path], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as refusal:
        hub.check(
            {**source(folders[0], subset=None if "files" in changes else "xx"), "revision": "a" * 40, **changes},
            (changes.get("column", "text"),),
            "corpus.text",
        )
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            datasets.exceptions.DatasetNotFoundError(
                "Dataset 'uonlp/CulturaX' is a gated dataset on the Hub. You must be authenticated to access it."
            ),
            "corpus.text.dataset=uonlp/CulturaX is gated: accept its conditions at https://huggingface.co/datasets/uonlp/CulturaX, then say `hf auth login`",
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
        hub.check({**source(Path("uonlp/CulturaX")), "revision": "a" * 40}, ("text",), "corpus.text")
    assert says in str(refusal.value) and "\n" not in str(refusal.value)
