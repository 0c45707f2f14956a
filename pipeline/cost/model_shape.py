"""The shape of a cell's model: from its folder, its conf file or its recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from common.errors import BadInput
from common.hub import folder_at_hand
from pipeline import architecture
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

    Raises BadInput where the conf and the folder disagree, where there is neither, and where the folder holds no
    transformer.
    """
    stated, recipe = config.model.shape, config.model.recipe
    folder = folder_at_hand(config.model.path)
    if folder and (file := folder / "config.json").is_file():
        actual = from_config_json(file, f"model.path={config.model.path}")
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


def from_config_json(file: Path, where: str | None = None) -> ModelShape:
    """The shape that a Hugging Face config.json states, under whatever names its model type has for the sizes.

    Of a model that reads pictures too, that of its language model. `where`: what messages begin with.

    Raises BadInput where it is of no transformer.
    """
    where = where or f"model.path={file.parent}"
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    names = set(IN_CONFIG_JSON.values()) - {"num_key_value_heads"}
    # Llama's own names need no transformers, whose import takes seconds.
    stated = raw if names <= raw.keys() else _as_transformers_reads_it(file.parent, where)
    stated.setdefault("num_key_value_heads", stated["num_attention_heads"])
    try:
        return ModelShape.model_validate({name: stated.get(key) for name, key in IN_CONFIG_JSON.items()})
    except ValidationError as error:
        key = IN_CONFIG_JSON[str(error.errors()[0]["loc"][0])]
        raise BadInput(
            f"{where}: its config.json gives {key}={stated.get(key)}, which no transformer has. "
            "Give a checkpoint of a transformer, such as Llama, Qwen, Gemma or GPT-2"
        ) from None


def _as_transformers_reads_it(folder: Path, where: str) -> dict[str, Any]:
    """Sizes by the names that Llama has. Raises BadInput, for a recurrent model with the line that `check` has."""
    found = architecture.sizes(architecture.config_of(folder, where))
    if found["num_attention_heads"] is None:
        architecture.check_packing(folder, where)
    return found


def trained_parameters(config: Config) -> int:
    """How many are trained: all, or LoRA's."""
    lora, shape = config.train.lora, model_shape(config)
    return shape.lora_parameters(lora.rank, lora.targets) if lora else shape.parameters
