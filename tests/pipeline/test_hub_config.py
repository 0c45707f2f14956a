"""Data from the hub in configs and plans: what is refused, what is shared, what a key depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from common.units import parse_bytes
from pipeline import inputs, sweep
from pipeline.config import HubCorpus
from pipeline.stages.cell import Cell, plan_cell
from pipeline.stages.stage import Stage

COMMIT = "6a8734bc69fefcbb7735f4f9250f43e4cd7a442e"
HUB = (
    "experiment=test",
    "model=tiny",
    "corpus=hub",
    "corpus.text.dataset=uonlp/CulturaX",
    f"corpus.text.revision={COMMIT}",
)
FLAN = (
    "sft.hub={dataset: Open-Orca/FLAN, subset: null, files: null, split: train, revision: "
    + COMMIT
    + ", prompt: inputs, answer: targets, bytes: 1GB}"
)


def planned(*overrides: str) -> Cell:
    config = sweep.expand(overrides, multirun=False).configs[0]
    return plan_cell(config, inputs.inputs(config))


def kinds(one: Cell) -> dict[str, list[Stage]]:
    found: dict[str, list[Stage]] = {}
    for stage in one.stages:
        found.setdefault(stage.kind, []).append(stage)
    return found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("corpus.text.dataset=null",), "corpus.text.dataset: missing"),
        (("corpus.text.revision=null",), "corpus.text.revision: missing"),
        (("corpus.text_bytes=20QB",), "corpus.text_bytes=20QB: "),
        (("corpus.workers=0",), "corpus.workers=0: "),
        (("+corpus.path=x",), "corpus.path: corpus=hub has no such key"),
        ((FLAN, "sft.path=mine.jsonl"), "sft.hub: sft.path is set too"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changes: tuple[str, ...], says: str) -> None:
    with pytest.raises(BadInput) as refusal:
        planned(*HUB, *changes)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(BadInput, match="corpus.source=web: must be one of 'bible', 'files', 'cipher', 'hub'"):
        planned("experiment=test", "corpus.source=web")


@pytest.mark.parametrize(
    ("text", "count"),
    [("500MB", 5 * 10**8), ("1.5 GB", 15 * 10**8), ("20B", 20), ("7", 7), (2000, 2000), ("2TB", 2 * 10**12)],
)
def test_bytes(text: object, count: int) -> None:
    assert parse_bytes(text) == count


def test_the_number_of_processes_is_in_no_key() -> None:
    one, many = planned(*HUB, FLAN), planned(*HUB, FLAN, "corpus.workers=64")
    assert [stage.key for stage in one.stages] == [stage.key for stage in many.stages]


def test_what_is_read_is_in_the_key() -> None:
    keys = {
        kinds(planned(*HUB, change))["corpus"][0].key
        for change in ("seed=0", "corpus.text_bytes=1GB", "corpus.text.subset=ta", f"corpus.text.revision={'0' * 40}")
    }
    assert len(keys) == 4


def test_a_folder_is_known_by_its_files_and_not_by_its_place(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "train.jsonl").write_text('{"text": "' + text + '"}\n')
    place = ("corpus.text.revision=null", f"store={tmp_path / 'store'}")
    a, b, c = (
        kinds(planned(*HUB, *place, f"corpus.text.dataset={tmp_path / name}"))["corpus"][0].key for name in "abc"
    )
    assert a == b != c


def test_the_english_sft_of_all_languages_is_one() -> None:
    tam, tel = (
        kinds(planned(*HUB, FLAN, "sft.replay_fraction=0", f"language.code={code}", f"corpus.text.subset={code[:2]}"))
        for code in ("tam", "tel")
    )
    for kind in ("instructions", "sft_blocks"):
        assert tam[kind][0].key == tel[kind][0].key
    assert tam["sft"][0].key == tel["sft"][0].key and tam["ct"][0].key != tel["ct"][0].key
    replayed = [
        kinds(planned(*HUB, FLAN, f"language.code={code}", "sft.replay_fraction=0.1"))["sft_blocks"][0].key
        for code in ("tam", "tel")
    ]
    assert replayed[0] != replayed[1]  # English text of the language's corpus is in it


def test_leaks_are_looked_for_where_that_is_wanted() -> None:
    without, wanted = planned("experiment=test"), planned("experiment=test", "eval.contamination=true")
    assert {stage.key for stage in wanted.stages} - {stage.key for stage in without.stages} == {
        wanted.contamination.key if wanted.contamination else ""
    }
    assert without.contamination is None
    of_hub: Any = planned(*HUB, FLAN, "eval.contamination=true").contamination
    assert set(of_hub.parents) == {"items", "corpus", "instructions"}


def test_english_of_the_hub_has_a_pinned_commit() -> None:
    corpus = sweep.expand(HUB, multirun=False).configs[0].corpus
    assert isinstance(corpus, HubCorpus) and corpus.english.revision and len(corpus.english.revision) == 40
