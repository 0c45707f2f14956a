"""One architecture as different savers name and cut its tensors: merged as transformers would load each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

import merge
from merge.checkpoints import aliases
from merge.cli import main
from tests.merge.test_architectures import VOCABULARY, build, half_of_each, words

MIXTRAL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_local_experts": 3,
}  # fmt: skip


def pair(name: str, root: Path, **more: Any) -> tuple[dict[str, Path], Any]:
    """Two models, and the mean of them."""
    folders = {"a": root / "a", "b": root / "b"}
    a, b = (build(name, folder, seed, **more) for seed, folder in enumerate(folders.values()))
    with torch.no_grad():
        for mine, other in zip(a.parameters(), b.parameters(), strict=True):
            mine.copy_((mine + other) / 2)
    return folders, a


def change(folder: Path, changed: Any) -> None:
    """Put changed(name) for every name; None leaves the tensor out."""
    tensors = load_file(folder / "model.safetensors")
    new = {changed(name): tensor for name, tensor in tensors.items()}
    assert new.keys() != tensors.keys()
    save_file({key: new[key] for key in new if key}, folder / "model.safetensors", metadata={"format": "pt"})


def is_the_mean(folders: dict[str, Path], mean: Any, out: Path) -> dict[str, torch.Tensor]:
    """The merge, whichever of the two leads, loads as the mean of both."""
    for names in (["a", "b"], ["b", "a"]):
        merged = merge.write(half_of_each({name: folders[name] for name in names}), out / names[0])
        found, info = type(mean).from_pretrained(merged, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        for key, value in mean.state_dict().items():
            torch.testing.assert_close(found.state_dict()[key], value)
    return load_file(out / "a" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "prefix", "tied"),
    [
        ("GPT2LMHeadModel", "transformer.", True),
        ("BloomForCausalLM", "transformer.", True),
        ("OPTForCausalLM", "model.", True),
        ("GPTNeoXForCausalLM", "gpt_neox.", False),
        ("BertForMaskedLM", "bert.", True),
    ],
)
def test_with_and_without_the_prefix(name: str, prefix: str, tied: bool, tmp_path: Path) -> None:
    """The hub's gpt2, bloom and opt, whose base has no prefix and whose fine-tunes have one."""
    folders, mean = pair(name, tmp_path, tied=tied)
    change(folders["a"], lambda old: old.removeprefix(prefix))
    found = is_the_mean(folders, mean, tmp_path / "out")
    assert found.keys() == load_file(folders["a"] / "model.safetensors").keys()  # the leader's


def test_a_prefix_needs_no_model_that_transformers_knows(tmp_path: Path) -> None:
    """Models of custom code have one as well."""
    folders, _ = pair("GPT2LMHeadModel", tmp_path)
    for folder in folders.values():
        config = json.loads((folder / "config.json").read_text()) | {"model_type": "jais", "architectures": ["Jais"]}
        (folder / "config.json").write_text(json.dumps(config))
    change(folders["b"], lambda old: old.removeprefix("transformer."))
    out = merge.write(half_of_each(folders), tmp_path / "out")
    a, b, found = (load_file(folder / "model.safetensors") for folder in (*folders.values(), out))
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, (a[key] + b[key.removeprefix("transformer.")]) / 2)


