"""The settings of this package, declared once: the config's sections, the keys of stages and the code share them.

Every field of a `…Settings` class is part of the key of its stage (pipeline/stages/). Paths, workers and devices change
no result: these are in `…Options` and `Compute`. A serialization alias is the name of a field before 0.2, which keys
keep. Imports no torch and no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from common.errors import BadInput
from common.hub_data import Source
from common.settings import Bytes, Fraction, Positive, Seed, Settings, Tokens

Precision = Literal["fp32", "bf16", "fp16"]
# How a wsd schedule ends. linear, 1-sqrt: the learning rate falls (Haegele et al. 2024, arXiv 2405.18392);
# average: it stays, and weights are averaged (train/averaging.py).
DecayShape = Literal["linear", "1-sqrt", "average"]
HeldOutFraction = Annotated[float, Field(gt=0, lt=0.5)]


# --- text ---


class SourceSettings(Settings):
    """The rows of a data set to read.

    A local folder's name is not part of it: checksums identify its content.
    """

    dataset: str | None  # a name on the Hub; None for a local folder
    subset: str | None  # a configuration of the data set; None: its only one
    files: str | None  # a glob of the data set's files; None: all
    split: str  # of the data set itself, such as train
    revision: str | None  # a commit, branch or tag of the Hub; None for a local folder

    def located(self, folder: str | None) -> Source:
        """Return the source with its place: the Hub, or else `folder`."""
        dataset = self.dataset or folder
        if dataset is None:
            raise BadInput(f"{type(self).__name__}: a data set on the Hub or a folder is missing. Set one.")
        return Source(dataset, self.subset, self.files, self.split, self.revision)


class TextSource(SourceSettings):
    """Running text, one document per row."""

    column: str  # column of the text


class FurtherText(SourceSettings):
    """Rows that a template makes documents of, one each."""

    subset: str | None = None
    files: str | None = None
    split: str = "train"
    revision: str | None = None
    template: str = "{text}"  # `{en}` stands for the column `en`
    max_bytes: Bytes | None = None  # UTF-8 bytes of documents to take; None: all


class TextSourceSettings(FurtherText):
    """Further text for CT, next to the corpus."""

    name: str
    seed: Seed  # of the order in which the data set's files are read


class TextSourceOptions(Settings):
    """folder: of a local data set. workers: processes."""

    folder: str | None
    workers: int = 1


class InstructionSource(SourceSettings):
    """Instructions, one example per row. prompt, answer: columns of text; both None for conversations."""

    prompt: str | None
    answer: str | None
    bytes: Bytes | None  # UTF-8 bytes of prompts and answers to take; None: all


class HeldOut(Settings):
    """The fractions of a corpus's documents that are held out, by a seeded hash."""

    dev: HeldOutFraction  # for choosing
    test: HeldOutFraction  # for the results
    seed: Seed  # of the split, and of the order in which files of a data set are read


class Cipher(HeldOut):
    """The Bible in English and in a cipher of English: the positive control (train/data/corpus/sources.py)."""

    replaced: Annotated[float, Field(gt=0, le=1)]  # fraction of word types that are replaced by invented words
    cipher_seed: Seed  # of which types, and of the invented words
    withheld_chapters: Annotated[float, Field(gt=0, lt=1)]  # fraction of training chapters that form the cipher's text
    withheld_seed: Seed  # of which chapters: that of the base's recipe, which withholds the same


class CorpusSettings(HeldOut):
    """A corpus of the Bible, or of files."""

    source: str  # bible, cipher, files or hub
    language: str  # code of the language that is adapted to

    def key_content(self) -> dict[str, Any]:
        """Mark a corpus of files: until its lines were kept they were joined, so older entries have another key."""
        return super().key_content() | ({"lines": "kept"} if self.source == "files" else {})


class CipherSettings(CorpusSettings, Cipher):
    """A corpus of a cipher."""


class HubCorpusSettings(CorpusSettings):
    """A corpus of data sets."""

    text: TextSource  # of the language
    english: TextSource  # for replay
    text_bytes: Bytes | None  # UTF-8 bytes of the language's training text to take; None: all
    english_bytes: Bytes | None


class CorpusOptions(Settings):
    """The sources of a corpus and the number of processes."""

    path: str | None = None  # a file or glob of the language's text; files only
    english_path: str | None = None  # the same of English; None: the World English Bible
    text_folder: str | None = None  # of the language's text where its data set is a local one; hub only
    english_folder: str | None = None  # the same of English
    workers: int = 1  # processes; hub only


