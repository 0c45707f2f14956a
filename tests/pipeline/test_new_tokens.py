"""New tokens for a language: the plan, what is rejected, the checkpoint that is written, and a run in Tamil."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import merge
from common.errors import BadInput
from common.files import read_jsonl, write_jsonl
from pipeline import check, cli, run_plan, sweep
from pipeline.config import Config
from pipeline.stages import vocabulary as stage
from pipeline.stages.cell import Cell, plan_cell
from pipeline.stages.stage import Inputs, in_order
from tests import toy_text
from tests.pipeline.tiny_pair import make_pair, shifted, tamil
from train import vocabulary
from train.settings import VocabularySettings

EMBEDDING = "model.embed_tokens.weight"


def config_of(*overrides: str) -> Config:
    return sweep.expand(["experiment=test", *overrides], multirun=False).configs[0]


def planned(*overrides: str) -> Cell:
    return plan_cell(config_of("model=tiny", *overrides), Inputs(model="m", corpus=("text",)))


def test_ct_starts_from_the_extended_base_and_nothing_else_changes() -> None:
    plain, extended = planned(), planned("model.new_tokens=300")
    for name in ("base", "sft"):  # scored with the vocabulary that they have
        assert plain.evals[name].key == extended.evals[name].key
    ct, ct_then_sft = extended.checkpoints["ct"], extended.checkpoints["ct_then_sft"]
    start = ct.parents["model"]
    assert start.kind == "base_extended" and start.parents["model"].key == plain.checkpoints["ct"].parents["model"].key
    assert ct.parents["blocks"].parents["model"] is start
    assert all(
        each.parents["blocks"].parents["model"] is start for each in in_order([ct_then_sft]) if each.kind == "sft"
    )
    assert {each.kind for each in in_order([start])} == {"corpus", "base_extended"}  # it waits for no items
    before, after = (cell.chosen["task_arithmetic"].settings.tries for cell in (plain, extended))
    assert after == tuple({**recipe, "tokenizer": "union"} for recipe in before)
    assert ct.trajectory not in (None, plain.checkpoints["ct"].trajectory)
    assert config_of("model=tiny", "model.new_tokens=0.3k").model.new_tokens == 300
    focus = planned("model.new_tokens=300", "model.new_token_init=focus")
    assert len({cell.checkpoints["ct"].key for cell in (plain, extended, focus)}) == 3


def test_other_trainings_on_the_language_have_the_new_tokens() -> None:
    wanted = "eval.baselines=[sft_then_ct,mixed,target_sft,sft_replay,merge_then_sft]"
    more = (wanted, "sft.block_size=128", "merge.sft_after_merge=task_arithmetic", "sft.arm_replay_fraction=0.5")
    cell = planned("model.new_tokens=300", *more)
    for name in ("sft_then_ct", "mixed"):
        assert cell.checkpoints[name].parents["model"].kind == "base_extended"
    on_sft = cell.checkpoints["sft_then_ct"].parents["model"]
    assert on_sft.parents["model"].kind == "sft"
    for name in ("target_sft", "sft_replay"):
        assert cell.checkpoints[name].parents["blocks"].parents["model"].kind == "base_extended"
    again = cell.checkpoints["merge_then_sft"]
    assert again.parents["blocks"].parents["model"] is again.parents["model"]  # the tokens of the merge itself


def test_the_plan_counts_the_new_rows() -> None:
    from pipeline.cost.shape import base_shape, model_shape

    config = config_of("model=tiny", "model.new_tokens=300")
    assert model_shape(config).vocabulary == base_shape(config).vocabulary + 300


def test_lora_trains_the_embeddings_of_ct_in_full() -> None:
    plain, cell = planned("train=lora"), planned("train=lora", "model.new_tokens=300")
    assert cell.checkpoints["ct"].settings.train_embeddings
    assert not cell.checkpoints["ct_then_sft"].settings.train_embeddings
    assert plain.evals["sft"].key == cell.evals["sft"].key and not plain.checkpoints["ct"].settings.train_embeddings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("ct.source=models/tiny-base",), r"model\.new_tokens=300: needs a CT that is trained here, got ct\.source="),
        (
            ("train=lora", "compute=fsdp", "compute.processes=2"),
            r"compute\.strategy=fsdp: LoRA with model\.new_tokens trains",
        ),
        (("model.new_token_init=best",), r"model\.new_token_init: must be mean or focus|new_token_init"),
        (("model.new_tokens=0",), r"model\.new_tokens"),
        (("model.new_tokens=null", "model.new_token_init=focus"), r"^model\.new_token_init=focus: there are no new"),
    ],
)
def test_what_cannot_work_is_rejected_before_anything_runs(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        config_of("model=tiny", "model.new_tokens=300", *overrides)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and chat model, Tamil and English text."""
    folder = tmp_path_factory.mktemp("made")
    make_pair(folder, added=("<|extra|>", "<|more|>"))
    tamil(folder)
    (folder / "english.txt").write_text("\n\n".join(toy_text.sentences(0, 60)))
    rows = [{"instruction": f"Say {word}.", "input": "", "output": f"{word}!"} for word in toy_text.sentences(0, 80)]
    write_jsonl(folder / "sft.jsonl", rows)
    return folder


