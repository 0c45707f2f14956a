"""The base model: given, or trained from scratch by a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import field_validator, model_validator

from common.project import shipped
from common.settings import Name, Positive, Settings, Tokens
from pipeline.config.trainings import Training
from train.settings import BaseShape, NewTokens

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a layer


class ModelShape(Settings):
    """The sizes that decide a model's cost: a decoder as Llama, with RMSNorm, rotary positions, grouped-query
    attention without biases and a gated feed-forward.
    """

    vocabulary: Tokens  # entries
    hidden: Positive  # width
    layers: Positive
    heads: Positive  # of queries
    kv_heads: Positive  # of keys and values
    feed_forward: Positive  # width
    tied: bool  # whether the head is the embedding
    head_dim: Positive | None = None  # width of one head of attention; None: hidden / heads
    experts: Positive | None = None  # in each layer of a mixture of experts, `feed_forward` wide; None: no mixture
    active_experts: Positive | None = None  # that each token passes

    @property
    def query_width(self) -> int:
        """Width of all queries, and of what attention gives."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * (self.head_dim or self.hidden // self.heads)

    @property
    def embedding_parameters(self) -> int:
        """Count the parameters of the embedding, the largest matrix of such a model."""
        return self.vocabulary * self.hidden

    @property
    def outer_parameters(self) -> int:
        """Return parameters outside the layers: embedding, head and the last norm."""
        return self.embedding_parameters * (1 if self.tied else 2) + self.hidden

    @property
    def layer_parameters(self) -> int:
        """Count the parameters of one layer: attention matrices, feed-forwards, a router of experts, norms."""
        router = self.experts or 0
        return self.hidden * (self._attention + 3 * self.feed_forward * (self.experts or 1) + router + 2)

    @property
    def _attention(self) -> int:
        """Return rows of the four attention matrices, each `hidden` long."""
        return 2 * self.query_width + 2 * self.kv_width

    @property
    def linear_parameters(self) -> int:
        """Count the parameters of a layer's linear layers, which LoRA may freeze in fewer bits: not of experts."""
        return self.hidden * (self._attention + (0 if self.experts else 3 * self.feed_forward))

    @property
    def parameters(self) -> int:
        """Return all, each once."""
        return self.outer_parameters + self.layers * self.layer_parameters

    @property
    def matmul_parameters(self) -> int:
        """Return the parameters that every token is multiplied by: layers and head, without the embedding's look-up."""
        idle = 3 * self.feed_forward * ((self.experts or 1) - (self.active_experts or self.experts or 1))
        active = self.layer_parameters - self.hidden * idle
        return self.embedding_parameters + self.layers * active + self.hidden

    def lora_parameters(self, rank: int, targets: str | Sequence[str]) -> int:
        """Return those that LoRA adds: for each matrix that is named (all-linear: every one of a layer), `rank` rows
        and columns. The matrices of experts get none: transformers keeps them as one tensor, which is no linear layer.
        """
        wide, queries, keys, forward = self.hidden, self.query_width, self.kv_width, self.feed_forward
        attention = (wide + queries, wide + keys, wide + keys, queries + wide)
        sides = dict(zip(MATRICES, (*attention, *[0 if self.experts else wide + forward] * 3), strict=True))
        adapted = (side for name, side in sides.items() if targets == "all-linear" or name in targets)
        return self.layers * rank * sum(adapted)


class BaseRecipe(BaseShape, Training):
    """The recipe of a base model that is trained from scratch."""

    @model_validator(mode="after")
    def fits(self) -> BaseRecipe:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size={self.hidden_size}: must be an even multiple of heads={self.heads}.")
        if self.block_size > self.context:
            raise ValueError(f"block_size={self.block_size}: must not exceed context={self.context}.")
        if self.aligned_fraction + self.repeated_fraction >= 1:
            raise ValueError(
                "aligned_fraction: the sum with repeated_fraction must be below 1, as English needs the rest."
            )
        return self

    @property
    def shape(self) -> ModelShape:
        """Return the shape of the model that the recipe gives."""
        return ModelShape(
            vocabulary=self.vocabulary,
            hidden=self.hidden_size,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.heads,
            feed_forward=self.feed_forward,
            tied=True,
        )


class Model(NewTokens):
    name: Name
    path: str | None
    shape: ModelShape | None
    recipe: BaseRecipe | None

    @field_validator("path")
    @classmethod
    def finds_what_is_shipped(cls, path: str | None) -> str | None:
        """Accept models/tiny-base outside the clone too."""
        return shipped(path) if path else path

    @model_validator(mode="after")
    def first_embeddings_have_tokens(self) -> Model:
        if self.new_tokens is None and self.new_token_init != "mean":
            raise ValueError(
                f"new_token_init={self.new_token_init}: there are no new tokens. Set model.new_tokens to their number."
            )
        return self

    @model_validator(mode="after")
    def comes_from_somewhere(self) -> Model:
        if self.path is None and self.recipe is None:
            raise ValueError(
                "path=null: must be a local Hugging Face folder, unless model.recipe is set. Set one of them."
            )
        return self
