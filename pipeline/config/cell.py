"""The whole config: one cell of a sweep."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, field_validator, model_validator

from common.errors import BadInput, listed, suggestion
from common.settings import Folder, Name, Seed, Settings
from common.units import format_tokens
from common.validation import error_line
from pipeline import old_names
from pipeline.baselines import VARIANT
from pipeline.config.adapting import Adapt, why_not_adapted
from pipeline.config.computing import Compute, Tracking
from pipeline.config.models import MATRICES, Model
from pipeline.config.scoring import Evaluation, Merge, VariantName, check_parents
from pipeline.config.sources import CipherCorpus, Corpus, HubCorpus, Language, of_chosen_corpus
from pipeline.config.trainings import Adaptation, ContinualTraining, Instructions, Training
from train import averaging
from train.data.chat_template import CHATML, TOKENIZER
from train.distributed import batch_sizes
from train.memory_saving import contradiction


def iso_date(value: str) -> str:
    """Return a date as ISO 8601 writes it. Raises ValueError."""
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError("must be a date such as 2025-01-01.") from None


class Chat(Settings):
    """Settings of chat templates. date: today's date, for templates that write it."""

    date: Annotated[str, AfterValidator(iso_date)]


Overrides = Annotated[str, Field(min_length=1)]


class Config(Settings):
    """A cell: one language, one token budget, one seed, and all settings for them.

    variants: overrides relative to the cell, by the names that merges call their CT: `ct@NAME`.
    """

    name: Name
    seed: Seed
    regime: Name | None
    notes: tuple[str, ...]
    store: Folder
    outputs: Folder
    model: Model
    language: Language
    corpus: Annotated[Corpus | CipherCorpus | HubCorpus, Field(discriminator="source")]
    ct: ContinualTraining
    sft: Instructions
    merge: Merge
    eval: Evaluation
    train: Adaptation
    compute: Compute
    tracking: Tracking
    chat: Chat
    adapt: Adapt | None
    variants: dict[VariantName, Overrides] = Field(default_factory=dict)
    _variants: dict[str, Config] = PrivateAttr(default_factory=dict)

    @property
    def variant_configs(self) -> Mapping[str, Config]:
        """Return the cell of each variant, as pipeline/sweep.py has composed it."""
        return self._variants

    def with_variants(self, configs: Mapping[str, Config]) -> Config:
        """Return this cell with the cells of its variants."""
        copy = self.model_copy()
        copy._variants = dict(configs)
        return copy

    @property
    def report(self) -> tuple[str | None, str]:
        """Regime and language: the cells of one report, which differ in budget and seed."""
        return self.regime, self.language.code

    @property
    def ct_source(self) -> str | None:
        """Return the checkpoint that replaces CT in this language: `{lang}` in ct.source is the language's ISO 639-1
        code, or else its code.
        """
        return self.ct.source and self.ct.source.replace("{lang}", self.language.iso639_1 or self.language.code)

    @property
    def families(self) -> list[str]:
        """Return the task families that items and instructions of this corpus can be of: some need aligned verses."""
        from train.data.questions import WORD_FAMILIES

        has_verses = self.corpus.source in ("bible", "cipher")
        return [name for name in self.eval.families if has_verses or name in WORD_FAMILIES]

    @property
    def no_families(self) -> str:
        """Return how a message about the lack of families begins."""
        if not self.eval.families:
            return "eval.families=[]:"
        named = ", ".join(self.eval.families)
        return f"eval.families=[{named}]: corpus.source={self.corpus.source} has no aligned verses for them, and"

    @property
    def checkpoints(self) -> set[str]:
        """Return the checkpoints that are scored or merged, by their names in results."""
        merged = (name for method in self.merge.methods.values() for name in method.checkpoints)
        return {*self.eval.baselines, *merged}

    @property
    def trained_length(self) -> int:
        """Return tokens of the shortest blocks that its models were trained on: all of them know the positions in
        these.
        """
        batch_sizes = [self.ct.block_size, self.sft.block_size]
        return min(batch_sizes if self.model.recipe is None else [*batch_sizes, self.model.recipe.block_size])

    @property
    def scores_knobs(self) -> bool:
        """Return whether every try of every method is scored on dev and on test in this cell: `eval.frontier`."""
        wanted = self.eval.frontier
        assert wanted != "largest", "pipeline/sweep.py puts a number for the word"
        return wanted == "all" or self.ct.tokens in (wanted or ())

    def at(self, ct_tokens: int, seed: int) -> Config:
        """Return the cell of this sweep at another budget and seed, and its variants there."""
        moved = self.model_copy(update={"seed": seed, "ct": self.ct.model_copy(update={"tokens": ct_tokens})})
        return moved.with_variants({name: each.at(ct_tokens, seed) for name, each in self.variant_configs.items()})

    @field_validator("variants", mode="before")
    @classmethod
    def none_given(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="before")
    @classmethod
    def parents_are_known(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(merge := values.get("merge"), Mapping):
            check_parents(merge, values.get("variants"))
        return values

    @model_validator(mode="after")
    def batches_can_be_shared(self) -> Config:
        trained: dict[str, Training] = {"ct": self.ct, "sft": self.sft}
        if self.model.path is None and self.model.recipe:
            trained["model.recipe"] = self.model.recipe
        for key, section in trained.items():
            try:
                batch_sizes(
                    section.batch_tokens,
                    section.block_size,
                    self.compute.processes * self.compute.nodes,
                    self.compute.micro_batch,
                )
            except BadInput as error:
                raise ValueError(f"{key}.{error}") from None
        return self

    @model_validator(mode="after")
    def variants_are_merged(self) -> Config:
        named = {role for method in self.merge.methods.values() for role in method.of}
        for name in self.variants:
            if (role := f"ct{VARIANT}{name}") not in named:
                raise ValueError(
                    f"variants.{name}: no method merges {role}. Name it in merge.methods.NAME.of, or leave it out."
                )
        return self

    @model_validator(mode="after")
    def sources_have_other_names(self) -> Config:
        taken = {"en": "english_fraction sets how much English is read", self.language.code: "its text is the corpus"}
        for name in taken.keys() & (self.ct.sources or {}).keys():
            raise ValueError(f"ct.sources.{name}: is the code of a language, and {taken[name]}. Choose another name.")
        return self

    @model_validator(mode="after")
    def arms_can_be_trained(self) -> Config:
        wanted = self.checkpoints
        if self.ct.source and "sft_then_ct" in wanted:
            raise ValueError(
                f"ct.source={self.ct.source}: sft_then_ct trains CT on top of SFT, but this CT is given. "
                "Leave sft_then_ct out of eval.baselines, or set ct.source=null."
            )
        if "sft_then_ct_frozen" in wanted:
            if self.ct.source:
                raise ValueError(
                    f"ct.source={self.ct.source}: sft_then_ct_frozen trains CT on top of SFT, but this CT is given. "
                    "Leave sft_then_ct_frozen out of eval.baselines, or set ct.source=null."
                )
            if self.compute.strategy not in ("none", "ddp"):
                raise ValueError(
                    f"compute.strategy={self.compute.strategy}: sft_then_ct_frozen needs all weights in each process."
                    " Set compute.strategy=none or ddp, or leave sft_then_ct_frozen out of eval.baselines."
                )
        if self.sft.hub and "target_sft" in wanted:
            raise ValueError(
                "sft.hub: target_sft needs instructions in the language, but this data set is English. "
                "Leave target_sft out of eval.baselines, or set sft.hub=null to make items from the text."
            )
        if "merge_then_sft" in wanted and self.merge.sft_after_merge is None:
            raise ValueError(
                "merge.sft_after_merge=null: merge_then_sft trains on a merge."
                f" Set one of {listed(self.merge.methods)}."
            )
        if "sft_replay" in wanted and self.sft.arm_replay_fraction == self.sft.replay_fraction:
            raise ValueError(
                f"sft.arm_replay_fraction={self.sft.arm_replay_fraction}: every SFT has this fraction already. "
                "Give another to sft_replay, or leave it out of eval.baselines."
            )
        if "mixed" in wanted and self.ct.whole_text:
            raise ValueError(
                "ct.tokens=null: mixed spreads a stated budget over SFT's blocks; set ct.tokens, or leave mixed out of"
                " eval.baselines"
            )
        if "mixed" in wanted and self.ct.block_size != self.sft.block_size:
            raise ValueError(
                f"sft.block_size={self.sft.block_size}: must be ct.block_size, as mixed trains on blocks of both. "
                f"Set ct.block_size={self.ct.block_size}, or leave mixed out of eval.baselines."
            )
        return self

    @model_validator(mode="after")
    def new_tokens_are_trained(self) -> Config:
        if self.model.new_tokens and self.ct.source:
            raise ValueError(
                f"model.new_tokens={self.model.new_tokens}: needs a CT that is trained here, got "
                f"ct.source={self.ct.source}. Set model.new_tokens=null, or ct.source=null."
            )
        return self

    @model_validator(mode="after")
    def weights_can_be_trained(self) -> Config:
        if self.train.lora_above is None and (wrong := why_not_trained(self)):
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def weights_can_be_averaged(self) -> Config:
        if self.ct.averages and (wrong := averaging.contradiction(bool(self.train.lora), self.compute.strategy)):
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def template_has_its_tokens(self) -> Config:
        if self.model.path is None and self.sft.template in (TOKENIZER, CHATML):
            raise ValueError(
                f"sft.template={self.sft.template}: a model that is trained from a recipe has no chat template and no"
                " chat tokens. Set model=folder model.path=..., or sft.template to a .jinja file that ends answers by"
                " eos_token."
            )
        return self

    @model_validator(mode="after")
    def all_tries_are_scored_once(self) -> Config:
        if self.eval.frontier and self.eval.default_settings:
            raise ValueError(
                "eval.default_settings: eval.frontier scores the first trial of every method too."
                " Leave one of them out."
            )
        if self.merge.search and (self.eval.frontier or self.adapt):
            key = "eval.frontier" if self.eval.frontier else "adapt"
            raise ValueError(
                f"merge.search: {key} scores all trials of a method, and a search has none before it runs."
                " Give methods a grid, and set merge.search=null."
            )
        if self.ct.freeze.grid and not self.eval.frontier:
            raise ValueError(
                "ct.freeze.grid: only eval.frontier scores every value of it; none is selected on dev."
                " Set eval.frontier=all, or ct.freeze.grid=null."
            )
        if self.eval.frontier and self.eval.split == "dev":
            raise ValueError(
                "eval.split=dev: eval.frontier scores every trial on dev and on test. Set eval.split=test."
            )
        return self

    @model_validator(mode="after")
    def what_is_watched_has_a_corpus(self) -> Config:
        every = self.sft.dev_every_tokens
        if every and self.sft.hub and not self.sft.replay_fraction:
            raise ValueError(
                f"sft.dev_every_tokens={format_tokens(every)}: "
                "this SFT trains on instructions of a data set without text. "
                "Set sft.dev_every_tokens=null, or set sft.replay_fraction."
            )
        return self

    @model_validator(mode="after")
    def as_many_tries(self) -> Config:
        if self.eval.frontier:  # nothing is selected on dev
            return self
        # a method without a grid is stated and not tuned: what it differs by from another one is its recipe alone
        counts = self.merge.trials_by_method()
        tuned = list(counts.values())
        if len(set(tuned)) > 1:
            raise ValueError(
                "merge.methods: every method must have the same number of trials on dev, for a fair comparison, "
                f"got {', '.join(f'{name} {count}' for name, count in counts.items())}."
            )
        if self.sft.grid and tuned and len(self.sft.tries) != tuned[0]:
            raise ValueError(
                f"sft.grid: CT-then-SFT gets {len(self.sft.tries)} trials on dev, every merge {tuned[0]}. "
                "Give both the same number, for a fair comparison."
            )
        return self

    @model_validator(mode="after")
    def one_model_is_adapted(self) -> Config:
        if wrong := why_not_adapted(self):
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def budgets_to_choose_on(self) -> Config:
        budgets = self.merge.choice.budgets
        for tokens in () if isinstance(budgets, str) else budgets:
            if tokens > self.ct.schedule_tokens:
                raise ValueError(
                    f"merge.choice.budgets: must be at most ct.schedule_tokens="
                    f"{format_tokens(self.ct.schedule_tokens)}, got {format_tokens(tokens)}."
                )
        return self

    @model_validator(mode="after")
    def something_is_asked(self) -> Config:
        if not self.eval.baselines and not self.merge.methods:
            raise ValueError(
                "eval.baselines=[]: there are no merges either, so nothing would be scored. Set eval.baselines=[base]."
            )
        if not self.families and self.merge.methods and self.adapt is None and self.merge.metric == "acc":
            raise ValueError(
                f"{self.no_families} merges are selected by accuracy on our own items. "
                "Name a family, or set merge.metric=bits_per_byte."
            )
        return self

    @model_validator(mode="after")
    def lora_finds_its_matrices(self) -> Config:
        """Check LoRA's matrices of a base from a recipe; those of a given folder are checked when it is opened."""
        targets = self.train.lora.targets if self.train.lora else "all-linear"
        if self.model.path is None and targets != "all-linear":
            for name in targets:
                if name not in MATRICES:
                    raise ValueError(f"train.lora.targets: no such matrix, got {name!r}. {suggestion(name, MATRICES)}")
        return self

    @model_validator(mode="after")
    def blocks_fit_the_model(self) -> Config:
        if self.model.path is None and self.model.recipe:
            for key, size in (("ct.block_size", self.ct.block_size), ("sft.block_size", self.sft.block_size)):
                if size > self.model.recipe.context:
                    raise ValueError(f"{key}={size}: must not exceed model.recipe.context={self.model.recipe.context}.")
        return self

    @model_validator(mode="after")
    def base_withholds_what_the_cipher_is_made_of(self) -> Config:
        """Check withheld chapters; a recipe without them gives a warning only (pipeline/check/data.py): the words are
        new.
        """
        corpus, recipe = self.corpus, self.model.recipe
        if not isinstance(corpus, CipherCorpus):
            return self
        if not self.language.code.startswith("cipher"):
            raise ValueError(
                f"language.code={self.language.code}: corpus=cipher needs the language cipher. Set language=cipher."
            )
        if recipe is None or not recipe.withheld_chapters:
            return self
        if recipe.seed != corpus.withheld_seed:
            raise ValueError(
                f"corpus.withheld_seed={corpus.withheld_seed}: must be model.recipe.seed="
                f"{recipe.seed}, by which the base withholds chapters. Set corpus.withheld_seed={recipe.seed}."
            )
        if recipe.withheld_chapters < corpus.withheld_chapters:
            raise ValueError(
                f"corpus.withheld_chapters={corpus.withheld_chapters}: must be at most model.recipe."
                f"withheld_chapters={recipe.withheld_chapters}, which the base withholds."
            )
        return self


def why_not_trained(config: Config) -> str | None:
    """Describe, beginning with the key, why these weights cannot be trained, with LoRA or in full; None: they can.

    With `train.lora_above` this is known only when memory has decided for LoRA (pipeline/resolve.py).
    """
    train, compute, lora = config.train, config.compute, config.train.lora is not None
    if lora and "sft_then_ct_frozen" in config.checkpoints:
        return (
            "train.lora: sft_then_ct_frozen freezes columns of weights that LoRA does not train. "
            "Set train=full, or leave sft_then_ct_frozen out of eval.baselines."
        )
    if lora and config.model.new_tokens and compute.strategy not in ("none", "ddp"):
        return (
            f"compute.strategy={compute.strategy}: LoRA with model.new_tokens trains embeddings in full, which"
            " works with none and ddp. Set compute.strategy=ddp, train=full or model.new_tokens=null."
        )
    return contradiction(train, lora, compute.precision, compute.strategy)


def validate(composed: Mapping[str, Any], given: Collection[str] = ()) -> Config:
    """Return a composed config as a `Config`. given: the keys that the command line sets.

    Raises BadInput that names the first wrong key, its value and what would be right.
    """
    current = old_names.config(composed)
    current["corpus"] = of_chosen_corpus(current.get("corpus"), given)
    try:
        return Config.model_validate(current)
    except ValidationError as error:
        raise BadInput(error_line(error, current, Config)) from None
