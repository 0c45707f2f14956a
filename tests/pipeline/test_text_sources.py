"""Further texts of CT: what is rejected, what a key depends on, and a run with parallel text in Tamil."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from common.errors import BadInput
from common.files import read_jsonl, write_jsonl
from pipeline import inputs, sweep
from pipeline.check import data
from pipeline.config import Config
from pipeline.cost.estimate import stage_work
from pipeline.cost.shape import model_shape
from pipeline.run.run import check_configs
from pipeline.run_plan import RunPlan, without_stages
from pipeline.stages.cell import Cell, plan_cell
from tests.messages import assert_one_line, assert_wording
from train.data.blocks import interleave
from train.data.corpus.documents import read_rows

ROOT = Path(__file__).parents[2]
TAMIL = "ஆறு மலை வீடு மரம் நீர் பூ கடல் மழை நிலா காற்று பறவை மனிதன் வந்தான் சென்றாள் பெரிய சிறிய"
ENGLISH = "river hill house tree water flower sea rain moon wind bird man came went large small"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    (tmp_path / "pairs").mkdir()
    write_jsonl(tmp_path / "pairs" / "rows.jsonl", [{"ta": "ஆறு பெரியது", "en": "The river is large", "note": ""}])
    return tmp_path / "pairs"


def written(value: object) -> str:
    """Return a value as the command line takes it, where keys have no quotation marks."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def source(folder: object, **values: Any) -> str:
    """Return a source as the command line takes it."""
    return written({"dataset": str(folder), "fraction": 0.2, **values})


def expand(*overrides: str) -> Config:
    return sweep.expand(["experiment=test", "model=tiny", *overrides], multirun=False).configs[0]


def planned(tmp_path: Path, *overrides: str) -> Cell:
    config = expand(f"store={tmp_path}/store", *overrides)
    return plan_cell(config, inputs.inputs(config))


def keys(cell: Cell) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for stage in cell.stages:
        found.setdefault(stage.kind, set()).add(stage.key)
    return found


@pytest.mark.parametrize(
    ("case", "sources"),
    [
        ("no room for the language", {"a": {"fraction": 0.5}, "b": {"fraction": 0.3}}),
        ("code of the language", {"nya": {}}),
        ("code of English", {"en": {}}),
        ("name with a space", {"my pairs": {}}),
        ("no fraction", {"a": {"fraction": None}}),
        ("fraction of one", {"a": {"fraction": 1}}),
        ("no such folder", {"a": {"dataset": "nowhere"}}),
        ("template without a column", {"a": {"template": "text"}}),
        ("template with a format", {"a": {"template": "{text:>3}"}}),
        ("unknown key", {"a": {"column": "text"}}),
        ("no bytes", {"a": {"max_bytes": 0}}),
    ],
)
def test_what_cannot_work_is_one_line(case: str, sources: dict[str, Any], pairs: Path) -> None:
    values = {name: {"dataset": str(pairs), "fraction": 0.2, **changes} for name, changes in sources.items()}
    with pytest.raises(BadInput) as caught:
        expand(f"ct.sources={written(values)}")
    assert_one_line(caught.value, "ct.sources")
    assert "Hydra" not in str(caught.value)
    assert_wording(f"text sources: {case}", caught.value, FOLDER=pairs)


def test_a_source_must_be_a_mapping_and_not_a_file(pairs: Path) -> None:
    with pytest.raises(BadInput) as caught:
        expand(f"+ct.sources.a={pairs}/rows.jsonl")
    assert_wording("text sources: no mapping", caught.value, FOLDER=pairs)
    with pytest.raises(BadInput) as caught:
        expand(f"+ct.sources.a={source(pairs / 'rows.jsonl')}")
    assert_wording("text sources: a file", caught.value, FOLDER=pairs)


def test_a_misspelt_key_is_named_before_the_key_that_it_stands_for(pairs: Path) -> None:
    with pytest.raises(BadInput, match=r"^ct\.sources\.a\.fracton: unknown key\. Did you mean fraction\?$"):
        expand(f"+ct.sources.a={written({'dataset': str(pairs), 'fracton': 0.2})}")


def test_a_given_ct_reads_no_text(pairs: Path) -> None:
    with pytest.raises(BadInput) as caught:
        expand(f"+ct.sources.a={source(pairs)}", "ct.source=somewhere")
    assert_wording("text sources: CT is given", caught.value)


@pytest.mark.parametrize(
    ("case", "template"),
    [("unknown column", "{tam}"), ("no text", "{ta} {note}")],
)
def test_rows_are_checked_before_a_run(case: str, template: str, pairs: Path, tmp_path: Path) -> None:
    config = expand(f"+ct.sources.pairs={source(pairs, template=template)}", f"store={tmp_path}/store")
    failures = [finding.text for finding in check_configs([config])[1] if finding.fails]
    assert len(failures) == 1
    assert_one_line(failures[0], "ct.sources.pairs")
    assert_wording(f"text sources: {case}", failures[0], FOLDER=pairs)


def test_sources_are_in_the_keys_of_what_reads_them_and_only_there(pairs: Path, tmp_path: Path) -> None:
    plain, mixed = planned(tmp_path), planned(tmp_path, f"+ct.sources.pairs={source(pairs, template='{ta}')}")
    changed = {kind for kind, before in keys(plain).items() if before != keys(mixed)[kind]}
    assert changed == {"ct_blocks", "ct", "sft", "tune", "merge", "eval"} & keys(plain).keys()
    assert keys(mixed).keys() - keys(plain).keys() == {"text_source"}
    [blocks] = (stage for stage in mixed.stages if stage.kind == "ct_blocks")
    assert set(blocks.parents) == {"corpus", "model", "source-pairs"} and blocks.settings.sources == {"pairs": 0.2}
    searched = planned(
        tmp_path, f"+ct.sources.pairs={source(pairs, template='{ta}')}", "eval.contamination=true"
    ).contamination
    assert searched and "source-pairs" in searched.parents


