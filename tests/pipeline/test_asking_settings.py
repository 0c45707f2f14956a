"""Settings of how checkpoints are asked: keys, refusals, what check and plan report, and merges with a chat model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadInput
from common.files import read_jsonl
from pipeline import inputs, sweep
from pipeline.check import resources
from pipeline.check.finding import Finding
from pipeline.check.models import check_chat_templates
from pipeline.config import Config
from pipeline.cost.estimate import generated_tokens, scored_tokens
from pipeline.execute import Job
from pipeline.run.plan_table import prompts
from pipeline.run_plan import without_stages
from pipeline.stages import scoring
from pipeline.stages.cell import plan_cell
from pipeline.stages.scoring import EvalSettings, ScoreOptions, speaker
from pipeline.stages.stage import Inputs, Stage
from tests.eval import local_tasks
from tests.eval.chat_models import CHATML, DATED, NO_SYSTEM, chat_model, chat_tokenizer, saved
from tests.pipeline.toy_stage import toy_stage

SHIPPED = Path(__file__).parents[2] / "models" / "tiny-base"


def config(*overrides: str) -> Config:
    return sweep.expand(("experiment=test", *overrides), multirun=False).configs[0]


def settings(*overrides: str, asks_date: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The settings of eval and tune stages, by kind."""
    cell = plan_cell(config(*overrides), Inputs("model", "ct", "sft", asks_date=asks_date))
    return {kind: [s.key_content for s in cell.stages if s.kind == kind] for kind in ("eval", "tune")}


