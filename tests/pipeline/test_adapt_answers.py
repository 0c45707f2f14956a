"""Which models of an adaptation answer, what their answers depend on, and the report of a run from end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pipeline import sweep
from pipeline.cli import pipeline_main as main
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Inputs, Stage
from tests.pipeline.tiny_pair import make_pair, tamil

PAIR = Inputs(model="base", sft_model="chat", corpus=("text",))
ONE = Inputs(model="one", sft_model="one", corpus=("text",))
SETTINGS = ("experiment=adapt-test", "corpus.path=text.txt", "language.code=tam", "language.name=Tamil")


def answers(inputs: Inputs = PAIR, *more: str) -> dict[str, Stage]:
    """The stages `answers` of a plan."""
    models = ("model.path=one", "sft.source=one") if inputs is ONE else ("model.path=base", "sft.source=chat")
    [config] = sweep.expand([*SETTINGS, *models, *more], multirun=False).configs
    adapt = plan_cell(config, inputs).adapt
    assert adapt is not None
    return dict(adapt.answers)


def keys(stages: dict[str, Stage]) -> dict[str, str]:
    return {name: stage.key for name, stage in stages.items()}


def test_four_models_answer_and_the_adapted_one_falls_back_on_the_chat_model() -> None:
    stages = answers()
    assert list(stages) == ["base", "sft", "ct", "adapted"]
    assert len(set(keys(stages).values())) == 4
    assert stages["adapted"].parents["otherwise"] is stages["sft"]
    assert {"items", "corpus"} <= stages["ct"].parents.keys()
    assert stages["ct"].key_content == {"language": "tam", "seed": 0, "tokens": 256, "dtype": "bfloat16"}


def test_one_model_as_the_pair_answers_once() -> None:
    stages = keys(answers(ONE))
    assert stages["base"] == stages["sft"] and len(set(stages.values())) == 3


def test_questions_of_ones_own_replace_the_items() -> None:
    asked = Inputs(model="base", sft_model="chat", corpus=("text",), questions=("நீர் என்றால் என்ன?",))
    stages = answers(asked)
    assert stages["ct"].settings.questions == ("நீர் என்றால் என்ன?",)
    assert set(stages["ct"].parents) == {"checkpoint"}
    assert keys(stages)["ct"] != keys(answers())["ct"]


@pytest.mark.parametrize("setting", ["eval.generation=greedy", "eval.system=Moni", "adapt.dtype=float32", "seed=1"])
def test_what_changes_answers_changes_their_keys(setting: str) -> None:
    assert keys(answers(PAIR, setting))["sft"] != keys(answers())["sft"]


@pytest.mark.parametrize(
    "setting", ["eval.batch_tokens=512", "compute.threads=1", "eval.limit=4", "adapt.tolerance=0.1"]
)
def test_what_does_not_keeps_them(setting: str) -> None:
    assert keys(answers(PAIR, setting))["sft"] == keys(answers())["sft"]


def test_a_run_leaves_the_report_of_an_adaptation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smallest run: one method with two tries, raised by bits per byte, and two questions."""
    monkeypatch.chdir(tmp_path)
    base, chat = make_pair(tmp_path)
    tamil(tmp_path, 60)
    questions = ("நீர் என்றால் என்ன?", "<b>Moni</b>")
    Path("q.jsonl").write_text("".join(json.dumps({"question": each}) + "\n" for each in questions))
    settings = [f"model.path={base}", f"sft.source={chat}", "corpus.path=tamil.txt", "eval.questions=q.jsonl"]
    others = ("chat_vector", "task_arithmetic", "ties", "ties_sv_1", "linear", "chat_slerp")
    settings += [f"~merge.methods.{name}" for name in others]
    settings += ["merge.methods.chat_linear.grid={models.sft.weight: [1.0, 0.5]}", "adapt.gain=bits_per_byte"]
    settings += ["adapt.tolerance=1", "compute.threads=1", *SETTINGS[2:]]
    assert main(["run", SETTINGS[0], *settings]) == 0
    said = capsys.readouterr().out
    out = tmp_path / "outputs" / "adapt-test"
    assert "; on test Tamil bits per byte " in said and str(Path("outputs/adapt-test/report.html")) in said
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert {row["method"] for row in rows} == {"base", "sft", "ct", "sft_then_ct", "adapted"}
    answered = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [row["question"] for row in answered] == [*questions] * 4
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;Moni&lt;/b&gt;" in page and "<b>Moni</b>" not in page
    before = page
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == before
