"""Settings that decide the results of this package: a frozen class for each kind of result.

Paths, workers and devices are not here: they change no result.

Every field is part of the key of its stage. Values are checked where a user writes them (pipeline/config/); here they
are only picked and typed. Imports no torch and no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self

from common.errors import BadInput
from common.hub_data import Source


class Settings:
    """A frozen dataclass whose fields can be picked from a mapping."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Take the fields of this class; `values` may hold more.

        Raises BadInput that names a field without a value.
        """
        picked: dict[str, Any] = {}
        for known in fields(cls):  # type: ignore[arg-type]  # every subclass is a dataclass
            if known.name in values:
                picked[known.name] = cls.converted(known.name, values[known.name])
            elif known.default is MISSING and known.default_factory is MISSING:
                raise BadInput(f"{cls.__name__}: {known.name} is missing. Set it.")
        return cls(**picked)

    @classmethod
    def converted(cls, name: str, value: Any) -> Any:
        """Return a value as the field `name` stores it: lists of JSON and configs become tuples."""
        return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class TextSource(SourceSettings):
    """Running text, one document per row."""

    column: str  # column of the text


@dataclass(frozen=True)
class InstructionSource(SourceSettings):
    """Instructions, one example per row."""

    prompt: str | None  # column of the question; None for conversations
    answer: str | None  # the column of what is answered; None: of conversations
    bytes: int | None = None  # UTF-8 bytes of prompts and answers to take; None: all


@dataclass(frozen=True)
class CorpusSettings(Settings):
    """Settings of a corpus, besides the checksums of its inputs."""

    source: str  # bible, cipher, files or hub
    language: str  # code of the language that is adapted to
    dev: float  # share of the documents held out for choosing
    test: float  # share of the documents held out for the results
    seed: int  # of the split, and of the order in which files of a data set are read
    text: TextSource | None = None  # of the language; hub only, as are the following
    english: TextSource | None = None  # of English, for replay
    text_bytes: int | None = None  # UTF-8 bytes of the language's training text to take; None: all
    english_bytes: int | None = None  # the same of English

    @classmethod
    def converted(cls, name: str, value: Any) -> Any:
        if name in ("text", "english") and isinstance(value, Mapping):
            return TextSource.from_mapping(value)
        return super().converted(name, value)


@dataclass(frozen=True, kw_only=True)
class CipherSettings(CorpusSettings):
    """Settings of the corpus of the Bible in English and in a cipher of English."""

    replaced: float  # fraction of word types that are replaced by invented words, 0 to 1
    cipher_seed: int  # of which types, and of the invented words
    withheld_chapters: float  # fraction of training chapters that form the cipher's text, the rest stays English
    withheld_seed: int  # of which chapters: that of the base's recipe, which withholds the same


@dataclass(frozen=True)
class CorpusOptions(Settings):
    """The sources of a corpus and the number of processes; not settings, as they do not change it."""

    path: str | None = None  # a file or glob of the language's text; files only
    english_path: str | None = None  # the same of English; None: the World English Bible
    text_folder: str | None = None  # of the language's text where its data set is a local one; hub only
    english_folder: str | None = None  # the same of English
    workers: int = 1  # processes; hub only


@dataclass(frozen=True)
class ChatSettings(Settings):
    """The way conversations become text, and text examples."""

    template: str  # `tokenizer`, for that of the model's tokenizer, or a template's text
    args: Mapping[str, Any] = field(default_factory=dict)  # variables of the template
    system: str | None = None  # system message of conversations without one; None: what the template has
    too_long: str = "cut"  # conversations longer than a block: cut, the last turns first, or drop
    date: str | None = None  # what a template that writes today's date is given; None: it writes none


@dataclass(frozen=True)
class ItemsSettings(Settings):
    """Settings of instructions and evaluation items, besides the corpus and a user's own instructions."""

    language: str  # code of the language to adapt to; English is always included
    families: tuple[str, ...]  # names of train.data.questions.QUESTIONS
    sft_items: int  # instructions a family, at most
    eval_items: int  # items per family, language and split, at most
    seed: int
    questions: int = 1  # on one passage of an instruction, at most
    conversations: bool = False  # whether a user's own instructions are kept as conversations, for a template
    format: str = "auto"  # of a user's own instructions, one of train.data.conversations.NAMES; auto: by their columns