def test_the_class_of_the_model_inside(tmp_path: Path) -> None:
    """A base that was saved without its head, which is its embedding."""
    from transformers import GPT2Model

    folders, mean = pair("GPT2LMHeadModel", tmp_path)
    GPT2Model.from_pretrained(folders["a"]).save_pretrained(folders["a"])
    assert json.loads((folders["a"] / "config.json").read_text())["architectures"] == ["GPT2Model"]
    is_the_mean(folders, mean, tmp_path / "out")
    for lead in ("a", "b"):
        config = json.loads((tmp_path / "out" / lead / "config.json").read_text())
        assert config["architectures"] == ["GPT2LMHeadModel"] and config["tie_word_embeddings"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_by_its_other_name(tied: bool, tmp_path: Path) -> None:
    """Pythia's is embed_out in files and lm_head in memory."""
    folders, mean = pair("GPTNeoXForCausalLM", tmp_path, tied=tied)
    tensors = load_file(folders["b"] / "model.safetensors")
    head = tensors.pop("embed_out.weight", tensors["gpt_neox.embed_in.weight"].clone())
    save_file(tensors | {"lm_head.weight": head}, folders["b"] / "model.safetensors", metadata={"format": "pt"})
    is_the_mean(folders, mean, tmp_path / "out")


def mixtral(folder: Path, seed: int, fused: bool) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    model = MixtralForCausalLM(MixtralConfig(vocab_size=VOCABULARY, **MIXTRAL))
    model.save_pretrained(folder, save_original_format=not fused)
    (folder / "tokenizer.json").write_text(json.dumps(words(list(range(VOCABULARY)))))
    return model


def test_experts_one_by_one_and_joined(tmp_path: Path) -> None:
    """Those of the usual files are joined in memory by transformers 5, which can also save them so."""
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    a, b = (mixtral(folder, i, fused=i == 1) for i, folder in enumerate(folders.values()))
    assert sum(".experts." in name for name in load_file(folders["a"] / "model.safetensors")) == 2 * 3 * 3
    with torch.no_grad():
        for mine, other in zip(a.parameters(), b.parameters(), strict=True):
            mine.copy_((mine + other) / 2)
    found = is_the_mean(folders, a, tmp_path / "out")
    assert found.keys() == load_file(folders["a"] / "model.safetensors").keys()


def test_both_joined_stay_joined(tmp_path: Path) -> None:
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for seed, folder in enumerate(folders.values()):
        mixtral(folder, seed, fused=True)
    out = merge.write(half_of_each(folders), tmp_path / "out")
    assert load_file(out / "model.safetensors").keys() == load_file(folders["a"] / "model.safetensors").keys()


def test_experts_joined_in_another_way_are_refused_as_another_form(tmp_path: Path) -> None:
    """Nine small ones of another number of elements."""
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for seed, folder in enumerate(folders.values()):
        mixtral(folder, seed, fused=seed == 1)
    tensors = load_file(folders["b"] / "model.safetensors")
    key = "model.layers.0.mlp.experts.down_proj"
    save_file(tensors | {key: tensors[key][:2].clone()}, folders["b"] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(merge.BadInput, match=r"experts.down_proj has 768 elements, .* 1152"):
        merge.check(half_of_each(folders))


def test_another_form_is_named_and_the_remedy_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what joins weights leaves no one of them in a piece: as if experts were of that kind."""
    monkeypatch.setattr(aliases, "_IN_PIECES", ())
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for seed, folder in enumerate(folders.values()):
        model = mixtral(folder, seed, fused=seed == 1)
    for lead in (folders, dict(reversed(folders.items()))):
        with pytest.raises(merge.BadInput, match=r"the same weights.* Load \S*/a with"):
            merge.check(half_of_each(lead))
    type(model).from_pretrained(folders["a"]).save_pretrained(folders["a"], save_original_format=False)
    merge.check(half_of_each(folders))


@pytest.mark.parametrize(
    "buffer", ["bert.embeddings.position_ids", "bert.embeddings.token_type_ids", "bert.encoder.rotary.inv_freq"]
)
def test_computed_buffers_are_not_asked_for(buffer: str, tmp_path: Path) -> None:
    folders, mean = pair("BertForMaskedLM", tmp_path)
    tensors = load_file(folders["b"] / "model.safetensors")
    save_file(tensors | {buffer: torch.arange(8)}, folders["b"] / "model.safetensors", metadata={"format": "pt"})
    assert buffer not in is_the_mean(folders, mean, tmp_path / "out")


def test_biases_of_a_head_by_both_names(tmp_path: Path) -> None:
    """Older savers wrote that of BERT's decoder once more."""
    folders, mean = pair("BertForMaskedLM", tmp_path)
    tensors = load_file(folders["b"] / "model.safetensors")
    twice = {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone()}
    save_file(tensors | twice, folders["b"] / "model.safetensors", metadata={"format": "pt"})
    is_the_mean(folders, mean, tmp_path / "out")


@pytest.mark.parametrize("name", ["OPTForCausalLM", "GPT2LMHeadModel", "T5ForConditionalGeneration"])
@pytest.mark.parametrize("metadata", [True, False])
def test_a_tied_embedding_stored_as_the_head(name: str, metadata: bool, tmp_path: Path) -> None:
    """safetensors' save_model keeps one of two names of a tensor, and writes the other into the metadata."""
    folders, mean = pair(name, tmp_path, tied=True)
    model = type(mean).from_pretrained(folders["b"])
    save_model(model, str(folders["b"] / "model.safetensors"))
    stored = load_file(folders["b"] / "model.safetensors")
    if not metadata:
        save_file(stored, folders["b"] / "model.safetensors", metadata={"format": "pt"})
    embedding = model.get_input_embeddings().weight
    (kept,) = (key for key, tensor in stored.items() if tensor.shape == embedding.shape)
    assert kept != next(key for key, value in model.named_parameters() if value is embedding)
    is_the_mean(folders, mean, tmp_path / "out")


def test_t5_with_its_embedding_under_three_names(tmp_path: Path) -> None:
    """As the older files of the hub have it."""
    folders, mean = pair("T5ForConditionalGeneration", tmp_path)
    tensors = load_file(folders["b"] / "model.safetensors")
    names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    copies = {key: tensors["shared.weight"].clone() for key in names}
    save_file(tensors | copies, folders["b"] / "model.safetensors", metadata={"format": "pt"})
    is_the_mean(folders, mean, tmp_path / "out")


def test_older_names_of_norms(tmp_path: Path) -> None:
    """The hub's bert-base-uncased has gamma and beta."""
    folders, mean = pair("BertForMaskedLM", tmp_path)
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def named(name: str) -> str:
        return next((name.replace(new, old) for new, old in older.items() if name.endswith(new)), name)

    change(folders["a"], named)
    is_the_mean(folders, mean, tmp_path / "out")


@pytest.mark.parametrize("has_more", ["a", "b"])
def test_what_transformers_does_not_load_is_left_out_and_named(
    has_more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BERT's second head of pre-training, which fine-tunes have no longer."""
    folders, mean = pair("BertForMaskedLM", tmp_path)
    tensors = load_file(folders[has_more] / "model.safetensors")
    more = {"cls.seq_relationship.weight": torch.ones(2, 16), "cls.seq_relationship.bias": torch.ones(2)}
    save_file(tensors | more, folders[has_more] / "model.safetensors", metadata={"format": "pt"})
    is_the_mean(folders, mean, tmp_path / "out")
    half_of_each(folders).save(tmp_path / "merge.yml")
    assert main([str(tmp_path / "merge.yml"), str(tmp_path / "again"), "--quiet"]) == 0
    assert "2 tensors (cls.seq_relationship." in capsys.readouterr().err
    assert "cls.seq_relationship" in (tmp_path / "again" / "README.md").read_text()
    del tensors["cls.predictions.bias"]  # which is loaded
    save_file(tensors, folders[has_more] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(merge.BadInput, match=r"cls.predictions.bias is missing"):
        merge.check(half_of_each(folders))
