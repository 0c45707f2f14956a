"""The schema of the composed config: types and bounds, no values. The values stand in conf/.

A config is validated once, at the edge; everything behind it gets a `Config` and trusts it.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from common.errors import BadInput
from common.units import format_tokens, parse_bytes, parse_tokens
from merge.recipe import Recipe
from pipeline import recipes
from pipeline.kinds import KINDS
from train.parallel import sizes

RESERVED = ("base", "sft", "ct", "ct_then_sft")  # the names that the unmerged checkpoints have in results

Tokens = Annotated[int, BeforeValidator(parse_tokens)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Section(BaseModel):
    """A part of the config: every key must be given, none may be added."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(Section):
    """What CT, SFT and the base model share: one AdamW run with a linear warm-up and a cosine to `min_lr_ratio` of the peak."""

    tokens: Tokens
    batch_tokens: Tokens
    block_size: Positive
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)]
    warmup_ratio: Share
    weight_decay: Annotated[float, Field(ge=0)]
    save_every_tokens: Tokens

    @model_validator(mode="after")
    def whole_blocks(self) -> Training:
        if self.batch_tokens % self.block_size:
            raise ValueError(f"batch_tokens={self.batch_tokens}: must be a multiple of block_size={self.block_size}")
        return self


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


class Language(Section):
    code: Annotated[str, Field(pattern=r"^[a-z]{2,8}(_[A-Za-z]{4})?$")]
    short: Annotated[str, Field(pattern=r"^[a-z]{2,8}$")] | None
    name: str
    most_tokens: Tokens | None
    tasks: list[str]

    @model_validator(mode="after")
    def not_english(self) -> Language:
        if self.code == "en":
            raise ValueError(
                "code=en: English is the language of SFT and replay; give the code of the language to adapt to"
            )
        return self


class Corpus(Section):
    source: Literal["bible", "files"]
    path: str | None
    english_path: str | None
    dev: Annotated[float, Field(gt=0, lt=0.5)]
    test: Annotated[float, Field(gt=0, lt=0.5)]
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def has_files(self) -> Corpus:
        if self.source == "files" and not self.path:
            raise ValueError(
                "path is empty: give a path or glob of text, JSONL or Parquet files, such as corpus.path='data/*.txt'"
            )
        if self.source == "bible" and (self.path or self.english_path):
            raise ValueError("path: corpus=bible brings its own text; say corpus=files to read files")
        return self


class HubSource(Section):
    """Where a data set is: on the hub, or in a folder of the same layout."""

    dataset: str | None
    subset: str | None
    files: str | None
    split: str
    revision: str | None

    @model_validator(mode="after")
    def can_be_found_again(self) -> HubSource:
        if not self.dataset:
            raise ValueError(
                "dataset is empty: give the name of a data set on the hub, or a folder of Parquet or JSONL files"
            )
        if self.revision is None and not self.local:
            raise ValueError(
                f"revision is empty: {self.dataset} is no folder here, and a data set of the hub needs its commit (40 hex digits)"
            )
        return self

    @property
    def local(self) -> bool:
        return Path(self.dataset or "").is_dir()

    @property
    def content(self) -> dict[str, Any]:
        """What decides which rows are read: not the place of a folder, which is known by the checksums of its files."""
        return self.model_dump() | ({"dataset": None, "revision": None} if self.local else {})


class HubText(HubSource):
    column: str


class HubInstructions(HubSource):
    prompt: str
    answer: str
    bytes: Bytes | None


class HubCorpus(Section):
    source: Literal["hub"]
    text: HubText
    english: HubText
    text_bytes: Bytes | None
    english_bytes: Bytes | None
    dev: Annotated[float, Field(gt=0, lt=0.5)]
    test: Annotated[float, Field(gt=0, lt=0.5)]
    seed: Annotated[int, Field(ge=0)]
    workers: Positive


class ContinualTraining(Training):
    source: str | None
    schedule_tokens: Tokens
    english_share: Share

    @model_validator(mode="after")
    def within_schedule(self) -> ContinualTraining:
        if self.tokens > self.schedule_tokens:
            budget, horizon = format_tokens(self.tokens), format_tokens(self.schedule_tokens)
            raise ValueError(
                f"tokens={budget}: the learning-rate schedule ends at ct.schedule_tokens={horizon}; budgets may not exceed it"
            )
        return self


class Instructions(Training):
    source: str | None
    schedule_tokens: Tokens | None
    path: str | None
    hub: HubInstructions | None
    items: Positive
    replay_share: Share

    @model_validator(mode="after")
    def one_source(self) -> Instructions:
        if self.path and self.hub:
            raise ValueError("hub: sft.path is given too; give the instructions in one place")
        if self.schedule_tokens is not None and self.schedule_tokens < self.tokens:
            raise ValueError(
                f"schedule_tokens={format_tokens(self.schedule_tokens)}: must not end before sft.tokens={format_tokens(self.tokens)}"
            )
        return self


class Method(Section):
    """One merge in the results: a recipe, and the grid of settings that are tried on the dev split."""

    recipe: dict[str, Any]
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]]

    @property
    def tries(self) -> list[dict[str, Any]]:
        """Every setting that the grid spans, each a complete recipe."""
        return [
            {**self.recipe, **dict(zip(self.grid, values, strict=True))}
            for values in itertools.product(*self.grid.values())
        ]

    @model_validator(mode="after")
    def settings_in_bounds(self) -> Method:
        both = sorted(set(self.recipe) & set(self.grid))
        if both:
            raise ValueError(f"grid.{both[0]}: stands in the recipe too; give it in one place")
        nowhere = Path("folder")
        for settings in self.tries:
            Recipe.from_dict(recipes.complete(settings, nowhere, nowhere, nowhere, 0), where="recipe")
        return self