@dataclass(frozen=True)
class InstructionsInLanguageSettings(Settings):
    """Settings of instructions in the language itself, besides the corpus."""

    language: str
    families: tuple[str, ...]  # names of train.data.questions.QUESTIONS
    sft_items: int  # instructions a family, at most
    seed: int
    questions: int = 1  # on one passage of an instruction, at most


@dataclass(frozen=True)
class InstructionsSettings(Settings):
    """Settings of instructions from the Hub."""

    hub: InstructionSource
    seed: int  # of the order in which the data set's files are read
    format: str = "auto"  # of conversations, one of train.data.conversations.NAMES; auto: by their columns

    @classmethod
    def converted(cls, name: str, value: Any) -> Any:
        return InstructionSource.from_mapping(value) if name == "hub" else super().converted(name, value)


@dataclass(frozen=True)
class CtBlocksSettings(Settings):
    """Settings of the blocks of continual training, besides the corpus and the tokenizer."""

    language: str
    schedule_tokens: int | None  # tokens to pack: of the largest budget that the schedule may reach; None: all
    block_size: int  # tokens of a block
    english_share: float  # of the blocks, 0 to 1
    seed: int  # of the order of files and documents
    epochs: int = 1  # passes over the language's text, each in its own order
    document_end: str | None = None  # token that ends a document; None: the tokenizer's eos


@dataclass(frozen=True)
class SftBlocksSettings(Settings):
    """Settings of the blocks of SFT, besides the instructions, the corpus and the tokenizer."""

    tokens: int  # tokens to pack, padding among them
    block_size: int  # tokens of a block
    replay_share: float  # of the blocks that are running text, 0 to 1
    seed: int  # of the order of examples
    language: str = "en"  # of the running text
    chat: ChatSettings | None = None  # how conversations become text; None: prompts and answers as they are

    @classmethod
    def converted(cls, name: str, value: Any) -> Any:
        if name == "chat" and isinstance(value, Mapping):
            return ChatSettings.from_mapping(value)
        return super().converted(name, value)


@dataclass(frozen=True)
class BaseModelSettings(Settings):
    """The recipe of a base model that is trained from scratch: its shape and its text."""

    language: str
    vocabulary: int  # entries of the tokenizer
    hidden_size: int
    layers: int
    heads: int  # of attention, a layer
    feed_forward: int  # width of the feed-forward layers
    context: int  # most tokens of a sequence
    block_size: int  # tokens of a block
    tokens: int  # to train on
    batch_tokens: int  # tokens per step
    aligned_share: float  # of the blocks that are aligned verses
    aligned_chapters: float  # share of the training chapters whose aligned verses are used
    repeated_share: float  # of the blocks that are passages followed by themselves
    withheld_chapters: float  # fraction of training chapters that it never reads, for a cipher's text
    seed: int


@dataclass(frozen=True)
class LoraSettings(Settings):
    """Low-rank factors (Hu et al. 2022, arXiv 2106.09685): W + (alpha / rank)·B·A."""

    rank: int
    alpha: float
    dropout: float  # on the additions' input while training, 0 to 1
    targets: str | tuple[str, ...]  # modules that get additions: `all-linear`, or their names


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Settings of a training, besides the model and the blocks that it starts with."""

    tokens: int  # the budget: where this run ends; rounded down to whole steps
    schedule_tokens: int  # where the learning-rate schedule ends: budgets of one trajectory share it
    batch_tokens: int  # tokens per step, of all processes together; a multiple of block_size
    block_size: int  # tokens of a block
    learning_rate: float  # at its peak
    min_lr_ratio: float  # of the peak, at the end of the schedule
    warmup_ratio: float  # of the schedule's steps, in which the learning rate rises linearly
    weight_decay: float  # of AdamW, on matrices
    seed: int  # of the weights' dropout; the order of blocks is that of their file
    lora: LoraSettings | None = None  # None: every weight is trained
    schedule: str = "cosine"  # after the warm-up: cosine, or wsd (constant, then a decay before the end of this run)
    decay_tokens: int = 0  # wsd: the last tokens of this run, over which the rate falls; 0: it stays at its peak
    decay_shape: str = "linear"  # wsd: linear or 1-sqrt (Haegele et al. 2024, arXiv 2405.18392)

    @classmethod
    def converted(cls, name: str, value: Any) -> Any:
        if name == "lora" and isinstance(value, Mapping):
            return LoraSettings.from_mapping(value)
        return super().converted(name, value)

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
        """Return the optimizer steps of the decay of a wsd schedule."""
        return self.decay_tokens // self.batch_tokens
