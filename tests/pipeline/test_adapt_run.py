"""experiment=adapt from the command line: its plan, what is rejected before anything runs, and a whole run in Tamil."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import merge
from common.files import read_jsonl, write_jsonl
from merge.output.card import read_card
from pipeline import cli, inputs, sweep
from pipeline.execute import Job
from pipeline.run.run import check_configs
from pipeline.stages import scoring
from pipeline.stages.cell import Cell, plan_cell
from tests import toy_text
from tests.pipeline.tiny_pair import make_pair, shifted, tamil
from tests.pipeline.toy_stage import toy_stage
from tests.train.data.chat.model_templates import text, tokenizer

ONE_MODEL = ("chat_linear", "chat_slerp")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair, Tamil and English text and a question."""
    folder = tmp_path_factory.mktemp("made")
    make_pair(folder)
    tamil(folder)
    (folder / "english.txt").write_text("\n\n".join(toy_text.sentences(0, 60)))
    write_jsonl(folder / "questions.jsonl", [{"question": "நீர் எங்கே?"}])
    return folder


def words(made: Path, out: Path, *more: str) -> list[str]:
    return [
        "experiment=adapt-test", "language.code=tam", "language.name=Tamil", f"corpus.path={made}/tamil.txt",
        f"corpus.english_path={made}/english.txt", f"model.path={made}/base", f"sft.source={made}/chat",
        f"eval.questions={made}/questions.jsonl", "eval.families=[]", "adapt.gain=bits_per_byte",
        "adapt.keep=bits_per_byte_en", "adapt.tolerance=1", f"store={out}/store", f"outputs={out}/out", *more,
    ]  # fmt: skip


def planned(made: Path, *more: str) -> Cell:
    config = sweep.expand(words(made, made, *more), multirun=False).configs[0]
    return plan_cell(config, inputs.inputs(config, network=False))


def test_every_trial_is_scored_on_dev_and_one_model_on_test(made: Path) -> None:
    cell = planned(made)
    assert cell.adapt and list(cell.adapt.evals) == ["base", "sft", "ct", "sft_then_ct", "adapted"]
    assert len(cell.adapt.dev) == 1 + 7 * 4 and next(iter(cell.adapt.dev)) == "sft"
    assert {stage.settings.split for stage in cell.adapt.dev.values()} == {"dev"}
    assert {stage.settings.split for stage in cell.adapt.evals.values()} == {"test"}
    assert not {stage.kind for stage in cell.stages} & {"sft", "sft_blocks", "tune", "weights"}
    by_slug = {str(stage): stage for stage in cell.stages}
    ties = by_slug["merge tam-ties-2048-s0"].settings.stated
    assert (ties["tokenizer"], ties["special_rows"]) == ("sft", "sft")
    slerp = by_slug["merge tam-chat_slerp-2048-s0"]
    assert slerp.settings.stated["special_rows"] == "base"  # an arc that starts at the chat model
    assert slerp.parents["model"].key == cell.checkpoints["sft"].key


def test_one_model_as_the_pair_trains_one_ct(made: Path) -> None:
    cell = planned(made, f"model.path={made}/chat")
    assert cell.adapt is not None
    assert {name.partition("-try-")[0] for name in cell.adapt.dev} == {"sft", *ONE_MODEL}
    assert cell.checkpoints["ct"].key == cell.checkpoints["sft_then_ct"].key
    assert [stage.kind for stage in cell.stages].count("ct") == 1


Change = Callable[[Path], None]


