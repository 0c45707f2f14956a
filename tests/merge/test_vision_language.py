"""Models of several parts: a Llava, made here by transformers from a config, merged, loaded and run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge
from tests.merge.conftest import tokenizer
from tests.merge.test_adapters import lora

VOCABULARY, IMAGE, SIDE, PATCH = 80, 79, 16, 8
PROCESSOR = {
    "preprocessor_config.json": '{"image_processor_type": "CLIPImageProcessor"}',
    "processor_config.json": '{"processor_class": "LlavaProcessor", "patch_size": 8}',
    "video_preprocessor_config.json": "{}",
    "chat_template.json": '{"chat_template": "{{ 1 }}"}',
}


def config() -> Any:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """base, ct and sft, as transformers saves them."""
    from transformers import LlavaForConditionalGeneration

    found = {}
    for seed, name in enumerate(("base", "ct", "sft")):
        torch.manual_seed(seed)
        folder = tmp_path / name
        LlavaForConditionalGeneration(config()).save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
        for file, text in PROCESSOR.items():
            (folder / file).write_text(text)
        found[name] = folder
    return found


def saved_by_another_version(folder: Path) -> dict[str, str]:
    """The same weights by the names that the modules have today; returns the old names by the new ones."""
    from transformers import LlavaForConditionalGeneration

    old = load_file(folder / "model.safetensors")
    state = LlavaForConditionalGeneration.from_pretrained(folder).state_dict()
    new = {name: tensor.clone() for name, tensor in state.items() if not name.endswith("position_ids")}
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    return {
        name: next(other for other, value in old.items() if value.shape == tensor.shape and torch.equal(value, tensor))
        for name, tensor in new.items()
        if tensor.dim() > 1
    }


def recipe(folders: dict[str, Path], **settings: Any) -> merge.Recipe:
    models = {name: {"path": folders[name], "weight": 0.5, **settings.pop(name, {})} for name in ("ct", "sft")}
    return merge.Recipe.from_dict({"method": "linear", "models": models, **settings})


def answer(model: Any) -> torch.Tensor:
    """Logits of a text with an image in it."""
    pixels = torch.linspace(-1, 1, 3 * SIDE * SIDE).view(1, 3, SIDE, SIDE)
    tokens = torch.tensor([[1, *[IMAGE] * (SIDE // PATCH) ** 2, 5, 6]])
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=tokens, pixel_values=pixels).logits
    return logits


def test_a_merge_is_loaded_and_run(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    one = recipe(folders)
    out = merge.write(one, tmp_path / "out")
    found = LlavaForConditionalGeneration.from_pretrained(out)
    models = [LlavaForConditionalGeneration.from_pretrained(folders[name]) for name in ("ct", "sft")]
    expected = LlavaForConditionalGeneration(config())
    expected.load_state_dict(
        {name: (value + models[1].state_dict()[name]) / 2 if value.is_floating_point() else value
         for name, value in models[0].state_dict().items()}
    )  # fmt: skip
    torch.testing.assert_close(answer(found), answer(expected))
    assert not torch.allclose(answer(found), answer(models[0]), atol=1e-3)
    torch.testing.assert_close(answer(merge.load(one)), answer(found))
    for file, text in PROCESSOR.items():
        assert (out / file).read_text() == text


def test_each_stack_has_a_depth_of_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    """A weight from 0 to 1 over two layers of vision and four of text."""
    out = merge.write(recipe(folders, ct={"weight": [1, 0]}, sft={"weight": [0, 1]}, normalize=False), tmp_path / "out")
    ct, sft, found = (load_file(folder / "model.safetensors") for folder in (folders["ct"], folders["sft"], out))
    for stack, count in (("vision_tower", 2), ("language_model", 4)):
        names = [name for name in found if stack in name and name.endswith(("mlp.fc1.weight", "mlp.up_proj.weight"))]
        assert len(names) == count
        for layer, name in enumerate(sorted(names)):
            share = layer / (count - 1)
            torch.testing.assert_close(found[name], (1 - share) * ct[name] + share * sft[name])


def test_names_of_another_version_of_transformers(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    expected = answer(LlavaForConditionalGeneration.from_pretrained(merge.write(recipe(folders), tmp_path / "before")))
    names = saved_by_another_version(folders["sft"])
    assert sum(old != new for new, old in names.items()) > 10
    out = merge.write(recipe(folders), tmp_path / "after")
    assert load_file(out / "model.safetensors").keys() == load_file(folders["ct"] / "model.safetensors").keys()
    torch.testing.assert_close(answer(LlavaForConditionalGeneration.from_pretrained(out)), expected, rtol=0, atol=0)
    saved_by_another_version(folders["ct"])
    first = merge.write(recipe(folders), tmp_path / "both")
    torch.testing.assert_close(answer(LlavaForConditionalGeneration.from_pretrained(first)), expected, rtol=0, atol=0)


def test_a_qwen2_vl_of_two_versions(tmp_path: Path) -> None:
    """Its older names (model.layers, visual) are no prefix away from today's; its head is its embedding."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    }  # fmt: skip
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    ).eval()
    for name in ("ct", "sft"):
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer()))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, tmp_path / "sft" / "model.safetensors", metadata={"format": "pt"})
    assert state.keys() != load_file(tmp_path / "ct" / "model.safetensors").keys()
    folders = {name: tmp_path / name for name in ("ct", "sft")}
    tokens = torch.arange(8).view(1, -1)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        for order in (folders, {"ct": folders["sft"], "sft": folders["ct"]}):
            out = merge.write(recipe(order), tmp_path / f"out-{order['ct'].name}")
            found = Qwen2VLForConditionalGeneration.from_pretrained(out).eval()(input_ids=tokens).logits
            torch.testing.assert_close(found, expected)


def test_a_tensor_that_is_missing_is_named(folders: dict[str, Path]) -> None:
    saved_by_another_version(folders["sft"])
    held = load_file(folders["sft"] / "model.safetensors")
    held.pop("model.multi_modal_projector.linear_1.bias")
    save_file(held, folders["sft"] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(merge.BadInput, match=r"sft: tensor .*multi_modal_projector.linear_1.bias is missing"):
        merge.check(recipe(folders))


def test_a_differing_vocabulary(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folders["sft"])
    model.resize_token_embeddings(VOCABULARY + 4, mean_resizing=False)
    model.save_pretrained(folders["sft"])
    (folders["sft"] / "tokenizer.json").write_text(json.dumps(tokenizer(VOCABULARY + 4)))
    out = merge.write(recipe(folders, tokenizer="union"), tmp_path / "out")
    merged = LlavaForConditionalGeneration.from_pretrained(out)
    assert merged.get_input_embeddings().weight.shape[0] == VOCABULARY + 4 == merged.config.text_config.vocab_size
    assert answer(merged).shape[-1] == VOCABULARY + 4


def test_an_adapter_of_the_text_part_is_refused_where_its_modules_have_other_names(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(merge.BadInput, match="another base"):
        merge.check(recipe(folders, ct={"adapter": lora(tmp_path / "lora")}))
