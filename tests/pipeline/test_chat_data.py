"""Conversations in SFT, from the command line: what is refused before anything runs, what is in a key, and a run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from common.errors import BadInput
from common.files import read_jsonl, write_jsonl
from pipeline import cli, inputs, run_plan, sweep
from pipeline.journal import Journal
from pipeline.run import run
from pipeline.run.cells import run_executor
from pipeline.run.run import check_configs
from pipeline.stages.cell import plan_cell
from pipeline.stages.stage import Stage
from tests.train.data.chat.model_templates import VICUNA, text, tokenizer

COMMIT = "6a8734bc69fefcbb7735f4f9250f43e4cd7a442e"
HUB = (
    "sft.hub={dataset: DATASET, subset: null, files: null, split: train, revision: REVISION, prompt: null, answer: null"
)
HUB += ", bytes: null}"
COLUMNS = HUB.replace("prompt: null, answer: null", "prompt: a, answer: b")
TALK = [
    {"messages": [{"role": "user", "content": f"{n}: བོད་ཡིག?"}, {"role": "assistant", "content": f"நீர் {n}."}]}
    for n in range(40)
]
from tests.pipeline import toy


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with SmolLM2's template."""
    folder = tmp_path_factory.mktemp("base")
    of = tokenizer(text("smollm2"))
    of.eos_token = "<|endoftext|>"  # as of a base model: turns end by another token
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=len(of), eos_token_id=of.eos_token_id, **shape)).save_pretrained(folder)
    of.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    write_jsonl(path, TALK)
    return path


def words(tmp_path: Path, *more: str) -> list[str]:
    return ["experiment=test", f"store={tmp_path}/store", f"outputs={tmp_path}/outputs", *more]


def stages(tmp_path: Path, *more: str) -> dict[str, Stage]:
    """The stages of a cell by kind; of SFT's blocks the English ones."""
    config = sweep.expand(words(tmp_path, *more), multirun=False).configs[0]
    return {stage.kind: stage for stage in plan_cell(config, inputs.inputs(config, network=False)).stages}