def test_only_what_differs_from_the_defaults_is_in_a_key() -> None:
    new = {"chat", "system", "fewshot", "generation", "day"}
    for stated in (settings(), settings("eval.chat=none", "eval.generation=own"), settings(asks_date=False)):
        assert not any(new & set(each) for kind in stated.values() for each in kind)
    tasks = ("eval.tasks=[a]", "eval.fewshot={a: 2}")
    both = settings("eval.chat=both", "eval.system='பதில்'", "eval.generation=greedy", *tasks, asks_date=True)
    assert both["eval"] and both["tune"]
    for each in both["eval"]:
        found = {name: each[name] for name in new}
        expected = {"chat": "both", "system": "பதில்", "fewshot": {"a": 2}, "generation": "greedy", "day": "2025-01-01"}
        assert found == expected
    for each in both["tune"]:  # asked once, nothing is generated, and its own items have no examples
        assert {name: each[name] for name in new & set(each)} == {
            "chat": "auto",
            "system": "பதில்",
            "day": "2025-01-01",
        }
    assert "day" not in settings("eval.chat=auto")["eval"][0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["eval.system=a"], r"^eval\.system: only chat prompts have a system message; set eval\.chat=auto"),
        (["eval.fewshot=2"], r"^eval\.fewshot=2: only tasks of lm-eval have examples, and none is scored"),
        (["eval.chat=yes"], r"^eval\.chat"),
        (["eval.tasks=[a]", "eval.fewshot=-1"], r"^eval\.fewshot"),
    ],
)
def test_settings_that_do_nothing_are_rejected(overrides: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        config(*overrides)


def test_a_chat_without_a_template_is_rejected_before_anything_runs(tmp_path: Path) -> None:
    pair = ("model=folder", f"model.path={SHIPPED}", "eval.chat=auto")
    with pytest.raises(BadInput, match=r"^eval\.chat: no checkpoint has a chat template, got auto\. Set"):
        inputs.inputs(config(*pair))
    chat = saved(tmp_path / "chat")
    assert inputs.inputs(config(*pair, f"sft.source={chat}")).asks_date is False
    (chat / "chat_template.jinja").write_text(DATED, encoding="utf-8")
    assert inputs.inputs(config(*pair, f"sft.source={chat}")).asks_date is True
    learnt = tmp_path / "own.jinja"
    learnt.write_text(CHATML, encoding="utf-8")
    assert inputs.inputs(config(*pair, f"sft.template={learnt}")).asks_date is False
    assert inputs.inputs(config(*pair[:2], f"sft.source={chat}")).asks_date is False  # nobody asks by it


def folders(tmp_path: Path, **templates: str | None) -> dict[str, Path]:
    made = {}
    for name, template in templates.items():
        made[name] = tmp_path / name
        made[name].mkdir()
        if template:
            (made[name] / "chat_template.jinja").write_text(template, encoding="utf-8")
    return made


def test_a_merge_speaks_as_its_chat_parent(tmp_path: Path) -> None:
    pair = folders(tmp_path, model=None, ct=None, sft=CHATML)
    assert speaker(pair, "none") == "model"
    assert speaker(pair, "auto") == speaker(pair, "both") == "sft"
    assert speaker(pair, "none", "ct") == "ct"  # that the recipe names
    (tmp_path / "own").mkdir()
    own = folders(tmp_path / "own", model=CHATML, ct=CHATML, sft=None)
    assert speaker(own, "auto") == "ct"
    of_base = {name: own[name] for name in ("model", "sft")}
    assert speaker(of_base, "auto") == "model"


@pytest.fixture
def merged(tmp_path: Path) -> dict[str, Path]:
    """A base without template, a CT of it, a chat model with one, and their merge."""
    for number, name in enumerate(("model", "ct", "sft")):
        tokenizer = chat_tokenizer(CHATML if name == "sft" else None)
        made = chat_model(tokenizer, number)
        if name == "sft":
            made.generation_config.repetition_penalty = 6.0
        made.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    recipe = {"method": "linear", "base": "model", "models": {"ct": {"path": "ct"}, "sft": {"path": "sft"}}}
    (tmp_path / "merge.yml").write_text(json.dumps(recipe), encoding="utf-8")
    return {name: tmp_path / name for name in ("model", "ct", "sft")}


def test_a_merge_is_scored_by_the_template_and_the_generation_config_of_its_chat_parent(
    tmp_path: Path, merged: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its written folder with these files is scored."""
    import merge
    from eval import harness, task_set
    from eval.prompting import Prompting
    from merge import Recipe

    own = local_tasks.write(tmp_path / "tasks", ["mgsm_tam"])
    tasks = task_set.prepare(include_path=own, limit=2, fewshot=1)
    monkeypatch.setattr(scoring, "load_tasks", lambda *_: tasks)
    folder = tmp_path / "written"
    merge.write(Recipe.from_yaml(tmp_path / "merge.yml"), folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(merged["sft"] / name, folder / name)
    asking = Prompting("auto", "சொல்")
    expected = harness.evaluate_folder(folder, tasks, prompting=asking)
    parents = {name: toy_stage("model", name, {"name": name}) for name in merged}
    usual: dict[str, Any] = {"split": "test", "limit": None, "max_chars": None, "language": "tam", "tasks": ()}
    settings = EvalSettings(**usual, chat="auto", system="சொல்")
    options = ScoreOptions(device="cpu", threads=1, batch_tokens=1024)
    stage = Stage(scoring.EVAL, "merge", settings, {**parents, "merge": toy_stage("merge", "merge")}, options)
    out = tmp_path / "out"
    out.mkdir()
    job = Job(stage=stage, out=out, work=tmp_path, folders={**merged, "merge": tmp_path})
    scoring.run_eval(job)
    assert read_jsonl(tmp_path / "out" / "scores.jsonl") == json.loads(json.dumps(expected.records))
    found = read_jsonl(tmp_path / "out" / "samples.jsonl")
    assert [row["answer"] for row in found] == [row["answer"] for row in expected.samples]
    assert job.note == ", prompts by the chat template"


def test_check_reports_what_is_asked(tmp_path: Path) -> None:
    own = local_tasks.write(tmp_path / "own", ["choice_tam", "mgsm_tam"])
    stated = config(f"eval.include_path={own}", "eval.fewshot={mgsm_tam: 2}", "eval.limit=3")
    assert list(resources.check_tasks(without_stages(stated))) == [
        Finding(
            False,
            "prompts     plain; choice_tam: 3; mgsm_tam: 3, 2 examples each, up to 30 tokens generated (10 each)",
            fact=True,
        )
    ]
    too_many = list(
        resources.check_tasks(
            without_stages(config(f"eval.include_path={own}", "eval.tasks=[mgsm_tam]", "eval.fewshot=9"))
        )
    )
    assert [finding.fails for finding in too_many] == [True]
    assert too_many[0].text.startswith("eval.fewshot: mgsm_tam has 4 examples to draw from, got 9")


def test_check_reports_where_generation_stops(tmp_path: Path) -> None:
    chat = saved(tmp_path / "chat", eos_token_id=[1, 2])
    stated = config("model=folder", f"model.path={SHIPPED}", f"sft.source={chat}", "eval.chat=auto")
    plain, chats = list(check_chat_templates(without_stages(stated)))
    assert plain.fact and plain.text == f"chat        model.path={SHIPPED}: plain prompts (no chat template)"
    names = chat_tokenizer().convert_ids_to_tokens([1, 2])
    assert chats.fact and chats.text == (
        f"chat        sft.source={chat}: by its template; generation stops at {', '.join(names)}"
    )
    runs_on = CHATML.replace("<|im_end|>", "</s>")
    (chat / "chat_template.jinja").write_text(runs_on, encoding="utf-8")
    warning = list(check_chat_templates(without_stages(stated)))[-1]
    assert not warning.fails and "its template ends an answer by </s>, where generation does not stop" in warning.text
    (chat / "chat_template.jinja").write_text(NO_SYSTEM, encoding="utf-8")
    with_system = config("model=folder", f"model.path={chat}", "eval.chat=auto", "eval.system=short")
    with pytest.raises(BadInput, match=r"^eval\.system: .* takes no system message"):
        list(check_chat_templates(without_stages(with_system)))
    assert list(check_chat_templates(without_stages(config()))) == []


def test_plan_reports_what_is_not_asked_in_the_usual_way() -> None:
    assert prompts(config()) == ""
    how = ("eval.chat=both", "eval.system='பதில்'", "eval.tasks=[a]", "eval.fewshot=3", "eval.generation=greedy")
    asked = config(*how)
    assert prompts(asked) == (
        "prompts: plain, and by the chat template of each checkpoint that has one; with the system message 'பதில்';"
        " examples in each prompt of lm-eval tasks: each 3; answers are generated greedily, without the generation"
        " config of checkpoints"
    )


def test_costs_count_what_is_generated(tmp_path: Path) -> None:
    own = local_tasks.write(tmp_path / "own")
    (own / "below.yaml").write_text("task: below\ninclude: mgsm_tam.yaml\n", encoding="utf-8")
    stated = config(f"eval.include_path={own}")
    assert generated_tokens(stated) == 10 + 10 + 8 + 10
    named = [f"eval.include_path={own}", "eval.tasks=[mgsm_tam, choice_tam]"]
    assert generated_tokens(config(*named)) == 10 and generated_tokens(config()) == 0
    stage = next(stage for stage in plan_cell(config(), Inputs()).stages if stage.kind == "eval")

    def tokens(*overrides: str) -> float:
        return scored_tokens(stage, config(*overrides))[0]

    limit = config().eval.limit or 1000
    one, two = tokens("eval.tasks=[a]"), tokens("eval.tasks=[a]", "eval.fewshot=1")
    assert two - one == limit * 1500
    assert tokens(*named) - tokens("eval.tasks=[a, b]") == limit * 10 * 10
    assert tokens() < tokens("eval.chat=both") < 2 * tokens()