# --- items and instructions ---


class InstructionsInLanguageSettings(Settings):
    """Instructions in the language itself."""

    language: str
    families: tuple[str, ...]  # names of train.data.questions.QUESTIONS
    sft_items: int  # instructions a family, at most
    seed: int
    questions: int = 1  # on one passage of an instruction, at most


class ItemsSettings(InstructionsInLanguageSettings):
    """Instructions and evaluation items in the language and in English."""

    eval_items: int  # items per family, language and split, at most
    conversations: bool = False  # whether a user's instructions are kept as conversations, for a template
    format: str = "auto"  # of a user's instructions, one of train.data.conversations.NAMES; auto: by their columns


class InstructionsSettings(Settings):
    """Instructions of a data set."""

    hub: InstructionSource
    seed: int  # of the order in which the data set's files are read
    format: str = "auto"  # of conversations, one of train.data.conversations.NAMES; auto: by their columns


# --- blocks ---


class ChatSettings(Settings):
    """The way conversations become text, and text examples."""

    template: str  # `tokenizer`, for that of the model's tokenizer, or a template's text
    args: Mapping[str, Any] = {}  # variables of the template
    system: str | None = None  # system message of conversations without one; None: what the template has
    too_long: Literal["cut", "drop"] = "cut"  # of conversations longer than a block; cut: the last turns first
    date: str | None = None  # what a template that writes today's date is given; None: it writes none


class CtData(Settings):
    """What continual training reads."""

    english_fraction: Fraction = Field(serialization_alias="english_share")  # of the blocks
    epochs: Annotated[int, Field(ge=1, le=8)] = 1  # passes over the language's text, each in its own order
    document_end: Annotated[str, Field(min_length=1)] | None = None  # token that ends a document; None: eos


class CtBlocksSettings(CtData):
    """The blocks of continual training."""

    language: str
    schedule_tokens: int | None  # tokens to pack: of the largest budget that the schedule may reach; None: all
    block_size: int
    seed: int  # of the order of files and documents
    sources: Mapping[str, float] = {}  # further texts: fraction of the blocks, by name


class SftBlocksSettings(Settings):
    """The blocks of SFT."""

    tokens: int  # tokens to pack, padding among them
    block_size: int
    replay_fraction: Fraction = Field(serialization_alias="replay_share")  # of the blocks that are running text
    seed: int  # of the order of examples
    language: str = "en"  # of the running text
    chat: ChatSettings | None = None  # how conversations become text; None: prompts and answers as they are


# --- trainings ---


class Optimization(Settings):
    """One run of AdamW: a linear warm-up, then a cosine to `min_lr_ratio` of the peak."""

    tokens: Tokens  # the budget: where this run ends; rounded down to whole steps
    batch_tokens: Tokens  # per step, over all processes; a multiple of block_size
    block_size: Annotated[Tokens, Field(ge=2)]  # a block's first token is not predicted
    learning_rate: Annotated[float, Field(gt=0, lt=1)]  # at its peak
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)]  # of the peak, at the end of the schedule
    warmup_ratio: Fraction  # of the schedule's steps
    weight_decay: Annotated[float, Field(ge=0)]  # of AdamW, on matrices


class LoraSettings(Settings):
    """Low-rank factors (Hu et al. 2022, arXiv 2106.09685): W + (alpha / rank)·B·A."""

    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Fraction  # on the additions' input while training
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)]  # modules that get additions


class MemorySaving(Settings):
    """Fewer bits for what a training keeps (train/memory_saving.py)."""

    base_dtype: Literal["float32", "bfloat16", "nf4"] = "float32"  # of the base's frozen linear layers under LoRA
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"  # the second keeps AdamW's moments in 8 bits


class FrozenColumns(Settings):
    """The columns of weights that do not change (train/column_freezing.py)."""

    fraction: Annotated[float, Field(gt=0, le=1)]  # of each layer's columns, those that English needs most
    blocks: Positive  # of English instructions that show which these are


class MixedPrecision(Settings):
    """precision: of the forward and backward passes; weights and optimizer stay in float32."""

    precision: Precision = "fp32"

    def key_content(self) -> dict[str, Any]:
        """Add the dtype of published weights, which once was that of the passes."""
        return super().key_content() | ({} if self.precision == "fp32" else {"published": "float32"})