REFUSED = {
    "no file": (["sft.template={tmp}/no.jinja"], r"sft\.template=.*no\.jinja: no such file"),
    "unknown": (["sft.template=chatlm"], r"sft\.template=chatlm: must be none, tokenizer, chatml or a file whose name"),
    "empty file": (["sft.template={tmp}/empty.jinja"], r"sft\.template=.*empty\.jinja: is empty"),
    "a recipe": (["model.path=null", "model=test", "sft.template=chatml"], r"sft\.template=chatml: a model that is tr"),
    "system without template": (["sft.system=Be kind."], r"sft\.system=Be kind\.: needs a chat template"),
    "cut without template": (["sft.too_long=drop"], r"sft\.too_long=drop: needs a chat template"),
    "unknown format": (["sft.template=tokenizer", "sft.format=chat"], r"sft\.format=chat: "),
    "format of nothing": (["sft.path=null", "sft.format=aya"], r"sft\.format=aya: needs sft\.path or sft\.hub"),
    "a variable of ours": (
        ["sft.template=tokenizer", "sft.template_args={messages: 1}"],
        r"sft\.template_args\.messages: slackmerge sets this",
    ),
    "no date": (["chat.date=today"], r"chat\.date=today: must be a date such as 2025-01-01"),
    "hub without template": (["sft.path=null", HUB], r"sft\.hub\.prompt=null: conversations need a chat template"),
    "one column": (
        ["sft.path=null", "sft.template=tokenizer", HUB.replace("prompt: null", "prompt: a")],
        r"sft\.hub\.answer=null: must be set",
    ),
    "columns of another format": (
        ["sft.path=null", "sft.template=chatml", "sft.format=aya", COLUMNS],
        r"sft\.format=aya: has its own columns\. Set sft\.hub\.prompt=null",
    ),
    "conversations without template": ([], r"sft\.path: .*line 1: contains a conversation \(messages\)"),
    "another format than said": (
        ["sft.template=tokenizer", "sft.format=aya"],
        r"sft\.path: .*line 1: sft\.format=aya needs the columns inputs and targets, got messages",
    ),
    "a template that loses answers": (
        ["sft.template={tmp}/upper.jinja"],
        r"model\.path=.*: its tokenizer: the template changes or leaves out a question",
    ),
    "a template without an end": (["sft.template={tmp}/vicuna.jinja"], r"model\.path=.*: its tokenizer: .*no token is"),
    "unknown argument": (["sft.template=chatml", "sft.template_args={x: 1}"], r"sft\.template_args\.x: the templ"),
    "too long": (["sft.template=tokenizer", "sft.block_size=16"], r"sft: none of 40 conversations can .*40 too long"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line_before_anything_runs(
    case: str, base: Path, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jinja").write_text("\n")
    (tmp_path / "upper.jinja").write_text(text("smollm2").replace("message['content']", "message['content'] | upper"))
    (tmp_path / "vicuna.jinja").write_text(VICUNA.replace("END", "'\n'"))
    changes, says = REFUSED[case]
    hub = [("DATASET", str(tmp_path)), ("REVISION", "null"), ("{tmp}", str(tmp_path))]
    for old, new in hub:
        changes = [change.replace(old, new) for change in changes]
    given = words(tmp_path, "model=folder", f"model.path={base}", f"sft.path={talk}", *changes)
    assert cli.pipeline_main(given) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(said) == 1 and re.match(says, said[0]), said
    assert not list((tmp_path / "store").glob("*/*"))


def chat_of(stage: Stage) -> dict[str, Any] | None:
    value: dict[str, Any] | None = stage.key_content.get("chat")
    return value


def test_only_what_differs_from_the_defaults_is_in_a_key(base: Path, talk: Path, tmp_path: Path) -> None:
    given = ("model=folder", f"model.path={base}", f"sft.path={talk}")
    made = stages(tmp_path, *given, "sft.template=tokenizer")
    assert chat_of(made["sft_blocks"]) == {"template": "tokenizer"}
    assert made["items"].settings.conversations is True and made["items"].settings.format == "auto"
    (tmp_path / "mine.jinja").write_text(text("llama3_2"))
    other = stages(
        tmp_path, *given, f"sft.template={tmp_path}/mine.jinja", "sft.system=S", "sft.too_long=drop",
        "sft.format=messages", "sft.template_args={tools_in_user_message: false}",
    )  # fmt: skip
    assert chat_of(other["sft_blocks"]) == {
        "template": text("llama3_2"), "system": "S", "too_long": "drop", "date": "2025-01-01",
        "args": {"tools_in_user_message": False},
    }  # fmt: skip
    assert other["items"].settings.format == "messages"
    dated = [f"sft.template={tmp_path}/mine.jinja", "chat.date=2026-01-01"]
    assert chat_of(stages(tmp_path, *given, *dated)["sft_blocks"])["date"] == "2026-01-01"  # type: ignore[index]
    same = stages(tmp_path, *given, "sft.template=tokenizer", "chat.date=2026-01-01")
    assert same["sft_blocks"].key == made["sft_blocks"].key  # this template writes no date
    (tmp_path / "mine.jinja").write_text(text("qwen2_5"))
    assert stages(tmp_path, *given, f"sft.template={tmp_path}/mine.jinja")["sft_blocks"].key != other["sft_blocks"].key
    plain = stages(tmp_path, "model=folder", f"model.path={base}", "chat.date=2026-01-01")
    assert "chat" not in plain["sft_blocks"].settings and "conversations" not in plain["items"].settings


def test_made_items_can_be_put_into_a_template(base: Path, tmp_path: Path) -> None:
    given = ("model=folder", f"model.path={base}")
    plain, chat = stages(tmp_path, *given), stages(tmp_path, *given, "sft.template=chatml")
    assert chat["items"].key == plain["items"].key and chat["sft_blocks"].key != plain["sft_blocks"].key


def test_a_data_set_of_conversations_is_read_and_checked(base: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "rows.jsonl", [{"conversations": [{"from": "human", "value": "q"}]}])
    hub = HUB.replace("DATASET", str(tmp_path / "set")).replace("REVISION", "null")
    given = words(tmp_path, "model=folder", f"model.path={base}", "sft.template=tokenizer", hub)
    [failure] = [
        str(finding) for finding in check_configs(sweep.expand(given, multirun=False).configs)[1] if finding.fails
    ]
    assert failure == (
        f"sft.hub.dataset={tmp_path}/set: no conversation in its first 100 rows (1 no answer). Choose another data set."
    )
    said = {"from": "gpt", "value": "a"}
    write_jsonl(tmp_path / "set" / "rows.jsonl", [{"conversations": [{"from": "human", "value": "q"}, said]}])
    assert not [str(f) for f in check_configs(sweep.expand(given, multirun=False).configs)[1] if f.fails]
    made = stages(tmp_path, *given[3:], "sft.format=sharegpt")
    assert made["instructions"].settings.format == "sharegpt"


def test_sft_learns_conversations(base: Path, talk: Path, tmp_path: Path) -> None:
    """Through the real stages: the loss falls, and the checkpoint carries the template and stops at the turn's end."""
    given = words(
        tmp_path, "model=folder", f"model.path={base}", f"sft.path={talk}", "sft.template=chatml",
        "sft.system=Yankhani.", "sft.tokens=16384", "sft.block_size=256", "sft.replay_fraction=0", "tracking=none",
        "sft.learning_rate=2e-2",
    )  # fmt: skip
    plan = run_plan.plan(sweep.expand(given, multirun=False))
    journal = Journal(tmp_path / "runs" / "now" / "journal.jsonl")
    view, here = toy.view(plan.store, plan.stages, journal), run_executor(plan, journal)
    stage = next(stage for stage in plan.stages if stage.kind == "sft" and "ct" not in stage.parents["model"].kind)
    folder = here.materialize(stage)
    losses = [row["loss"] for row in read_jsonl(folder / "log.jsonl")]
    assert losses[-1] < 0.7 * losses[0]
    of = AutoTokenizer.from_pretrained(folder / "model")
    asked = [{"role": "user", "content": "q"}]
    assert of.apply_chat_template(asked, tokenize=False) == "<|im_start|>user\nq<|im_end|>\n"  # not the base's own
    stops = GenerationConfig.from_pretrained(folder / "model").eos_token_id
    assert stops == [of.get_vocab()["<|endoftext|>"], of.get_vocab()["<|im_end|>"]]
    entry_of_blocks = plan.store.find(stage.parents["blocks"])
    assert entry_of_blocks is not None
    counts = json.loads((entry_of_blocks.path / "counts.json").read_text())
    assert counts["chat"] == {"conversations": 40, "answers": 40, "sequences": 40, "left_out": {}}
    first = read_jsonl(entry_of_blocks.path / "examples.jsonl")[0]
    assert first["trained"] == ["நீர் 0.<|im_end|>"]
    head = "<|im_start|>system\nYankhani.<|im_end|>\n<|im_start|>user\n"
    assert first["text"].startswith(f"{head}0: བོད་ཡིག?<|im_end|>\n")
    assert any("40 conversations, 40 answers in 40 sequences" in line for line in view.new_lines())


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (
            "smollm2",
            "ends an answer by <|im_end|>; a conversation is one sequence; adds a system prompt of its own (kept)",
        ),
        ("qwen3", "ends an answer by <|im_end|>; unrolled, an example an answer (2 become 3): later prompts do not"),
        ("harmony", "an answer begins with '<|channel|>final<|message|>', which is learnt"),
        ("gemma", "ends an answer by <end_of_turn>; a conversation is one sequence; takes no system message: it goes"),
    ],
)
def test_what_a_template_does_is_told(
    template: str, says: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jinja").write_text(text(template))
    two = [*TALK[0]["messages"], *TALK[1]["messages"]]
    write_jsonl(tmp_path / "talk.jsonl", [{"messages": two}, TALK[2]])
    given = words(tmp_path, "model=folder", f"model.path={base}", f"sft.path={tmp_path}/talk.jsonl")
    assert run.check(sweep.expand([*given, f"sft.template={tmp_path}/mine.jinja"], multirun=False)) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("template    ")]
    assert says in line


def test_a_template_file_without_a_model(talk: Path, tmp_path: Path) -> None:
    """The recipe's tokenizer has an end token and nothing else: turns can end by it."""
    (tmp_path / "mine.jinja").write_text(VICUNA.replace("END", "eos_token"))
    given = words(tmp_path, f"sft.path={talk}", f"sft.template={tmp_path}/mine.jinja", "sft.block_size=256")
    assert not [str(f) for f in check_configs(sweep.expand(given, multirun=False).configs)[1] if f.fails]


def test_a_tokenizer_without_a_template_is_named(base: Path, talk: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(base, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    given = words(tmp_path, "model=folder", f"model.path={bare}", f"sft.path={talk}", "sft.template=tokenizer")
    [failure] = [
        str(finding) for finding in check_configs(sweep.expand(given, multirun=False).configs)[1] if finding.fails
    ]
    assert failure.startswith(f"model.path={bare}: its tokenizer has no chat template. Set sft.template=chatml")
    with pytest.raises(BadInput, match="no such folder"):
        stages(tmp_path, "model=folder", f"model.path={tmp_path}/no", "sft.template=tokenizer")
