"""Checks of text and instructions: they exist, the tokenizer fits their script, and they fill the budgets."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from common import hub as model_hub
from common import hub_data
from common.errors import BadInput
from common.units import format_tokens
from pipeline import inputs
from pipeline.check.finding import Finding, first_of_each_language, guarded, is_done
from pipeline.config import CipherCorpus, Config, Corpus, HubCorpus, HubSource
from pipeline.fertility import MAX_FALLBACK_SHARE, Fertility, load, measure
from train.data.chat.template import NONE
from train.settings import CipherSettings

FIRST_DOCUMENTS = 1000  # of a file, read before it is used
SAMPLE = 200  # documents that the tokenizer is tried on


def corpora(config: Config) -> Iterator[Finding]:
    """Yield text and instructions are there, readable, and have the columns that are read."""
    wanted: list[tuple[str, HubSource, tuple[str, ...]]] = []
    if isinstance(config.corpus, HubCorpus) and not is_done(config, "corpus"):
        wanted += [
            (f"corpus.{name}", part, (part.column,))
            for name, part in (("text", config.corpus.text), ("english", config.corpus.english))
        ]
    hub = config.sft.hub
    if hub and hub.columns and config.sft.source is None and not is_done(config, "sft_blocks"):
        wanted.append(("sft.hub", hub, hub.columns))
    for key, source, columns in wanted:
        yield from guarded(hub_data.check, hub_source(source), columns, key)
    if not isinstance(config.corpus, HubCorpus):
        inputs.inputs(config, network=False)
    if isinstance(config.corpus, Corpus) and not is_done(config, "corpus"):
        yield from guarded(readable, config.corpus.path, "corpus.path")
        yield from guarded(readable, config.corpus.english_path, "corpus.english_path")
    plain = config.sft.template == NONE  # else conversations; see pipeline/check/chat_data.py
    if config.sft.path and plain and config.sft.source is None and not is_done(config, "items"):
        from train.data.instructions import own_instructions

        own_instructions(config.sft.path, config.sft.format)


def readable(pattern: str | None, key: str) -> None:
    """Read the first documents of every file that a glob names. Raises BadInput."""
    from train.data.corpus import text_files

    for path in text_files.matching(pattern, key) if pattern else ():
        documents = itertools.islice(text_files.documents(glob.escape(str(path)), key), FIRST_DOCUMENTS)
        if not sum(1 for _ in documents):
            raise BadInput(f"{key}: {path} has no text. Give another file.")


def hub_source(section: HubSource) -> hub_data.Source:
    """Return a section of the config as what is read."""
    return hub_data.Source(**section.model_dump(include={"dataset", "subset", "files", "split", "revision"}))


def tokenizer(config: Config) -> Iterator[Finding]:
    """Yield the tokenizer gives the language's text back, and knows its script."""
    if config.model.path is None:
        return
    known = fertility(config)
    if known is None:
        return
    subject, language = f"model.path={config.model.path}: its tokenizer", config.language.name
    if known.unknown:
        yield Finding(
            True,
            f"{subject} reads {known.unknown:.1%} of the tokens of {language} as unknown. "
            "Choose a model with a byte-level tokenizer.",
        )
    elif known.returned < 1:
        yield Finding(
            False,
            f"{subject} changes {1 - known.returned:.0%} of {SAMPLE} documents of {language}. "
            "Check whether the tokenizer normalises characters that the language needs.",
        )
    if known.control:
        names = ", ".join(sorted(known.control)[:3])
        yield Finding(
            False,
            f"{subject} reads control tokens in the {language} text: {names} ({sum(known.control.values()):,} times in"
            f" up to {SAMPLE} documents). Remove them from the text unless they are meant.",
        )
    if known.fallback > MAX_FALLBACK_SHARE:
        measured = (
            f"{known.bytes_a_token:.2f} bytes of {language} a token, {known.fallback:.0%} of them parts of characters"
        )
        yield Finding(
            False,
            f"{subject} splits the script into many tokens ({measured}): "
            "a budget covers little text, and answers are long.",
        )


