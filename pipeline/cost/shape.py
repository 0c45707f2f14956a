"""The shape of a cell's model, and the FLOPs of a token.

A forward pass multiplies and adds once for each parameter, 2N; the backward pass costs twice that: 6N in training
(Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1, which leaves out the embedding, as we do,
but not the head). Attention adds, for each layer, the products of queries with keys and of weights with values over the
T positions of a block: 12·L·H·Q·T in training, a third of it forward (Chowdhery et al. 2022, "PaLM", appendix B, whose
model FLOPs utilisation has 6N + 12·L·H·Q·T in its numerator; H·Q is the hidden width, and the causal half is not taken
off). Recomputed activations are not model FLOPs; they count in the time only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from common.errors import BadInput
from common.hub import local_folder
from pipeline import architecture
from pipeline.config.models import ModelShape
from train.settings import LoraSettings, MemorySaving

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
RECOMPUTED = 4 / 3  # FLOPs with gradient checkpointing, of those without: one more forward pass
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # how config.json files name their number


def model_shape(config: Config) -> ModelShape:
    """Return the shape of a cell's largest model: that of `base_shape`, with all new tokens."""
    shape, new = base_shape(config), config.model.new_tokens
    return shape.model_copy(update={"vocabulary": shape.vocabulary + new}) if new else shape


def base_shape(config: Config) -> ModelShape:
    """Return the shape of a cell's base: of its folder, where that is available; else as its conf file states it, or
    its recipe.

    Raises BadInput if the conf and the folder disagree, where there is neither, and where the folder holds no
    transformer.
    """
    stated, recipe = config.model.shape, config.model.recipe
    folder = local_folder(config.model.path)
    if folder and (file := folder / "config.json").is_file():
        actual = from_config_json(file, f"model.path={config.model.path}")
        for name, value in stated or actual:
            if value != getattr(actual, name):
                raise BadInput(
                    f"model.shape.{name}={value}: {file} states {getattr(actual, name)}. Correct one of them."
                )
        return actual
    if stated:
        return stated
    if config.model.path is None and recipe:
        return recipe.shape
    raise BadInput(
        f"model.shape=null: model.path={config.model.path} is not on this machine. "
        "Set the model's shape in its conf/model file."
    )


def from_config_json(file: Path, where: str | None = None) -> ModelShape:
    """Return the shape that a Hugging Face config.json states, under whatever names its model type has for the sizes.

    Of a model that reads pictures too, that of its language model. `where`: what messages begin with.

    Raises BadInput if it is of no transformer.
    """
    where = where or f"model.path={file.parent}"
    raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    text: dict[str, Any] = raw.get("text_config") or raw
    # Llama's own names need no transformers, whose import takes seconds.
    if not text.keys() >= set(IN_CONFIG_JSON.values()) - {"num_key_value_heads"}:
        text = _as_transformers_reads_it(file.parent, where)
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
            f"{where}: its config.json gives {key}={text.get(key)}, which no transformer has. "
            "Give a checkpoint of a transformer, such as Llama, Qwen, Gemma or GPT-2."
        ) from None


def _as_transformers_reads_it(folder: Path, where: str) -> dict[str, Any]:
    """Return sizes by Llama's names, and other keys of the text model's config, with its class's defaults.

    Raises BadInput, for a recurrent model with the same line as `check`.
    """
    config = architecture.config_of(folder, where)
    found = architecture.sizes(config)
    if found["num_attention_heads"] is None:
        architecture.check_packing(folder, where)
    text: dict[str, Any] = config.get_text_config(decoder=True).to_dict()
    return text | found


@dataclass(frozen=True)
class Trained:
    """What a training changes, and how it keeps it.

    parameters: number of those with gradients. embedding: how many of these are the embedding's. frozen: whether they
    are LoRA's, next to a frozen base.
    """

    parameters: int
    embedding: int
    frozen: bool = False
    saving: MemorySaving = field(default_factory=MemorySaving)


def all_weights(shape: ModelShape) -> Trained:
    """Return the training of all weights by plain AdamW."""
    return Trained(shape.parameters, shape.embedding_parameters)


def trained_by(config: Config) -> Trained:
    """Return what CT and SFT change: all weights, or LoRA's, with embedding and head where there are new tokens."""
    shape, train = model_shape(config), config.train
    if train.lora is None:
        return replace(all_weights(shape), saving=train)
    embedding = shape.embedding_parameters if config.model.new_tokens else 0
    return with_lora(shape, train.lora, train, embedding)


def with_lora(shape: ModelShape, lora: LoraSettings, saving: MemorySaving, embedding: int = 0) -> Trained:
    """Return what LoRA changes. embedding: parameters of an embedding that is trained too, as is the head then."""
    factors = shape.lora_parameters(lora.rank, lora.targets)
    return Trained(factors + embedding * (1 if shape.tied else 2), embedding, True, saving)


def forward_flops(shape: ModelShape, context: float) -> float:
    """FLOPs of a token in a forward pass over blocks of `context` tokens."""
    return 2 * shape.matmul_parameters + 4 * shape.layers * shape.query_width * context


def training_flops(shape: ModelShape, context: float, frozen: bool = False) -> float:
    """FLOPs of a token in training, forward and backward.

    `frozen`: the weights get no gradients of their own (LoRA), only what passes through them does.
    """
    return (2 if frozen else 3) * forward_flops(shape, context)
