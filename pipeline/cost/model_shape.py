"""The shape of a cell's model: from its folder, its conf file or its recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from common.errors import BadInput
from common.hub import folder_at_hand
from pipeline.config.models import ModelShape

if TYPE_CHECKING:
    from pipeline.config import Config

IN_CONFIG_JSON = {
    "vocabulary": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "feed_forward": "intermediate_size",
    "tied": "tie_word_embeddings",
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # how config.json files name their number


def model_shape(config: Config) -> ModelShape:
    """The shape of a cell's model: of its folder, where that is at hand; else as its conf file states it, or its
    recipe.

    Raises BadInput where the conf and the folder disagree, or where there is neither.
    """
    stated, recipe = config.model.shape, config.model.recipe
    folder = folder_at_hand(config.model.path)
    if folder and (file := folder / "config.json").is_file():
        actual = from_config_json(file)
        for name, value in stated or actual:
            if value != getattr(actual, name):
                raise BadInput(f"model.shape.{name}={value}: {file} says {getattr(actual, name)}")
        return actual
    if stated:
        return stated
    if config.model.path is None and recipe:
        return recipe.shape
    raise BadInput(
        f"model.shape=null: model.path={config.model.path} is not at hand, "
        "so give the model's shape in its conf/model file"
    )


def from_config_json(file: Path) -> ModelShape:
    """The shape of the text model that a Hugging Face config.json describes.

    A model of images and text has its text model in `text_config`. What a config.json leaves out is a default of its
    class, so transformers is asked for it. Raises BadInput where the model is not Llama-like.
    """
    stated: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    text: dict[str, Any] = stated.get("text_config") or stated
    if any(text.get(key) is None for key in IN_CONFIG_JSON.values()):
        text = {"tie_word_embeddings": False} | _defaults(file.parent) | text
    text.setdefault("num_key_value_heads", text.get("num_attention_heads"))
    found = {name: text.get(key) for name, key in IN_CONFIG_JSON.items()}
    experts = next((text[key] for key in EXPERTS if text.get(key)), None)
    if experts:
        found |= {"experts": experts, "active_experts": text.get("num_experts_per_tok")}
        found["feed_forward"] = text.get("moe_intermediate_size") or found["feed_forward"]
    width = text.get("head_dim")
    if width and width * (found["heads"] or 0) != found["hidden"]:
        found["head_dim"] = width
    try:
        return ModelShape.model_validate(found)
    except ValidationError as error:
        key = IN_CONFIG_JSON[str(error.errors()[0]["loc"][0])]
        raise BadInput(
            f"model.shape=null: {file} has no {key} that a Llama-like model has; "
            "give the model's shape in its conf/model file"
        ) from None


def _defaults(folder: Path) -> dict[str, Any]:
    """What the class of a folder's config has as values, its defaults among them; empty where it is not known."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return dict(config.get_text_config().to_dict())
    except Exception:  # a stranger's file leads transformers to anything
        return {}


def trained_parameters(config: Config) -> int:
    """How many are trained: all, or LoRA's."""
    lora, shape = config.train.lora, model_shape(config)
    return shape.lora_parameters(lora.rank, lora.targets) if lora else shape.parameters
