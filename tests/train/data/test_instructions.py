"""Instructions and items: ours, a user's, and those of a data set."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from common.errors import BadInput
from common.files import read_jsonl
from common.items import Item
from train.data import instructions, questions
from train.data.corpus.documents import read_rows
from train.settings import (
    InstructionsInLanguageSettings,
    InstructionSource,
    InstructionsSettings,
    ItemsSettings,
)


def build(corpus_dir: Path, out: Path, sft_path: str | None = None, **changes: Any) -> None:
    values = {"language": "xx", "families": list(questions.QUESTIONS), "sft_items": 40, "eval_items": 20, "seed": 0}
    instructions.build(corpus_dir, ItemsSettings(**values | changes), out, sft_path)


def test_instructions_and_items_share_templates_but_not_content(corpus_dir: Path, tmp_path: Path) -> None:
    build(corpus_dir, tmp_path / "a")
    build(corpus_dir, tmp_path / "b")
    sft = read_jsonl(tmp_path / "a" / "sft.jsonl")
    assert {row["family"] for row in sft} == {"next", "route", "blank", "lookup"}  # no aligned verses here
    items = read_jsonl(tmp_path / "a" / "tasks" / "next_en.test.jsonl")
    trained = {row["prompt"] for row in sft}
    assert items and all(item["prompt"].startswith("Which word comes next?\n") for item in items)
    assert all(
        row["prompt"].endswith("\nWhich word fills the blank?\nAnswer:") for row in sft if row["family"] == "blank"
    )
    assert not trained & {item["prompt"] for item in items}
    for path in sorted((tmp_path / "a").rglob("*.json*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_own_instructions(corpus_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"instruction": "Say yes.", "input": "", "output": "yes"}) + "\n")
    build(corpus_dir, tmp_path / "out", sft_path=str(path))
    assert read_jsonl(tmp_path / "out" / "sft.jsonl") == [
        {"prompt": "Say yes.\nAnswer:", "output": "yes", "family": "own"}
    ]
    assert questions.prompt_of("Say yes.", "A text.") == "A text.\nSay yes.\nAnswer:"
    path.write_text(json.dumps({"instruction": "Say yes."}) + "\n")
    with pytest.raises(BadInput, match="sft.path: .* line 1 has no field 'input'"):
        build(corpus_dir, tmp_path / "other", sft_path=str(path))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"output": " "}, "line 3: the field 'output' is empty"),
        ({"instruction": ""}, "line 3: the field 'instruction' is empty"),
        ({"output": 7}, "line 3: the field 'output' must be text, got int"),
        ({"family": None}, "line 3: the field 'family' must be text, got null"),
        ({"family": ["a"]}, r"line 3: the field 'family' must be text, got \["),
    ],
)
def test_an_own_instruction_that_cannot_work_is_named_by_its_line(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    row = {"instruction": "Say yes.", "input": "", "output": "yes"}
    lines = [json.dumps(row), "", json.dumps(row | changes)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    with pytest.raises(BadInput, match=says):
        instructions.own_instructions(str(tmp_path / "mine.jsonl"))


def test_instructions_in_the_language_are_of_its_training_text(corpus_dir: Path, tmp_path: Path) -> None:
    settings = InstructionsInLanguageSettings(language="xx", families=("next", "route"), sft_items=30, seed=0)
    instructions.build_in_language(corpus_dir, settings, tmp_path)
    rows = read_jsonl(tmp_path / "sft.jsonl")
    assert json.loads((tmp_path / "counts.json").read_text())["sft"] == {"next": 30, "route": 30}
    texts = {name: read_jsonl(corpus_dir / "text" / f"{name}.jsonl") for name in ("xx.train", "xx.test", "en.train")}
    for name, documents in texts.items():
        joined = " ".join(" ".join(row["text"].split()) for row in documents)
        stand = [(row["prompt"].splitlines()[row["family"] == "next"] + " " + row["output"]) in joined for row in rows]
        assert all(stand) if name == "xx.train" else not any(stand)


def test_an_unknown_family_is_named(corpus_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="eval.families: no such family, got 'sums'"):
        build(corpus_dir, tmp_path / "out", families=["next", "sums"])


def test_instructions_in_the_layout_of_flan(tmp_path: Path) -> None:
    (tmp_path / "flan" / "flan_zsopt_data").mkdir(parents=True)
    for part in range(2):
        rows = {
            "inputs": [f"What is {part} + {i}?" for i in range(30)],
            "targets": [str(part + i) for i in range(29)] + [""],
            "_task_name": ["add"] * 30,
        }
        parquet.write_table(pyarrow.table(rows), tmp_path / "flan" / "flan_zsopt_data" / f"part.{part}.parquet")
    flan = InstructionSource(
        dataset=None,
        subset=None,
        files="flan_*_data/*.parquet",
        split="train",
        revision=None,
        prompt="inputs",
        answer="targets",
        bytes=None,
    )
    settings = InstructionsSettings(hub=flan, seed=0)
    instructions.from_hub(settings, tmp_path / "items", tmp_path / "work", str(tmp_path / "flan"))
    made = [row for path in instructions.instruction_files(tmp_path / "items") for row in read_rows(path)]
    assert len(made) == 58 and {"prompt": "What is 1 + 7?", "output": "8", "family": "hub"} in made
    assert json.loads((tmp_path / "items" / "counts.json").read_text())["sft"] == {"hub": 58}


def test_every_item_is_a_record_that_can_be_read_back(corpus_dir: Path, tmp_path: Path) -> None:
    build(corpus_dir, tmp_path)
    rows = [row for path in (tmp_path / "tasks").iterdir() for row in read_jsonl(path)]
    assert rows and all(Item.from_row(row).as_row() == row for row in rows)


def test_items_name_the_held_out_document_that_they_are_from(corpus_dir: Path, tmp_path: Path) -> None:
    build(corpus_dir, tmp_path)
    for path in sorted((tmp_path / "tasks").iterdir()):
        language, split = path.name.split("_")[1].split(".")[:2]
        held_out = {row["id"]: row["text"] for row in read_jsonl(corpus_dir / "text" / f"{language}.{split}.jsonl")}
        for row in read_jsonl(path):
            assert row["document"] in held_out, path.name
            if row["family"] == "next":
                assert row["prompt"].partition("\n")[2] in " ".join(held_out[row["document"]].split())


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Say yes.", "context": "A text.", "response": "yes"}, "A text.\nSay yes.\nAnswer:"),
        ({"instruction": "Say yes.", "response": "yes"}, "Say yes.\nAnswer:"),
        ({"inputs": "Say yes.", "targets": "yes", "language": "English"}, "Say yes.\nAnswer:"),
        ({"prompt": "Say yes:", "completion": "yes"}, "Say yes:"),
        ({"instruction": "Say yes.", "input": "", "output": "yes", "messages": []}, "Say yes.\nAnswer:"),
    ],
)
def test_formats_of_one_answer_need_no_template(tmp_path: Path, row: dict[str, Any], prompt: str) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    [made] = instructions.own_instructions(str(tmp_path / "mine.jsonl"))
    assert made == {"prompt": prompt, "output": "yes", "family": "own"}


def test_conversations_need_a_template(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps({"conversations": []}) + "\n")
    with pytest.raises(BadInput, match=r"line 1: contains a conversation \(sharegpt\), which needs a chat template"):
        instructions.own_instructions(str(tmp_path / "mine.jsonl"))
