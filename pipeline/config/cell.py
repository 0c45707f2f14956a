"""The whole config: one cell of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from common.errors import BadInput
from common.units import format_tokens
from pipeline import old_names
from pipeline.config.adapting import Adapt, why_not_adapted
from pipeline.config.computing import Compute, Tracking
from pipeline.config.fields import Folder, Name, Section, Seed
from pipeline.config.messages import one_line
from pipeline.config.models import MATRICES, Model
from pipeline.config.scoring import Evaluation, Merge
from pipeline.config.sources import CipherCorpus, Corpus, HubCorpus, Language
from pipeline.config.trainings import Adaptation, ContinualTraining, Instructions, Training
from train.data.chat.template import CHATML, TOKENIZER
from train.parallel import sizes


def iso_date(value: str) -> str:
    """A date as ISO 8601 writes it. Raises ValueError."""
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError("give a date such as 2025-01-01") from None


class Chat(Section):
    """date: today, for chat templates that write it."""

    date: Annotated[str, AfterValidator(iso_date)]


class Config(Section):
    """A cell: one language, one token budget, one seed, and everything that is done with them."""

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

    @property
    def report(self) -> tuple[str | None, str]:
        """Regime and language: the cells of one report, which differ in budget and seed."""
        return self.regime, self.language.code

    @property
    def ct_source(self) -> str | None:
        """The checkpoint that stands in for CT in this language: `{lang}` in ct.source is the language's short code."""
        return self.ct.source and self.ct.source.replace("{lang}", self.language.short or self.language.code)

    @property
    def trained_length(self) -> int:
        """Tokens of the shortest blocks that its models were trained on: all of them know the positions in these."""
        sizes = [self.ct.block_size, self.sft.block_size]
        return min(sizes if self.model.recipe is None else [*sizes, self.model.recipe.block_size])

    @property
    def scores_knobs(self) -> bool:
        """Whether every try of every method is scored on dev and on test in this cell: `eval.frontier`."""
        wanted = self.eval.frontier
        assert wanted != "largest", "pipeline/sweep.py puts a number for the word"
        return wanted == "all" or self.ct.tokens in (wanted or ())

    def at(self, ct_tokens: int, seed: int) -> Config:
        """The cell of this sweep at another budget and seed."""
        return self.model_copy(update={"seed": seed, "ct": self.ct.model_copy(update={"tokens": ct_tokens})})

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
    def arms_can_be_trained(self) -> Config:
        merged = (name for method in self.merge.methods.values() for name in method.checkpoints)
        wanted = {*self.eval.unmerged, *merged}
        if self.ct.source and "sft_then_ct" in wanted:
            raise ValueError(
                f"ct.source={self.ct.source}: sft_then_ct trains CT on top of SFT, and this CT was trained elsewhere; "
                "leave sft_then_ct out of eval.unmerged, or say ct.source=null"
            )
        if self.sft.hub and "target_sft" in wanted:
            raise ValueError(
                "sft.hub: target_sft learns instructions in the language, and this data set is English; "
                "leave target_sft out of eval.unmerged, or say sft.hub=null, for items made from the text"
            )
        if "merge_then_sft" in wanted and self.merge.then_sft is None:
            raise ValueError("merge.then_sft=null: name the merge that merge_then_sft trains on, one of merge.methods")
        if "sft_replay" in wanted and self.sft.arm_replay_share == self.sft.replay_share:
            raise ValueError(
                f"sft.arm_replay_share={self.sft.arm_replay_share}: every SFT has this share already; "
                "give another for sft_replay, or leave it out of eval.unmerged"
            )
        if "mixed" in wanted and self.ct.block_size != self.sft.block_size:
            raise ValueError(
                f"sft.block_size={self.sft.block_size}: mixed trains on blocks of CT and SFT in turn; "
                f"say ct.block_size={self.ct.block_size}, or leave mixed out of eval.unmerged"
            )
        return self

    @model_validator(mode="after")
    def template_has_its_tokens(self) -> Config:
        if self.model.path is None and self.sft.template in (TOKENIZER, CHATML):
            raise ValueError(
                f"sft.template={self.sft.template}: a model that is trained from a recipe has no chat template and no"
                " chat tokens; set model=folder model.path=..., or sft.template to a .jinja file that ends answers by"
                " eos_token"
            )
        return self

    @model_validator(mode="after")
    def all_tries_are_scored_once(self) -> Config:
        if self.eval.frontier and self.eval.untuned:
            raise ValueError("eval.untuned: eval.frontier scores the first try of every method too; say one of them")
        if self.eval.frontier and self.eval.split == "dev":
            raise ValueError("eval.split=dev: eval.frontier scores every try on dev and on test; say eval.split=test")
        return self

    @model_validator(mode="after")
    def what_is_watched_has_a_corpus(self) -> Config:
        every = self.sft.dev_every_tokens
        if every and self.sft.hub and not self.sft.replay_share:
            raise ValueError(
                f"sft.dev_every_tokens={format_tokens(every)}: this SFT reads instructions of a data set and no text; "
                "say sft.dev_every_tokens=null, or give it sft.replay_share"
            )
        return self

    @model_validator(mode="after")
    def as_many_tries(self) -> Config:
        tuned = [len(method.tries) for method in self.merge.methods.values() if method.grid]
        if self.sft.grid and tuned and not self.eval.frontier and len(self.sft.tries) != tuned[0]:
            raise ValueError(
                f"sft.grid: CT-then-SFT gets {len(self.sft.tries)} tries on dev and every merge {tuned[0]}; "
                "give as many, for a fair comparison"
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
                    f"merge.choice.budgets: {format_tokens(tokens)} is beyond ct.schedule_tokens="
                    f"{format_tokens(self.ct.schedule_tokens)}, where the learning-rate schedule ends"
                )
        return self

    @model_validator(mode="after")
    def something_is_asked(self) -> Config:
        if not self.eval.unmerged and not self.merge.methods:
            raise ValueError("eval.unmerged=[]: there are no merges either, so nothing would be scored; say [base]")
        if not self.eval.families and self.merge.methods and self.merge.metric == "acc":
            raise ValueError(
                "eval.families=[]: merges are chosen by their accuracy on our own items; "
                "name a family, or say merge.metric=bits_per_byte"
            )
        return self

    @model_validator(mode="after")
    def lora_finds_its_matrices(self) -> Config:
        """Of a base from a recipe; what a given folder's are called is known when it is opened."""
        targets = self.train.lora.targets if self.train.lora else "all-linear"
        if self.model.path is None and targets != "all-linear":
            for name in targets:
                if name not in MATRICES:
                    raise ValueError(f"train.lora.targets: {name!r} is none of {', '.join(MATRICES)}")
        return self

    @model_validator(mode="after")
    def blocks_fit_the_model(self) -> Config:
        if self.model.path is None and self.model.recipe:
            for key, size in (("ct.block_size", self.ct.block_size), ("sft.block_size", self.sft.block_size)):
                if size > self.model.recipe.context:
                    raise ValueError(f"{key}={size}: must not exceed model.recipe.context={self.model.recipe.context}")
        return self

    @model_validator(mode="after")
    def base_withholds_what_the_cipher_is_made_of(self) -> Config:
        """A recipe that withholds nothing is told of (pipeline/check/text.py) and not refused: the words are new."""
        corpus, recipe = self.corpus, self.model.recipe
        if not isinstance(corpus, CipherCorpus):
            return self
        if self.language.code == "nya":
            raise ValueError("language.code=nya: corpus=cipher is a language of its own; say language=cipher")
        if recipe is None or not recipe.withheld_chapters:
            return self
        if recipe.seed != corpus.withheld_seed:
            raise ValueError(
                f"corpus.withheld_seed={corpus.withheld_seed}: the base withholds chapters by model.recipe.seed="
                f"{recipe.seed}; say {recipe.seed}"
            )
        if recipe.withheld_chapters < corpus.withheld_chapters:
            raise ValueError(
                f"corpus.withheld_chapters={corpus.withheld_chapters}: the base withholds only model.recipe."
                f"withheld_chapters={recipe.withheld_chapters}; say {recipe.withheld_chapters} or less"
            )
        return self


def validate(composed: Mapping[str, Any]) -> Config:
    """A composed config as a `Config`.

    Raises BadInput that names the first wrong key, its value and what would be right.
    """
    current = old_names.config(composed)
    try:
        return Config.model_validate(current)
    except ValidationError as error:
        raise BadInput(one_line(error, current)) from None
