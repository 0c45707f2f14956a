"""Embeddings, heads and layers of architectures whose names are not Llama's: small ones of transformers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge
from merge.checkpoints.tensor_names import depth_of, head_name, kind_of, layer_of

VOCABULARY = 97  # no other dimension is
WIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
OLDER = {"n_embd": 16, "n_layer": 2, "n_head": 2}
TWO_SIDED = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
}  # fmt: skip
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "GPTNeoXForCausalLM": WIDE,
    "GPTNeoXJapaneseForCausalLM": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "BloomForCausalLM": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "FalconForCausalLM": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "GPT2LMHeadModel": OLDER,
    "GPTJForCausalLM": {**OLDER, "rotary_dim": 4},  # a bias of the head
    "OpenAIGPTLMHeadModel": OLDER,
    "CTRLLMHeadModel": {**OLDER, "dff": 24},
    "OPTForCausalLM": {**WIDE, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "MambaForCausalLM": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "RwkvForCausalLM": {"hidden_size": 16, "num_hidden_layers": 2},
    "XLNetLMHeadModel": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
    "XLMWithLMHeadModel": {"emb_dim": 16, "n_layers": 2, "n_heads": 2},
    "BioGptForCausalLM": WIDE,
    "BertForMaskedLM": WIDE,
    "RobertaForMaskedLM": WIDE,
    "AlbertForMaskedLM": {**WIDE, "embedding_size": 8},
    "DistilBertForMaskedLM": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "ModernBertForMaskedLM": WIDE,
    "T5ForConditionalGeneration": T5,
    "BartForConditionalGeneration": TWO_SIDED,
    "MarianMTModel": TWO_SIDED,
    "WhisperForConditionalGeneration": TWO_SIDED,
}


def words(order: list[int]) -> dict[str, Any]:
    vocabulary = {f"w{word}": number for number, word in enumerate(order)}
    return {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"},
    }


@cache
def order() -> list[int]:
    """Where the other model has the tokens."""
    found: list[int] = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0)).tolist()
    return found


def build(name: str, folder: Path, seed: int = 0, tied: bool | None = None, **more: Any) -> Any:
    """A small model with weights that all differ, as transformers saves it."""
    import transformers

    torch.manual_seed(seed)
    kind = getattr(transformers, name)
    size = {"vocab_size": VOCABULARY, "pad_token_id": 0, "decoder_start_token_id": 0, "bos_token_id": 1}
    tie = {} if tied is None else {"tie_word_embeddings": tied}
    model = kind(kind.config_class(**size, eos_token_id=2, **MODELS[name], **tie, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    model.tie_weights()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(words(list(range(VOCABULARY)))))
    return model.eval()


def reordered(model: Any, folder: Path) -> None:
    """The same model with its tokens at other numbers: whatever has a row for each, whatever it is called."""
    with torch.no_grad():
        for tensor in {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values():
            for dimension, size in enumerate(tensor.shape):
                if size == VOCABULARY:
                    tensor.copy_(tensor.index_select(dimension, torch.tensor(order())))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(words(order())))


def half_of_each(folders: dict[str, Path], **settings: Any) -> merge.Recipe:
    models = {name: {"path": folder, "weight": 0.5} for name, folder in folders.items()}
    return merge.Recipe.from_dict({"method": "linear", "models": models, **settings})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_everything_that_has_a_row_for_each_token_goes_by_token(name: str, tied: bool, tmp_path: Path) -> None:
    """Half of a model and half of the same with other numbers is the model."""
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    reordered(build(name, folders["a"], tied=tied), folders["b"])
    out = merge.write(half_of_each(folders, tokenizer="base"), tmp_path / "out")
    expected, found = (load_file(folder / "model.safetensors") for folder in (folders["a"], out))
    assert found.keys() <= expected.keys()
    for tensor in found:
        assert torch.equal(found[tensor], expected[tensor]), tensor
    loaded = type(build(name, tmp_path / "again", tied=tied)).from_pretrained(out)
    state = type(loaded).from_pretrained(folders["a"]).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_a_vocabulary_of_another_size_reaches_the_config(tmp_path: Path) -> None:
    """Pythia with a longer table and an `embed_out` that is as long."""
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    build("GPTNeoXForCausalLM", folders["a"])
    model = build("GPTNeoXForCausalLM", folders["b"], seed=1)
    model.resize_token_embeddings(VOCABULARY + 3)
    model.save_pretrained(folders["b"])
    (folders["b"] / "tokenizer.json").write_text(json.dumps(words(list(range(VOCABULARY + 3)))))
    out = merge.write(half_of_each(folders, tokenizer="union"), tmp_path / "out")
    found = load_file(out / "model.safetensors")
    assert {name for name, tensor in found.items() if tensor.shape[0] == VOCABULARY + 3} == {
        "gpt_neox.embed_in.weight",
        "embed_out.weight",
    }
    assert json.loads((out / "config.json").read_text())["vocab_size"] == VOCABULARY + 3


def test_blocks_are_the_layers_of_t5(tmp_path: Path) -> None:
    """A weight from 0 to 1 over three blocks, whose parts are numbered as well."""
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for seed, folder in enumerate(folders.values()):
        build("T5ForConditionalGeneration", folder, seed)
    models = {"a": {"path": folders["a"], "weight": [0, 1]}, "b": {"path": folders["b"], "weight": [1, 0]}}
    out = merge.write(merge.Recipe.from_dict({"method": "linear", "models": models}), tmp_path / "out")
    a, b, found = (load_file(folder / "model.safetensors") for folder in (*folders.values(), out))
    blocks = {name: int(name.split(".")[2]) for name in found if ".block." in name}
    assert len(blocks) > 40
    for name in found:
        share = blocks.get(name, 0) / 2
        torch.testing.assert_close(found[name], share * a[name] + (1 - share) * b[name])


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("encoder.block.3.layer.0.SelfAttention.q.weight", 3, "attention"),
        ("decoder.block.2.layer.1.EncDecAttention.k.weight", 2, "attention"),
        ("decoder.block.2.layer.2.DenseReluDense.wi_0.weight", 2, "mlp"),
        ("decoder.block.2.layer.2.layer_norm.weight", 2, "norms"),
        ("bert.encoder.layer.4.attention.output.LayerNorm.weight", 4, "norms"),
        ("bert.encoder.layer.4.intermediate.dense.weight", 4, "mlp"),
        ("bert.encoder.layer.4.output.dense.weight", 4, "mlp"),
        ("model.decoder.layers.5.fc1.weight", 5, "mlp"),
        ("model.layers.5.mlp.experts.7.w1.weight", 5, "mlp"),
        ("transformer.attentions.6.q_lin.weight", 6, "attention"),
        ("transformer.blocks.6.norm_attn_norm.attn.Wqkv.weight", 6, "attention"),
        ("ln_f.weight", None, "norms"),
        ("wte.weight", None, "embeddings"),
        ("gpt_neox.embed_in.weight", None, "embeddings"),
        ("transformer.word_embeddings.weight", None, "embeddings"),
        ("transformer.word_embeddings_layernorm.weight", None, "norms"),
        ("shared.weight", None, "embeddings"),
        ("backbone.embeddings.weight", None, "embeddings"),
        ("model.tok_embeddings.weight", None, "embeddings"),
        ("embed_out.weight", None, "head"),
        ("output.weight", None, "head"),
        ("lm_head.bias", None, "head"),
        ("cls.predictions.decoder.weight", None, "head"),
        ("transformer.output_layer.weight", None, "head"),
    ],
)
def test_layers_and_kinds_by_name(name: str, layer: int | None, kind: str) -> None:
    assert (layer_of(name), kind_of(name)) == (layer, kind)
    assert depth_of(name, 9) == (layer or 0) / 8


def test_a_rule_for_heads_is_for_pythias_too(tmp_path: Path) -> None:
    """And one for embeddings leaves `embed_out` alone."""
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for seed, folder in enumerate(folders.values()):
        build("GPTNeoXForCausalLM", folder, seed)
    rules = [{"kind": "head", "value": 0}, {"kind": "embeddings", "value": 1}, {"value": 0.5}]
    models = {"a": {"path": folders["a"], "weight": rules}, "b": {"path": folders["b"], "weight": 1}}
    out = merge.write(
        merge.Recipe.from_dict({"method": "linear", "models": models, "normalize": False}), tmp_path / "out"
    )
    a, b, found = (load_file(folder / "model.safetensors") for folder in (*folders.values(), out))
    assert torch.equal(found["embed_out.weight"], b["embed_out.weight"])
    assert torch.equal(found["gpt_neox.embed_in.weight"], a["gpt_neox.embed_in.weight"] + b["gpt_neox.embed_in.weight"])


@pytest.mark.parametrize("stored_in", ["a", "b"])
@pytest.mark.parametrize("name", MODELS)
def test_a_tied_head_may_be_stored_in_one_of_two(name: str, stored_in: str, tmp_path: Path) -> None:
    """By the name that the head has in files, which most savers leave out: the result is tied, as both are."""
    folders = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for seed, folder in enumerate(folders.values()):
        model = build(name, folder, seed, tied=True)
    tensors = load_file(folders[stored_in] / "model.safetensors")
    head = head_name(json.loads((folders[stored_in] / "config.json").read_text()), tensors)
    assert head not in tensors
    (embedding,) = (key for key, tensor in tensors.items() if tensor.dim() == 2 and tensor.shape[0] == VOCABULARY)
    tensors[head] = tensors[embedding].clone()
    save_file(tensors, folders[stored_in] / "model.safetensors", metadata={"format": "pt"})
    out = merge.write(half_of_each(folders), tmp_path / "out")
    loaded, a, b = (type(model).from_pretrained(folder) for folder in (out, *folders.values()))
    expected = (a.get_input_embeddings().weight + b.get_input_embeddings().weight) / 2
    for table in (loaded.get_input_embeddings(), loaded.get_output_embeddings()):
        torch.testing.assert_close(table.weight, expected)
    assert head not in load_file(out / "model.safetensors")