def words(made: Path, out: Path, *more: str) -> list[str]:
    return [
        "experiment=test", "language.code=tam", "language.name=Tamil", "corpus=files", f"corpus.path={made}/tamil.txt",
        f"corpus.english_path={made}/english.txt", "model=folder", f"model.path={made}/base", "model.new_tokens=30",
        f"sft.path={made}/sft.jsonl",
        "eval.families=[]", "merge.metric=bits_per_byte", f"store={out}/store", f"outputs={out}/out", *more,
    ]  # fmt: skip


def test_check_shows_fertility_and_rejects_other_tokenizers(made: Path, tmp_path: Path) -> None:
    (config,) = sweep.expand(words(made, tmp_path), multirun=False).configs
    (line,) = [
        str(found) for found in check.check_plan(run_plan.plan_for_checks([config])[0]) if "vocabulary" in str(found)
    ]
    assert "30 new tokens" in line and "bytes of Tamil per token" in line
    for text, line in (
        (
            "\n\n".join(["ஆறு மலை வீடு"] * 2 + ["கடல்", "பூ"]),
            r"vocabulary  \d+ new tokens of 30, as the text gives no more",
        ),
        ("a\n\nb\n\nc", r"model\.new_tokens=30: the tam training text has no two tokens"),
    ):
        (tmp_path / "short.txt").write_text(text)
        (config,) = sweep.expand(words(made, tmp_path, f"corpus.path={tmp_path}/short.txt"), multirun=False).configs
        findings = map(str, check.check_plan(run_plan.plan_for_checks([config])[0]))
        assert any(re.match(line, found) for found in findings), line
    described = json.loads((made / "base" / "tokenizer.json").read_text())
    described["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    other = shifted(made / "base", tmp_path / "other")
    (other / "tokenizer.json").write_text(json.dumps(described))
    (config,) = sweep.expand(words(made, tmp_path, f"model.path={other}"), multirun=False).configs
    failed = [str(found) for found in check.check_plan(run_plan.plan_for_checks([config])[0]) if found.fails]
    assert any("model.new_tokens=30: this tokenizer is WordLevel" in line for line in failed), failed


def extension_of(model: Path, made: Path, count: int = 30) -> tuple[vocabulary.Extension, tokenizers.Tokenizer, Any]:
    before = AutoTokenizer.from_pretrained(model).backend_tokenizer
    extension = vocabulary.extend(before, [(made / "tamil.txt").read_text()], count)
    after = tokenizers.Tokenizer.from_str(json.dumps(extension.described))
    return (
        extension,
        after,
        stage.first_weights(extension, VocabularySettings(language="tam", new_tokens=count), after, made),
    )


@pytest.mark.parametrize(("tied", "unused", "shards"), [(True, 0, 1), (False, 0, 1), (True, 20, 1), (False, 7, 2)])
def test_old_text_gets_the_logits_that_it_had(tied: bool, unused: int, shards: int, tmp_path: Path) -> None:
    model, _ = make_pair(tmp_path, tied=tied)
    tamil(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    old = loaded.config.vocab_size
    loaded.resize_token_embeddings(old + unused)
    (model / "model.safetensors").unlink()
    loaded.save_pretrained(model, max_shard_size="6KB" if shards > 1 else "1GB")
    extension, after, weights = extension_of(model, tmp_path)
    stage.write_model(model, tmp_path / "out", extension, after, weights)
    extended = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert extended.config.vocab_size == old + max(30, unused) == len(extended.get_input_embeddings().weight)
    assert len(tokenizer) == old + 30 and extended.config.tie_word_embeddings == tied
    ids = torch.tensor([AutoTokenizer.from_pretrained(model)("The water of the river.").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(extended(ids).logits[..., :old], loaded(ids).logits[..., :old])
    table, rows = loaded.get_input_embeddings().weight, extended.get_input_embeddings().weight
    token, parts = extension.first + 5, extension.parts[5]
    mean = table[parts].mean(0)  # by itself, in place of the matrix of weights
    torch.testing.assert_close(rows[token] / rows[token].norm(), mean / mean.norm())
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == sorted({*(path.name for path in model.iterdir())}), "all other files are there"
    text = (tmp_path / "tamil.txt").read_text()[:400]
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_a_model_without_rows_for_its_tokens_is_rejected(tmp_path: Path) -> None:
    model, _ = make_pair(tmp_path)
    tamil(tmp_path)
    extension, after, weights = extension_of(model, tmp_path)
    tensors = load_file(model / "model.safetensors")
    save_file({**tensors, EMBEDDING: tensors[EMBEDDING][:-3]}, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"model\.new_tokens: .*embed_tokens.weight .* rows, but its tokenizer has"):
        stage.write_model(model, tmp_path / "out", extension, after, weights)


def test_a_union_splits_text_as_the_extended_model_does(made: Path, tmp_path: Path) -> None:
    """The chat model has tokens of its own at the numbers of the new ones."""
    extension, after, weights = extension_of(made / "base", made)
    stage.write_model(made / "base", tmp_path / "start", extension, after, weights)
    ct = shifted(tmp_path / "start", tmp_path / "ct")
    models = {"ct": {"path": str(ct)}, "sft": {"path": str(made / "chat")}}
    recipe = {"method": "task_arithmetic", "base": str(made / "base"), "models": models, "tokenizer": "union:sft"}
    out = merge.write(merge.Recipe.from_dict(recipe), tmp_path / "out")
    folders = {"ct": ct, "sft": made / "chat", "base": made / "base", "out": out}
    tokenizer = {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}
    text = (made / "tamil.txt").read_text()[:2000] + " The water<|extra|>"
    assert tokenizer["out"].tokenize(text) == [
        piece for part in (text.removesuffix("<|extra|>"),) for piece in tokenizer["ct"].tokenize(part)
    ] + ["<|extra|>"]
    assert tokenizer["out"].chat_template == tokenizer["sft"].chat_template
    ids = {name: each.get_vocab() for name, each in tokenizer.items()}
    assert ids["out"].items() >= ids["sft"].items()
    rows = {name: load_file(folder / "model.safetensors")[EMBEDDING] for name, folder in folders.items()}
    for token in extension.tokens:
        torch.testing.assert_close(rows["out"][ids["out"][token]], rows["ct"][ids["ct"][token]])
    for token in ("<|extra|>", "<|more|>"):
        torch.testing.assert_close(rows["out"][ids["out"][token]], rows["sft"][ids["sft"][token]])
    for token, number in ids["base"].items():
        ours = rows["ct"][number] + rows["sft"][number] - rows["base"][number]
        torch.testing.assert_close(rows["out"][ids["out"][token]], ours, rtol=1e-5, atol=1e-6)


def test_a_run_in_tamil(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = words(made, tmp_path, "merge.write=true", "eval.baselines=[base,ct,ct_then_sft]", "sft.template=none")
    assert cli.pipeline_main(given) == 0
    said = capsys.readouterr().out
    assert "30 new tokens" in said
    store = tmp_path / "store"
    (start,), (ct,), (weights, *_) = (sorted((store / kind).iterdir()) for kind in ("base_extended", "ct", "weights"))
    found = json.loads((start / "vocabulary.json").read_text())
    assert found["tokens"] == 30 and found["after"]["bytes_per_token"] > 1.2 * found["before"]["bytes_per_token"]
    folders = [start / "model", ct / "model", weights / "model"]
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
    sft = next(folder for folder in (store / "sft").iterdir() if "after" in folder.name)
    assert AutoTokenizer.from_pretrained(sft / "model").get_vocab() == vocabularies[0]
    first, tables = found["first"], [load_file(folder / "model.safetensors")[EMBEDDING] for folder in folders]
    assert not torch.equal(tables[0][first:], tables[1][first:])  # trained
    assert len(read_jsonl(next((store / "eval").glob("tam-task_arithmetic*")) / "scores.jsonl")) > 0
    assert "CT has 30 new tokens" in (tmp_path / "out" / "test" / "report.html").read_text()
    assert cli.pipeline_main(given) == 0 and "nothing to run" in capsys.readouterr().out