class TrainingSettings(Optimization, MixedPrecision, MemorySaving):
    """A training of a given model on given blocks.

    whole_text: whether it trains on all blocks, whose number only the blocks know; `tokens` is then an estimate.
    """

    schedule_tokens: int  # where the learning-rate schedule ends: budgets of one trajectory share it
    seed: int  # of the weights' dropout; the order of blocks is that of their file
    lora: LoraSettings | None = None  # None: every weight is trained
    train_embeddings: bool = False  # with LoRA: embedding and head are trained too, in full
    schedule: Literal["cosine", "wsd"] = "cosine"  # after the warm-up; wsd: constant, then a decay
    decay_tokens: int = 0  # wsd: the last tokens of this run, its decay; 0: the rate stays at its peak
    decay_shape: DecayShape | None = None  # wsd
    averaged_checkpoints: Positive | None = None  # average: at most, no more than the steps of the decay
    whole_text: bool = False
    frozen_columns: FrozenColumns | None = None  # None: all weights change

    def key_content(self) -> dict[str, Any]:
        """Leave out the estimate of a training on all blocks."""
        if not self.whole_text:
            return super().key_content()
        unknown = {"tokens": None, "schedule_tokens": None}
        return {name: value for name, value in super().key_content().items() if name != "whole_text"} | unknown

    @property
    def steps(self) -> int:
        """Return the optimizer steps of this run, which never exceed the budget."""
        return self.tokens // self.batch_tokens

    @property
    def schedule_steps(self) -> int:
        """Return the optimizer steps of the schedule, the longest run."""
        return max(self.steps, self.schedule_tokens // self.batch_tokens)

    @property
    def decay_steps(self) -> int:
        """Return the last optimizer steps of a wsd schedule, over which the rate falls; 0: it does not fall."""
        return 0 if self.averaged_checkpoints else self.decay_tokens // self.batch_tokens

    @property
    def averaged_steps(self) -> tuple[int, ...]:
        """Return the steps whose weights the published ones are the mean of; empty: those of the last are published.

        They end equal parts of the decay.
        """
        steps = self.decay_tokens // self.batch_tokens
        parts = min(steps, self.averaged_checkpoints or 0)
        return tuple(self.steps - steps + steps * part // parts for part in range(1, parts + 1))


class NewTokens(Settings):
    """New tokens for the language, which continue the tokenizer's own BPE (train/vocabulary.py)."""

    new_tokens: Annotated[Tokens, Field(le=1_000_000)] | None = None  # at most; None: the vocabulary stays
    new_token_init: Literal["mean", "focus"] = "mean"  # of their embeddings


class VocabularySettings(NewTokens):
    """A model with new tokens for a language."""

    language: str


class BaseShape(Settings):
    """The recipe of a base model that is trained from scratch (train/base_model.py): its shape and its text."""

    vocabulary: Annotated[Tokens, Field(ge=258)]  # entries of the tokenizer
    hidden_size: Positive
    layers: Positive
    heads: Positive  # of attention, a layer
    feed_forward: Positive  # width of the feed-forward layers
    context: Tokens  # most tokens of a sequence
    aligned_fraction: Fraction = Field(serialization_alias="aligned_share")  # of the blocks that are aligned verses
    aligned_chapters: Fraction  # of the training chapters whose aligned verses are used
    # of the blocks that are passages followed by themselves
    repeated_fraction: Fraction = Field(serialization_alias="repeated_share")
    withheld_chapters: Fraction  # of the training chapters that it never reads, for a cipher's text
    seed: Seed


class BaseModelSettings(BaseShape, Optimization, MixedPrecision):
    """A base model that is trained from scratch."""

    language: str

    @property
    def training(self) -> TrainingSettings:
        """Return its training: one schedule, to its end."""
        return TrainingSettings.pick(self, schedule_tokens=self.tokens)


class Compute(Settings):
    """Where and how a training is computed; conf/compute/ explains each. The optimisation is the same for all."""

    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None  # of a process; None: torch's own choice
    micro_batch: Positive | None = None  # at most so many blocks in one forward pass of a process; None: all it has
    strategy: Literal["none", "ddp", "zero2", "zero3", "zero3_offload", "fsdp"] = "none"
    processes: Positive = 1  # per node
    nodes: Positive = 1
    gradient_checkpointing: bool = False
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None  # None: what transformers chooses
    liger: bool = False

    @property
    def world(self) -> int:
        """Return the number of processes of all nodes."""
        return self.processes * self.nodes