def untied(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


def other_tokens(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[300:302]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def template_without_end(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}")


REFUSED = {
    "no chat model": (None, ["sft.source=null"], r"sft\.source=null: names no chat model"),
    "a base from a recipe": (None, ["model=test", "model.path=null"], r"model\.path=null: names no base"),
    "an unknown method": (None, ["adapt.write=tie"], r"adapt\.write=tie: names no merge\. Did you mean ties"),
    "an unknown measure": (None, ["adapt.gain=accuracy"], r"adapt\.gain=accuracy: names no measure and no task"),
    "a measure without items": (None, ["adapt.keep=acc_en"], r"adapt\.keep=acc_en: there are no items"),
    "another split": (None, ["eval.split=dev"], r"eval\.split=dev: an adaptation needs eval\.split=test"),
    "a merge without the chat model": (
        None, ["+merge.methods.ties.of=[ct]"],
        r"merge\.methods\.ties\.of=\['ct'\]: has no part of the chat model",
    ),
    "one model, a chat vector": (
        None, ["model.path={chat}", "adapt.write=chat_vector"],
        r"merge\.methods\.chat_vector: model\.path and sft\.source are one model",
    ),
    "one head is tied": (untied, [], r"sft\.source=.*: the head of model\.path=.* is its embedding and that of sft"),
    "other tokens": (other_tokens, [], r"sft\.source=.*: '.*' is token 30[01], but token 30[01] in model\.path="),
    "no chat template": (without_template, [], r"sft\.source=.*has no chat template"),
    "no end of a turn": (template_without_end, [], r"sft\.source=.*no token is special"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_rejected_in_one_line_before_anything_runs(
    case: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, more, says = REFUSED[case]
    chat = Path(shutil.copytree(made / "chat", tmp_path / "chat"))
    if change:
        change(chat)
    given = [word.format(chat=chat) for word in more]
    assert cli.pipeline_main(["check", *words(made, tmp_path, f"sft.source={chat}", *given)]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(set(said)) == 1 and re.match(says, said[0]), said
    assert not list((tmp_path / "store").glob("*/*"))


def test_facts_of_the_pair_are_said(made: Path, tmp_path: Path) -> None:
    """Of a pair whose chat model has a token more, whose turns end by no eos, and whose licences differ."""
    base, chat = make_pair(tmp_path, added=("<|tamil|>",))
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (chat / "README.md").write_text("---\nlicense: other\nlicense_name: theirs\n---\n")
    (chat / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "repetition_penalty": 1.1}))
    given = words(made, tmp_path, f"model.path={base}", f"sft.source={chat}")
    found = check_configs(sweep.expand(given, multirun=False).configs)[1]
    told = [line for line in map(str, found) if line.startswith(("pair ", "generation ", "licences "))]
    rows = len(AutoTokenizer.from_pretrained(base))
    names = AutoTokenizer.from_pretrained(chat).convert_ids_to_tokens([0])
    pair, generation, licences = told
    assert pair.startswith(f"pair        {rows} rows, {rows + 1} in the chat model; heads tied in both; ")
    assert pair.endswith("; 1 token more in the chat model; document end <|endoftext|>, turn end <|im_end|>")
    ends = f"eos {names[0]} (<|im_end|>, which ends its turns, is added)"
    assert generation == f"generation  of the chat model: {ends}; its repetition_penalty also acts on greedy decoding"
    assert licences.startswith("licences    apache-2.0, theirs; they differ: the card says other and names both; ")
    assert not [str(finding) for finding in found if finding.fails]


def test_an_adaptation(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is scored is what is given away: the folder is the merge that won, and the card makes it again."""
    few = [f"~merge.methods.{name}" for name in ("chat_vector", "task_arithmetic", "ties_sv_1", "linear", "chat_slerp")]
    grids = ["merge.methods.ties.grid={lambda: [1.0]}", "merge.methods.chat_linear.grid={models.sft.weight: [1.0]}"]
    given = words(made, tmp_path, *few, *grids, "adapt.write=ties")
    assert cli.pipeline_main(given) == 0
    out = tmp_path / "out" / "adapt-test"
    said = capsys.readouterr().out
    assert re.search(rf"^written {out}/model: ties, lambda 1(\.0)?; on test Tamil bits per byte ", said, re.MULTILINE)
    assert f"transformers chat {out}/model     or: vllm serve {out}/model" in said
    folder = out / "model"
    card = (folder / "README.md").read_text()
    assert str(tmp_path) not in card and str(made) not in card
    assert "## Scores on test" in card and "| Tamil bits per byte" in card
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (folder / name).read_bytes() == (made / "chat" / name).read_bytes(), name
    [at] = (tmp_path / "store" / "ct").glob("tam-2048-*/model")
    same = merge.Recipe.from_dict({
        "method": "ties", "base": made / "base", "models": {"ct": {"path": at}, "sft": {"path": made / "chat"}},
        "density": 1.0, "lambda": 1.0, "tokenizer": "sft", "special_rows": "sft", "out_dtype": "bfloat16",
    })  # fmt: skip
    ours, expected = AutoModelForCausalLM.from_pretrained(folder), merge.load(same)
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("நீர் மலை").input_ids])
    assert ours.dtype == torch.bfloat16 and torch.equal(ours(ids).logits, expected(ids).logits)
    again = read_card(folder / "README.md", [f"base={made / 'base'}", f"model={at}", f"chat={made / 'chat'}"])
    again.check_result(merge.write(again.recipe, tmp_path / "again"))
    candidates = read_jsonl(next((tmp_path / "store" / "choose").glob("*/candidates.jsonl")))
    assert [row["candidate"] for row in candidates] == ["sft", "ties-try-0", "chat_linear-try-0"]
    assert cli.pipeline_main(given) == 0 and "nothing to run" in capsys.readouterr().out


def test_all_weight_on_the_chat_model_gives_its_bits(made: Path, tmp_path: Path) -> None:
    ct = shifted(made / "chat", tmp_path / "ct")
    models = {"sft_then_ct": {"path": ct, "weight": 0.0}, "sft": {"path": made / "chat", "weight": 1.0}}
    data = {"method": "linear", "base": made / "chat", "models": models, "tokenizer": "base", "special_rows": "base"}
    out = merge.write(merge.Recipe.from_dict(data), tmp_path / "out")
    got, chat = (load_file(folder / "model.safetensors") for folder in (out, made / "chat"))
    assert got.keys() == chat.keys() and all(torch.equal(got[name], chat[name]) for name in chat)


def test_scores_of_a_model_that_was_not_written_are_the_chat_models(tmp_path: Path) -> None:
    scored, nothing, out = (tmp_path / name for name in ("scored", "nothing", "out"))
    for folder in (scored, nothing, out):
        folder.mkdir()
    (scored / "scores.jsonl").write_text('{"task": "next_tam"}\n')
    (scored / "stage.json").write_text("{}")
    adapted, otherwise = toy_stage("adapted", "toy"), toy_stage("eval", "toy")
    stage = toy_stage("eval", "toy", {}, {"checkpoint": adapted, "otherwise": otherwise})
    scoring.run_eval(Job(stage, out, tmp_path, {"checkpoint": nothing, "otherwise": scored}))
    assert (out / "scores.jsonl").read_text() == '{"task": "next_tam"}\n' and not (out / "stage.json").exists()


def test_tokenizers_of_the_tiny_pair_are_alike() -> None:
    """What the other tests rest on: the chat model's tokenizer is the base's, with a template."""
    assert tokenizer(text("smollm2")).get_vocab() == tokenizer(None).get_vocab()