def test_a_source_is_known_by_its_content(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "rows.jsonl").write_bytes((pairs / "rows.jsonl").read_bytes())

    def key(folder: Path, *more: str, **values: Any) -> str:
        values = {"template": "{ta}", **values}
        [found] = keys(planned(tmp_path, f"+ct.sources.pairs={source(folder, **values)}", *more))["text_source"]
        return found

    first = key(pairs)
    assert key(tmp_path / "moved") == first == key(pairs, fraction=0.3) == key(pairs, "ct.epochs=2")
    others = [key(pairs, template="{en}"), key(pairs, max_bytes="1MB"), key(pairs, "corpus.test=0.2")]
    (pairs / "rows.jsonl").write_text('{"ta": "மலை"}\n', encoding="utf-8")
    assert len({first, *others, key(pairs)}) == 5


def test_a_plan_counts_the_text_of_sources(pairs: Path, tmp_path: Path) -> None:
    config = expand(f"+ct.sources.pairs={source(pairs, max_bytes='3MB')}", f"store={tmp_path}/store")
    [stage] = (stage for stage in plan_cell(config, inputs.inputs(config)).stages if stage.kind == "text_source")
    assert stage_work(stage, config, model_shape(config)).text == 3_000_000


def test_sources_and_epochs_extend_what_the_text_fills(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"Madzi a mtsinje wa {number} amayenda." for number in range(60)))
    text = ("language=mine", "language.code=xx", f"corpus.path={tmp_path}/text.txt", "ct.tokens=8192")

    def reach(*more: str) -> float:
        config = expand(*text, "ct.schedule_tokens=8192", *more)
        [finding] = data.check_budgets(RunPlan((without_stages(config),)))
        return float(finding.text.partition("has about ")[2].split()[0].replace(",", ""))

    once = reach()
    assert reach("ct.epochs=2") == pytest.approx(2 * once, abs=2)
    assert reach(f"+ct.sources.pairs={source(pairs, fraction=0.4)}") == pytest.approx(2 * once, abs=2)


def test_a_run_with_parallel_text_in_tamil(tmp_path: Path) -> None:
    """A line of the language is held out, and comes as a pair too: CT must not read it."""
    rng = random.Random(0)
    tamil, english = TAMIL.split(), ENGLISH.split()
    numbers = [rng.choices(range(len(tamil)), k=12) for _ in range(400)]
    lines = [" ".join(tamil[number] for number in some) for some in numbers]
    (tmp_path / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    (tmp_path / "pairs").mkdir()
    rows = [{"ta": line, "en": " ".join(english[n] for n in some)} for line, some in zip(lines, numbers, strict=True)]
    write_jsonl(tmp_path / "pairs" / "rows.jsonl", rows)
    (tmp_path / "conf" / "ct").mkdir(parents=True)
    (tmp_path / "conf" / "ct" / "parallel.yaml").write_text(
        "defaults: [tiny]\nsources:\n  pairs:\n"
        f"    dataset: {tmp_path}/pairs\n    fraction: 0.3\n"
        '    template: "English: {en}\\nதமிழ்: {ta}"\n',
        encoding="utf-8",
    )
    overrides = [
        *("experiment=test", "model=tiny", "language=mine", "language.code=tam", "ct=parallel"),
        *("ct.tokens=2048", "ct.schedule_tokens=2048", f"corpus.path={tmp_path}/text.txt"),
        *(f"store={tmp_path}/store", f"outputs={tmp_path}/out"),
    ]
    command = [sys.executable, "-m", "slackmerge", "make", "ct", "tam-2048-s0", "--config-dir", f"{tmp_path}/conf"]
    for computed in (4, 0):
        done = subprocess.run([*command, *overrides], check=False, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["stages_run"] == computed
    [corpus], [made], [packed] = (
        list((tmp_path / "store" / kind).iterdir()) for kind in ("corpus", "text_source", "ct_blocks")
    )
    held_out = {row["text"] for split in ("dev", "test") for row in read_jsonl(corpus / "text" / f"tam.{split}.jsonl")}
    documents = [row["text"] for row in read_rows(made / "text" / "pairs.train" / "00000.parquet")]
    assert len(held_out) > 10 and len(documents) == 400 - len(held_out)
    assert all(text.startswith("English: ") and text.partition("தமிழ்: ")[2] not in held_out for text in documents)
    counts = json.loads((packed / "counts.json").read_text())
    assert counts["sources"] == {"pairs": 0.3} and counts["text_tokens"]["pairs"] > 1000
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny-base")
    blocks = np.load(packed / "blocks.npy")
    order = [name for name, _ in zip(interleave([0.5, 0.2, 0.3]), blocks, strict=False)]
    of_language, of_english, parallel = (
        tokenizer.decode(np.concatenate([block for block, of in zip(blocks, order, strict=True) if of == number]))
        for number in range(3)
    )
    assert any(line in of_language for line in lines) and not any(word in of_english for word in tamil)
    assert any(document in parallel for document in documents)
    assert not any(line in text for text in (of_language, parallel) for line in held_out)
