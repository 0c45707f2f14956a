"""The base model: given, or made from scratch by a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from pipeline.config.fields import Name, Positive, Section, Share
from pipeline.config.trainings import Training


class BaseRecipe(Training):
    """How a base model is made from scratch; see train/base_model.py."""

    vocabulary: Annotated[int, Field(ge=258)]
    hidden_size: Positive
    layers: Positive
    heads: Positive
    feed_forward: Positive
    context: Positive
    aligned_share: Share
    aligned_chapters: Share
    repeated_share: Share
    withheld_chapters: Share
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def fits(self) -> BaseRecipe:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size={self.hidden_size}: must be an even multiple of heads={self.heads}")
        if self.block_size > self.context:
            raise ValueError(f"block_size={self.block_size}: must not exceed context={self.context}")
        if self.aligned_share + self.repeated_share >= 1:
            raise ValueError("aligned_share: together with repeated_share it must leave room for English")
        return self


class ModelShape(Section):
    """What decides a model's cost; pipeline/cost/model_shape.py explains each."""

    vocabulary: Positive
    hidden: Positive
    layers: Positive
    heads: Positive
    kv_heads: Positive
    feed_forward: Positive
    tied: bool


class Model(Section):
    name: Name
    path: str | None
    shape: ModelShape | None
    recipe: BaseRecipe | None

    @model_validator(mode="after")
    def comes_from_somewhere(self) -> Model:
        if self.path is None and self.recipe is None:
            raise ValueError("path=null: give a local Hugging Face folder, or a recipe to train one from scratch")
        return self
