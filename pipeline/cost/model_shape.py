"""The numbers of a Llama-like model that decide what it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput

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


@dataclass(frozen=True)
class Shape:
    """A decoder with RMSNorm, rotary positions, grouped-query attention without biases and a gated feed-forward, as
    Llama has.

    vocabulary: entries; hidden: width; heads, kv_heads: of queries and of keys; feed_forward: width; tied: whether the
    head is the embedding.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    tied: bool

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, the largest matrix of such a model."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer: four attention matrices, three of the feed-forward, two norms."""
        return self.hidden * (2 * self.hidden + 2 * self.kv_width + 3 * self.feed_forward + 2)

    @property
    def parameters(self) -> int:
        """All parameters, each once."""
        return self.embedding * (1 if self.tied else 2) + self.layers * self.layer + self.hidden

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied by: the layers and the head, not the look-up of the embedding."""
        return self.embedding + self.layers * self.layer + self.hidden

    def low_rank(self, rank: int, targets: str | Sequence[str]) -> int:
        """Parameters that LoRA adds: for each matrix that is named (all-linear: every one of a layer), `rank` rows and
        columns.
        """
        wide, keys, forward = self.hidden, self.kv_width, self.feed_forward
        sides = {"q_proj": wide + wide, "k_proj": wide + keys, "v_proj": wide + keys, "o_proj": wide + wide}
        sides |= {name: wide + forward for name in ("gate_proj", "up_proj", "down_proj")}
        return (
            self.layers * rank * sum(side for name, side in sides.items() if targets == "all-linear" or name in targets)
        )


def from_config_json(path: Path) -> Shape:
    """The shape that a Hugging Face config.json states. Raises BadInput where it is not of a Llama-like model."""
    about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    about.setdefault("num_key_value_heads", about.get("num_attention_heads"))
    about.setdefault("tie_word_embeddings", False)
    lacking = [key for key in IN_CONFIG_JSON.values() if not isinstance(about.get(key), int)]
    if lacking:
        raise BadInput(f"model.shape=null: {path} has no {lacking[0]}; give the model's shape in its conf/model file")
    return Shape(**{name: about[key] for name, key in IN_CONFIG_JSON.items()})


def trained(config: Config) -> int:
    """Parameters that are trained: all, or LoRA's."""
    lora, form = config.train.lora, of(config)
    return form.low_rank(lora.rank, lora.targets) if lora else form.parameters


def of(config: Config) -> Shape:
    """The shape of a cell's model: of its folder, where that is at hand; else as its conf file states it, or its
    recipe.

    Raises BadInput where the conf and the folder disagree, or where there is neither.
    """
    from common.hub import folder_at_hand

    stated = None if config.model.shape is None else Shape(**config.model.shape.model_dump())
    folder = folder_at_hand(config.model.path)
    if folder and (folder / "config.json").is_file():
        found = from_config_json(folder / "config.json")
        for name, value in asdict(stated or found).items():
            if value != asdict(found)[name]:
                raise BadInput(f"model.shape.{name}={value}: {folder / 'config.json'} says {asdict(found)[name]}")
        return found
    if stated:
        return stated
    recipe = config.model.recipe
    if config.model.path is None and recipe:
        return Shape(
            recipe.vocabulary, recipe.hidden_size, recipe.layers, recipe.heads, recipe.heads, recipe.feed_forward, True
        )
    raise BadInput(
        f"model.shape=null: model.path={config.model.path} is not at hand, "
        "so give the model's shape in its conf/model file"
    )
