"""Languages, and the sources of text and instructions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from common.errors import BadInput
from common.settings import Bytes, Positive, Settings, Tokens
from train.data.corpus.further_text import columns_of
from train.settings import Cipher, FurtherText, HeldOut, InstructionSource, SourceSettings, TextSource


class Language(Settings):
    code: Annotated[str, Field(pattern=r"^[a-z]{2,8}(_[A-Za-z]{4})?$")]
    iso639_1: Annotated[str, Field(pattern=r"^[a-z]{2,8}$")] | None
    name: str
    max_tokens: Tokens | None
    tasks: list[str]

    @model_validator(mode="after")
    def not_english(self) -> Language:
        if self.code == "en":
            raise ValueError(
                "code=en: English is the language of SFT and replay. Give the code of the language to adapt to."
            )
        return self


class Corpus(HeldOut):
    source: Literal["bible", "files"]
    path: str | None
    english_path: str | None

    @model_validator(mode="after")
    def has_files(self) -> Corpus:
        if self.source == "files" and not self.path:
            raise ValueError(
                "path: missing. Set a path or glob of text, JSONL or Parquet files, such as corpus.path='data/*.txt'."
            )
        if self.source == "bible" and (self.path or self.english_path):
            raise ValueError("path: corpus=bible has its own text. Set corpus=files to read files.")
        return self


class CipherCorpus(Cipher):
    source: Literal["cipher"]


class HubSource(SourceSettings):
    """The place of a data set: on the Hub, or a folder of the same layout."""

    @model_validator(mode="after")
    def can_be_found_again(self) -> HubSource:
        if not self.dataset:
            raise ValueError(
                "dataset: missing. Set the name of a data set on the Hub, or a folder of Parquet or JSONL files."
            )
        if (file := Path(self.dataset)).is_file():
            raise ValueError(
                f"dataset={file}: is a file. Set dataset to its folder, {file.parent}, and files to {file.name}."
            )
        if self.revision is None and not self.local:
            raise ValueError(
                f"revision: missing, and {self.dataset} is no folder here. Set the commit (40 hex digits) of a data set"
                " on the Hub, or set dataset to a folder that exists."
            )
        return self

    @property
    def local(self) -> bool:
        return Path(self.dataset or "").is_dir()

    @property
    def folder(self) -> str | None:
        """Return the place of a local data set."""
        return self.dataset if self.local else None

    @property
    def unplaced(self) -> dict[str, Any]:
        """Return what decides which rows are read: without a folder's path, as checksums identify its files."""
        return dict(self) | ({"dataset": None, "revision": None} if self.local else {})


class HubText(HubSource, TextSource):
    """A data set of running text."""


class CtSource(FurtherText, HubSource):
    """Further text for CT. fraction: of the blocks."""

    fraction: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def template_names_columns(self) -> CtSource:
        try:
            columns_of(self.template, "template")
        except BadInput as error:
            raise ValueError(str(error)) from None
        return self


class HubInstructions(HubSource, InstructionSource):
    """A data set of instructions."""

    @property
    def columns(self) -> tuple[str, str] | None:
        """Return the columns of prompts and answers; None for conversations."""
        return None if self.prompt is None or self.answer is None else (self.prompt, self.answer)

    @model_validator(mode="after")
    def both_columns(self) -> HubInstructions:
        if (self.prompt is None) != (self.answer is None):
            missing = "prompt" if self.prompt is None else "answer"
            raise ValueError(
                f"{missing}=null: must be set if the other column is. "
                "Name the columns of prompts and of answers, or neither for chats."
            )
        return self


class HubCorpus(HeldOut):
    source: Literal["hub"]
    text: HubText
    english: HubText
    text_bytes: Bytes | None
    english_bytes: Bytes | None
    workers: Positive


CORPORA: dict[str, type[HeldOut]] = {"bible": Corpus, "files": Corpus, "cipher": CipherCorpus, "hub": HubCorpus}
OWN_TEXT = {"bible": ("path", "english_path")}  # keys that only the other corpus of the class uses


def corpora_with(key: str) -> list[str]:
    """Return the corpora that have a key."""
    return [
        name for name, corpus in CORPORA.items() if key in corpus.model_fields and key not in OWN_TEXT.get(name, ())
    ]


def of_chosen_corpus(section: Any, given: Collection[str]) -> Any:
    """Return the section `corpus` without what files set for another corpus than the one that is chosen.

    A language's file sets keys of its own corpus: conf/language/tam.yaml those of corpus=hub, which corpus=files lacks.
    given: the keys of the command line. These stay; BadInput is raised for those of another corpus.
    """
    source = section.get("source") if isinstance(section, Mapping) else None
    if source not in CORPORA:
        return section
    kept = dict(section)
    for key in section:
        on_command_line = any(f"{name}.".startswith(f"corpus.{key}.") for name in given)
        if key in OWN_TEXT.get(source, ()) and not on_command_line:
            kept[key] = None
        elif key not in CORPORA[source].model_fields and (others := corpora_with(key)):
            if on_command_line:
                raise BadInput(
                    f"corpus.{key}: corpus={source} has no such key. Set corpus={' or '.join(others)}, or leave it out."
                )
            del kept[key]
    return kept
