"""One corpus and its items for all architectures, and a folder for each model."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.files import write_jsonl
from tests.architectures.model_kinds import untrained
from tests.architectures.tokenizer_kinds import lines
from train.data.corpus import build
from train.settings import CorpusOptions, CorpusSettings


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in a language of several scripts and in English, `corpus`; instructions, `items`; tasks, `tasks`."""
    folder = tmp_path_factory.mktemp("text")
    for name, seed in (("mine", 1), ("english", 2)):
        (folder / f"{name}.txt").write_text("\n\n".join(lines(seed, 120)), encoding="utf-8")
    options = CorpusOptions(path=str(folder / "mine.txt"), english_path=str(folder / "english.txt"))
    build.build(
        CorpusSettings(source="files", language="xx", dev=0.1, test=0.1, seed=0), options, folder / "corpus", folder
    )
    words = [line.split() for line in lines(3, 60)]
    examples = [{"prompt": f"{' '.join(row[:4])}\nAnswer:", "output": " ".join(row[4:7])} for row in words]
    items = [
        {"id": f"next.{number}", "prompt": example["prompt"], "choices": row[4:8], "answer": 0, "trivial": 1,
         "family": "next", "language": "xx"}
        for number, (row, example) in enumerate(zip(words, examples, strict=True))
    ]  # fmt: skip
    for place, rows in (("items", examples), ("tasks", items[:6])):
        (folder / place).mkdir()
        write_jsonl(folder / place / ("sft.jsonl" if place == "items" else "next_xx.test.jsonl"), rows)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of untrained models that were made so far, by the name of their architecture."""
    return Folders(tmp_path_factory.mktemp("models"))


class Folders(dict[str, Path]):
    """Makes the folder of an architecture when it is first wanted."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, name: str) -> Path:
        self[name] = untrained(name, self.root / name)
        return self[name]