class Merge(Section):
    write: bool
    metric: Literal["acc", "bits_per_byte"]
    methods: dict[str, Method]

    @model_validator(mode="after")
    def comparable(self) -> Merge:
        for name in self.methods:
            if name in RESERVED:
                raise ValueError(
                    f"methods.{name}: the name is taken by a checkpoint that is not merged; choose another"
                )
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"methods.{name}: a method's name has small letters, digits and underscores")
        counts = {name: len(method.tries) for name, method in self.methods.items()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ValueError(
                f"methods: every method gets the same number of tries on dev, for a fair comparison; here {listed}"
            )
        return self


class Evaluation(Section):
    unmerged: list[Literal["base", "sft", "ct", "ct_then_sft"]]
    families: list[str]
    items: Positive
    limit: Positive | None
    tune_limit: Positive | None
    excerpt: Positive | None
    batch_tokens: Tokens
    tasks: list[str]
    include_path: str | None
    leaks: bool


class Compute(Section):
    device: Literal["cpu", "cuda"]
    threads: Positive
    micro_batch: Positive | None
    strategy: Literal["none", "ddp", "zero2", "zero3", "zero3_offload", "fsdp"]
    processes: Positive
    nodes: Positive
    precision: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    liger: bool
    keep_last_state: bool
    first_guess: dict[str, Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def guesses_known_kinds(self) -> Compute:
        for kind in self.first_guess:
            if kind not in KINDS:
                raise ValueError(f"first_guess.{kind}: unknown kind of stage; {suggestion(kind, list(KINDS))}")
        return self

    @model_validator(mode="after")
    def strategy_for_many(self) -> Compute:
        if self.strategy == "none" and self.processes * self.nodes > 1:
            raise ValueError(
                "strategy=none: trains in one process; for several say compute=ddp, zero2, zero3, zero3_offload or fsdp"
            )
        if self.strategy in ("ddp", "fsdp") and self.processes * self.nodes == 1:
            raise ValueError(
                f"processes=1: compute.strategy={self.strategy} is for several; for one say compute=gpu or compute=cpu"
            )
        if self.device == "cpu" and (self.liger or self.attention == "flash_attention_2"):
            key, right = (
                ("liger=true", "liger=false") if self.liger else ("attention=flash_attention_2", "attention=sdpa")
            )
            raise ValueError(f"{key}: its kernels run on GPUs only; say compute.{right}, or compute.device=cuda")
        return self


class Lora(Section):
    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Share
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]


class Adaptation(Section):
    lora: Lora | None


class Tracking(Section):
    wandb: Literal["auto", "online", "offline", "off"]
    project: Name


class Config(Section):
    """A cell: one language, one token budget, one seed, and everything that is done with them."""

    name: Name
    seed: Annotated[int, Field(ge=0)]
    store: str
    outputs: str
    model: Model
    language: Language
    corpus: Annotated[Corpus | HubCorpus, Field(discriminator="source")]
    ct: ContinualTraining
    sft: Instructions
    merge: Merge
    eval: Evaluation
    train: Adaptation
    compute: Compute
    tracking: Tracking

    @property
    def ct_source(self) -> str | None:
        """The checkpoint that stands in for CT in this language: `{lang}` in ct.source is the language's short code."""
        return self.ct.source and self.ct.source.replace("{lang}", self.language.short or self.language.code)

    @model_validator(mode="after")
    def batches_can_be_shared(self) -> Config:
        trained: dict[str, Training] = {"ct": self.ct, "sft": self.sft}
        if self.model.path is None and self.model.recipe:
            trained["model.recipe"] = self.model.recipe
        for key, section in trained.items():
            try:
                sizes(
                    section.batch_tokens,
                    section.block_size,
                    self.compute.processes * self.compute.nodes,
                    self.compute.micro_batch,
                )
            except BadInput as error:
                raise ValueError(f"{key}.{error}") from None
        return self

    @model_validator(mode="after")
    def blocks_fit_the_model(self) -> Config:
        if self.model.path is None and self.model.recipe:
            for key, size in (("ct.block_size", self.ct.block_size), ("sft.block_size", self.sft.block_size)):
                if size > self.model.recipe.context:
                    raise ValueError(f"{key}={size}: must not exceed model.recipe.context={self.model.recipe.context}")
        return self


def validate(composed: Mapping[str, Any]) -> Config:
    """A composed config as a `Config`. Raises BadInput that names the first wrong key, its value and what would be right."""
    try:
        return Config.model_validate(composed)
    except ValidationError as error:
        raise BadInput(one_line(error, composed)) from None


def suggestion(name: str, known: list[str]) -> str:
    """The nearest of the known names as a question, or what is known."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def one_line(error: ValidationError, composed: Mapping[str, Any]) -> str:
    """The first thing that a schema refuses: key, value and what would be right."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    if location[:1] == ["corpus"] and "source" in first["loc"][1:2] or location[1:2] in (["bible"], ["files"], ["hub"]):
        location.pop(1)  # pydantic's note of which kind of corpus it is
    key = ".".join(location)
    if first["type"] == "union_tag_invalid":
        return f"corpus.source={first['ctx']['tag']}: choose {first['ctx']['expected_tags']}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        siblings: Any = composed
        for part in location[:-1]:
            siblings = siblings[part]
        return f"{key}: unknown key; {suggestion(location[-1], [name for name in siblings if name != location[-1]])}"
    if first["type"] == "missing":
        return f"{key} is missing; every key needs a value"
    if isinstance(first["input"], BaseModel | dict) and first["type"] == "value_error":
        return f"{key}.{message}" if key else message
    value = "null" if first["input"] is None else first["input"]
    return f"{key}={value}: {message[0].lower()}{message[1:]}"