@cache
def _fertility(folder: str, sample: tuple[str, ...]) -> Fertility:
    return measure(load(Path(folder), "model.path"), sample)


def fertility(config: Config) -> Fertility | None:
    """Measure the tokenizer on a sample of the text; None if either is missing, which another check reports."""
    folder = tokenizer_folder(config)
    sample = tuple(itertools.islice(texts(config), SAMPLE)) if folder else ()
    return _fertility(str(folder), sample) if sample else None


def tokenizer_folder(config: Config) -> Path | None:
    """Return the folder with the tokenizer: of a model of the Hub only its tokenizer is fetched."""
    folder = model_hub.folder_at_hand(config.model.path)
    model = model_hub.parse(config.model.path or "", "model.path")
    if (folder and (folder / "tokenizer.json").is_file()) or model is None:
        return folder
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.repo, "tokenizer.json", revision=model.revision)).parent
    except Exception:  # any error of a network; `checkpoints` reports it
        return None


def texts(config: Config) -> Iterator[str]:
    """Yield documents of the language, as the corpus stage would read them; none if they cannot be read.

    Of a cipher, those that are trained on.
    """
    from train.data.corpus import bible, build, text_files

    try:
        if isinstance(config.corpus, HubCorpus):
            source, column = hub_source(config.corpus.text), config.corpus.text.column
            stream = hub_data.open_stream(source, "corpus.text")
            yield from (text for (text,) in hub_data.rows(stream, (column,), source, "corpus.text") if text.strip())
        elif isinstance(config.corpus, CipherCorpus):
            settings = CipherSettings(**{**config.corpus.model_dump(), "language": config.language.code})
            passages, _ = build.cipher_passages(settings)
            yield from (row["text"] for row in passages[config.language.code] if row["split"] == "train")
        elif config.corpus.source == "bible":
            yield from (text for _, text in bible.chichewa())
        elif config.corpus.path:
            yield from text_files.documents(config.corpus.path, "corpus.path")
    except BadInput:
        return


def budgets(configs: Sequence[Config]) -> Iterator[Finding]:
    """Yield the text of each language fills its largest budget."""
    for config in first_of_each_language(configs):
        if config.ct.source is not None or config.model.path is None:
            continue
        largest = max(other.ct.tokens for other in configs if other.language.code == config.language.code)
        size, known = text_bytes(config), fertility(config)
        if size is None or known is None:
            continue
        reach = int(size / known.bytes_a_token / (1 - config.ct.english_share))
        if reach < largest:
            yield Finding(
                True,
                f"ct.tokens={format_tokens(largest)}: the {config.language.name} text has about {reach:,} tokens "
                "including English. Give more text or smaller budgets, or set language.max_tokens.",
            )


def text_bytes(config: Config) -> int | None:
    """UTF-8 bytes of the language's training text, about.

    Of a data set on the Hub what is asked for, and None if that is all.
    """
    corpus = config.corpus
    if isinstance(corpus, HubCorpus):
        return corpus.text_bytes
    size = sum(len(text.encode()) for text in texts(config))
    return size if isinstance(corpus, CipherCorpus) else round(size * (1 - corpus.dev - corpus.test))


def control(config: Config) -> Iterator[Finding]:
    """Yield a cipher's text is nothing that the base has read in English, or a line says that it is.

    A recipe that withholds other chapters than the cipher takes is rejected before (pipeline/config/cell.py).
    """
    model, recipe = config.model, config.model.recipe
    if isinstance(config.corpus, CipherCorpus) and not (recipe and recipe.withheld_chapters):
        known = "its recipe withholds no chapter" if recipe else "what it was trained on is not known"
        yield Finding(
            False,
            f"model={model.name}: it may have been trained on the English of the cipher's text ({known})."
            " The cipher's words are new to it nevertheless.",
        )
