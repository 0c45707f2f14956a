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
    """The shape that a Hugging Face config.json states. Raises BadInput where it is not of a Llama-like model."""
    stated: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    stated |= stated.get("text_config") or {}  # of a model that also sees or hears: only its text is trained
    stated.setdefault("num_key_value_heads", stated.get("num_attention_heads"))
    stated.setdefault("tie_word_embeddings", False)
    try:
        return ModelShape.model_validate({name: stated.get(key) for name, key in IN_CONFIG_JSON.items()})
    except ValidationError as error:
        key = IN_CONFIG_JSON[str(error.errors()[0]["loc"][0])]
        raise BadInput(
            f"model.shape=null: {file} has no {key} that a Llama-like model has; "
            "give the model's shape in its conf/model file"
        ) from None


def trained_parameters(config: Config) -> int:
    """How many are trained: all, or LoRA's."""
    lora, shape = config.train.lora, model_shape(config)
    return shape.lora_parameters(lora.rank, lora.targets) if lora else shape.parameters
