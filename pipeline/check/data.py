"""Checks of text and instructions: they exist, the tokenizer fits their script, and they fill the budgets."""

from __future__ import annotations

import glob
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import hub as model_hub
from common import hub_data
from common.errors import BadInput
from common.special_tokens import control_tokens
from common.units import format_tokens
from pipeline import architecture
from pipeline.check.finding import Finding, first_of_each_language, guarded, is_done
from pipeline.config import CipherCorpus, Config, Corpus, HubCorpus, HubSource
from pipeline.inputs import chat_template
from pipeline.stages import vocabulary
from pipeline.stages.data import chat_settings
from train.data import conversations
from train.data.chat_template import NONE
from train.data.corpus.further_text import check_source
from train.settings import CipherSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.run_plan import RunPlan
    from pipeline.stages.cell import Cell
    from train.data.chat_template import ChatTemplate

FIRST_DOCUMENTS = 1000  # of a file, read before it is used
SAMPLE = 200  # documents that the tokenizer is tried on


def check_corpora(cell: Cell) -> Iterator[Finding]:
    """Check that text and instructions are there, are readable, and have the columns that are read."""
    config = cell.config
    wanted: list[tuple[str, HubSource, tuple[str, ...]]] = []
    if isinstance(config.corpus, HubCorpus) and not is_done(cell, "corpus"):
        wanted += [
            (f"corpus.{name}", part, (part.column,))
            for name, part in (("text", config.corpus.text), ("english", config.corpus.english))
        ]
    hub = config.sft.hub
    if hub and hub.columns and config.sft.source is None and not is_done(cell, "sft_blocks"):
        wanted.append(("sft.hub", hub, hub.columns))
    for key, source, columns in wanted:
        yield from guarded(hub_data.check, hub_source(source), columns, key)
    if config.ct.sources and not is_done(cell, "text_source"):
        for name, further in config.ct.sources.items():
            yield from guarded(
                check_source, hub_source(further), further.template, f"ct.sources.{name}", further.max_bytes
            )
    if not cell.stages:  # its inputs were rejected: files are named there
        return
    corpus = config.corpus
    if isinstance(corpus, Corpus) and not is_done(cell, "corpus"):
        for path, key, language in (
            (corpus.path, "corpus.path", config.language.code),
            (corpus.english_path, "corpus.english_path", "en"),
        ):
            unreadable = guarded(check_readable, path, key)
            yield from unreadable or guarded(check_splits, corpus, path, key, language)
    plain = config.sft.template == NONE  # else conversations; see check_conversations
    if config.sft.path and plain and config.sft.source is None and not is_done(cell, "items"):
        from train.data.instructions import own_instructions

        own_instructions(config.sft.path, config.sft.format)


def check_readable(pattern: str | None, key: str) -> None:
    """Read the first documents of every file that a glob names. Raises BadInput."""
    from train.data.corpus import sources

    for path in sources.matching_files(pattern, key) if pattern else ():
        documents = itertools.islice(sources.read_documents(glob.escape(str(path)), key), FIRST_DOCUMENTS)
        if not sum(1 for _ in documents):
            raise BadInput(f"{key}: {path} has no text. Give another file.")


def check_splits(corpus: Corpus, pattern: str | None, key: str, language: str) -> None:
    """Raise BadInput for files whose documents leave a split empty."""
    from train.data.corpus import build, sources

    if pattern is None:
        return
    documents = sources.read_documents(pattern, key)
    if empty := build.empty_splits(documents, corpus.seed, corpus.dev, corpus.test):
        raise BadInput(f"{key}={pattern}: {build.no_document(language, empty[0])}")


def hub_source(section: HubSource) -> hub_data.Source:
    """Return the data set that a section of the config names."""
    return hub_data.Source(**section.model_dump(include={"dataset", "subset", "files", "split", "revision"}))


def check_tokenizer(cell: Cell) -> Iterator[Finding]:
    """Check that the tokenizer gives the language's text back, and knows its script."""
    config = cell.config
    if config.model.path is None:
        return
    known = fertility_of(config)
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
    if known.fallback > MAX_FALLBACK_SHARE and not config.model.new_tokens:
        measured = (
            f"{known.bytes_a_token:.2f} bytes of {language} a token, {known.fallback:.0%} of them parts of characters"
        )
        yield Finding(
            False,
            f"{subject} splits the script into many tokens ({measured}): "
            "a budget covers little text, and answers are long. New tokens shorten both: set model.new_tokens.",
        )


@cache
def _fertility(folder: str, sample: tuple[str, ...]) -> Fertility:
    return measure_fertility(load_tokenizer(Path(folder), "model.path"), sample)


def fertility_of(config: Config) -> Fertility | None:
    """Measure the tokenizer on a sample of the text; None if either is missing, which another check reports."""
    folder = tokenizer_folder(config)
    sample = tuple(itertools.islice(sample_documents(config), SAMPLE)) if folder else ()
    return _fertility(str(folder), sample) if sample else None


EXTENDED_BY = 1_000_000  # UTF-8 bytes of the text that new tokens are learnt from in a check


def check_new_tokens(cell: Cell) -> Iterator[Finding]:
    """Yield what new tokens change, as far as a part of the text shows it.

    Raises BadInput for a tokenizer that cannot be continued, a text that gives no token, and an embedding that lacks
    rows for old tokens.
    """
    config = cell.config
    found = None if is_done(cell, "base_extended") else extended_fertility(config)
    if found is None:
        return
    asked, before, after = config.model.new_tokens or 0, found.before, found.after
    if not found.tokens and found.complete:
        raise BadInput(vocabulary.no_token(asked, config.language.code))
    where = f"model.path={config.model.path}"
    folder = tokenizer_folder(config)
    if folder and (folder / "config.json").is_file():
        rows = architecture.sizes(architecture.config_of(folder, where))["vocab_size"]
        if isinstance(rows, int) and rows < found.first:
            raise BadInput(vocabulary.too_few_rows("the embedding", folder, rows, found.first))
    source = "the text" if found.complete else "this part of the text"
    fewer = "" if found.tokens == asked else f" of {asked:,}, as {source} gives no more"
    yield Finding(
        False,
        f"vocabulary  {found.tokens:,} new tokens{fewer}: about {after['bytes_per_token']:.2f} bytes of"
        f" {config.language.name} per token (before: {before['bytes_per_token']:.2f}), {after['tokens_per_word']:.2f}"
        f" tokens per word (before: {before['tokens_per_word']:.2f}); learnt from the first"
        f" {EXTENDED_BY / 1e6:.0f} MB of text here, from all of it in the run",
        fact=True,
    )


@dataclass(frozen=True)
class Extended:
    """What new tokens change.

    tokens: their number. first: the number of the first. before, after: of a sample; see train.vocabulary.fertility.
    complete: whether they were learnt from all of the text.
    """

    tokens: int
    first: int
    before: dict[str, float]
    after: dict[str, float]
    complete: bool


def extended_fertility(config: Config) -> Extended | None:
    """Learn new tokens from a part of the text, and return what they change in another part.

    A text of fewer than `SAMPLE` documents is both. None without new tokens, and if tokenizer or text are missing,
    which another check reports.
    """
    folder = tokenizer_folder(config) if config.model.new_tokens else None
    if folder is None:
        return None
    documents = sample_documents(config)
    sample = tuple(itertools.islice(documents, SAMPLE))
    texts = list(itertools.islice(documents, 10_000))
    sizes = itertools.accumulate(len(text.encode()) for text in texts)
    learnt = tuple(text for text, size in zip(texts, sizes, strict=True) if size <= EXTENDED_BY)
    if not sample:
        return None
    return _extended_fertility(str(folder), config.model.new_tokens or 0, learnt or sample, sample, not texts)


@cache
def _extended_fertility(
    folder: str, count: int, texts: tuple[str, ...], sample: tuple[str, ...], complete: bool
) -> Extended:
    from tokenizers import Tokenizer

    from train.vocabulary import extend, fertility

    tokenizer = load_tokenizer(Path(folder), "model.path")
    extension = extend(tokenizer, texts, count)
    after = Tokenizer.from_str(json.dumps(extension.described))
    return Extended(
        len(extension.tokens), extension.first, fertility(tokenizer, sample), fertility(after, sample), complete
    )


def bytes_a_token(config: Config) -> float | None:
    """Return UTF-8 bytes of the language per token of the tokenizer that CT uses, about; None: not known."""
    if extended := extended_fertility(config):
        return extended.after["bytes_per_token"]
    known = fertility_of(config)
    return known.bytes_a_token if known else None


def tokenizer_folder(config: Config) -> Path | None:
    """Return the folder with the tokenizer: of a model of the Hub only its tokenizer is fetched."""
    folder = model_hub.local_folder(config.model.path)
    model = model_hub.parse(config.model.path or "", "model.path")
    if (folder and (folder / "tokenizer.json").is_file()) or model is None:
        return folder
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.repo, "tokenizer.json", revision=model.revision)).parent
    except Exception:  # any error of a network; `checkpoints` reports it
        return None


def sample_documents(config: Config) -> Iterator[str]:
    """Yield documents of the language, as the corpus stage would read them; none if they cannot be read.

    Of a cipher, those that are trained on.
    """
    from train.data.corpus import build, sources

    try:
        if isinstance(config.corpus, HubCorpus):
            source, column = hub_source(config.corpus.text), config.corpus.text.column
            stream = hub_data.open_stream(source, "corpus.text")
            yield from (text for (text,) in hub_data.rows(stream, (column,), source, "corpus.text") if text.strip())
        elif isinstance(config.corpus, CipherCorpus):
            settings = CipherSettings.pick(config.corpus, language=config.language.code)
            passages, _ = build.cipher_passages(settings)
            yield from (row["text"] for row in passages[config.language.code] if row["split"] == "train")
        elif config.corpus.source == "bible":
            yield from (text for _, text in sources.chichewa_bible())
        elif config.corpus.path:
            yield from sources.read_documents(config.corpus.path, "corpus.path")
    except BadInput:
        return


def check_budgets(plan: RunPlan) -> Iterator[Finding]:
    """Check that the text of each language, and of each variant, fills its largest budget."""
    yield from _budgets_filled([cell.config for cell in plan.cells], plan.cells)
    for name in dict.fromkeys(name for cell in plan.cells for name in cell.variants):
        cells = [cell.variants[name] for cell in plan.cells if name in cell.variants]
        for found in _budgets_filled([cell.config for cell in cells], cells):
            yield replace(found, text=f"variants.{name}: {found.text}")


def _budgets_filled(configs: Sequence[Config], cells: Sequence[Cell]) -> Iterator[Finding]:
    for config in (cell.config for cell in first_of_each_language(cells)):
        if config.ct.source is not None or config.model.path is None:
            continue
        largest = max(other.ct.tokens for other in configs if other.language.code == config.language.code)
        size, known = text_bytes(config), bytes_a_token(config)
        if size is None or known is None:
            continue
        reach = int(size * config.ct.epochs / known / config.ct.language_fraction)
        if reach < largest:
            yield Finding(
                True,
                f"ct.tokens={format_tokens(largest)}: the {config.language.name} text has about {reach:,} tokens "
                f"including English{' and ct.sources' if config.ct.sources else ''}."
                " Give more text or smaller budgets, or set language.max_tokens.",
            )


def text_bytes(config: Config) -> int | None:
    """UTF-8 bytes of the language's training text, about.

    Of a data set on the Hub the requested bytes; None: all of it.
    """
    corpus = config.corpus
    if isinstance(corpus, HubCorpus):
        return corpus.text_bytes
    size = sum(len(text.encode()) for text in sample_documents(config))
    return size if isinstance(corpus, CipherCorpus) else round(size * (1 - corpus.dev - corpus.test))


def check_control(cell: Cell) -> Iterator[Finding]:
    """Check that the text of a base's recipe is there, and warn if the base may have read a cipher's English.

    A recipe that withholds other chapters than the cipher takes is rejected before (pipeline/config/cell.py).
    """
    config, model, recipe = cell.config, cell.config.model, cell.config.model.recipe
    has_verses = config.corpus.source in ("bible", "cipher")
    if model.path is None and recipe and recipe.aligned_fraction and not has_verses and not is_done(cell, "base"):
        yield Finding(
            True,
            f"model.recipe.aligned_fraction={recipe.aligned_fraction:g}: the recipe of the base reads aligned verses,"
            " and this corpus has none. Set model=tiny, another model.path, or model.recipe.aligned_fraction=0.",
        )
    if isinstance(config.corpus, CipherCorpus) and not (recipe and recipe.withheld_chapters):
        known = "its recipe withholds no chapter" if recipe else "what it was trained on is not known"
        yield Finding(
            False,
            f"model={model.name}: it may have been trained on the English of the cipher's text ({known})."
            " The cipher's words are new to it nevertheless.",
        )


SAMPLED_CONVERSATIONS = 200  # conversations that are put into the template


def check_conversations(cell: Cell) -> Iterator[Finding]:
    """Check that answers can be masked in this template, and that conversations can be read and fit it."""
    config = cell.config
    if config.sft.template == NONE or is_done(cell, "sft_blocks"):
        return
    from train.data.chat_template import LEFT_OUT, Masking, check_trainable, template_of
    from train.data.tokenization import TokenizerFile

    rows = sample_conversations(config)
    tokenizer = sft_tokenizer(config)
    if tokenizer is None:
        return
    where = "model: its tokenizer" if config.model.path is None else f"model.path={config.model.path}: its tokenizer"
    settings = chat_settings(config, chat_template(config, network=False))
    assert settings is not None, "only SFT by a template is checked"
    template = template_of(tokenizer, settings, where)
    masking = Masking(template, settings.system, config.sft.block_size, settings.too_long == "cut")
    file = TokenizerFile.of(tokenizer)
    _, counts = masking.examples(rows, file.load().library, file.dtype)
    check_trainable(counts, "sft")
    yield Finding(False, f"template    {template_in_words(template, counts)}.", fact=True)
    left_out = sum(count for name, count in counts.items() if name.startswith(LEFT_OUT))
    if rows and left_out > len(rows) / 2:
        yield Finding(False, f"sft: of the first {len(rows):,} conversations, {left_out:,} are left out.")


def template_in_words(template: ChatTemplate, counts: Mapping[str, int]) -> str:
    """Describe what a template does with conversations. counts: of a sample; see train.data.chat_template."""
    parts = [f"ends an answer by {template.stop_token}", "a conversation is one sequence"]
    if not template.one_sequence:
        grown = f" ({counts['conversations']:,} become {counts['sequences']:,})" if counts.get("unrolled") else ""
        parts[1] = f"unrolled, an example an answer{grown}: later prompts do not continue earlier answers"
    if template.lead.strip():
        parts.append(f"an answer begins with {template.lead!r}, which is learnt")
    if template.own_system:
        parts.append("adds a system prompt of its own (kept)")
    if template.folds_system:
        parts.append("takes no system message: it goes into the first question")
    return "; ".join(parts)


def sample_conversations(config: Config) -> list[dict[str, Any]]:
    """Return some conversations, or prompts with outputs; none if they are made of the text. Raises BadInput."""
    sft = config.sft
    if sft.path:
        return conversations.own_conversations(sft.path, sft.format)[0][:SAMPLED_CONVERSATIONS]
    if sft.hub is None:
        return []
    source = hub_source(sft.hub)
    if sft.hub.columns is None:
        return conversations.first_conversations(source, sft.format, "sft.hub")[:SAMPLED_CONVERSATIONS]
    rows = hub_data.rows(hub_data.open_stream(source, "sft.hub"), sft.hub.columns, source, "sft.hub")
    texts = itertools.islice(rows, SAMPLED_CONVERSATIONS)
    return [{"prompt": prompt, "output": answer} for prompt, answer in texts if prompt.strip() and answer.strip()]


def sft_tokenizer(config: Config) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that SFT is tokenised by, or for a recipe one of the same special tokens.

    None if it cannot be loaded, which another check reports.
    """
    from train.base_model import train_tokenizer
    from train.data.packing import load_tokenizer

    path = config.model.path
    if path is None:
        made: PreTrainedTokenizerBase = train_tokenizer(["a"], 300)
        return made
    model = model_hub.parse(path, "model.path")
    folder = Path(path) if model is None else model_hub.tokenizer_folder(model, "model.path", model_hub.is_online())
    try:
        return load_tokenizer(folder)
    except BadInput:
        raise
    except Exception:  # whatever transformers raises for files that are missing or of no known kind
        return None


FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")  # a byte, in SentencePiece's byte fallback
BROKEN = "\ufffd"  # decoding writes this for bytes that are not a whole character
MAX_FALLBACK_SHARE = 0.5  # fraction of partial characters above which a tokenizer does not fit a script


@dataclass(frozen=True)
class Fertility:
    """How well a tokenizer fits documents.

    bytes_a_token: UTF-8 bytes.
    fallback: fraction of tokens that are single bytes or parts of characters.
    unknown: fraction of tokens that replace text that is lost.
    returned: fraction of documents that come back as they were, spaces apart.
    control: how often control tokens are written in them, by their names.
    """

    bytes_a_token: float
    fallback: float
    unknown: float
    returned: float
    control: Mapping[str, int] = field(default_factory=dict)


def measure_fertility(tokenizer: Any, texts: Sequence[str]) -> Fertility:
    """Measure a `tokenizers.Tokenizer` on documents (at least one must not be empty)."""
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    ids = [number for encoding in encoded for number in encoding.ids]
    special = tokenizer.model.unk_token if hasattr(tokenizer.model, "unk_token") else None
    unknown = tokenizer.token_to_id(special) if special else None
    names = control_tokens(json.loads(tokenizer.to_str()))
    whole = _whole(tokenizer)
    same = sum(
        "".join(tokenizer.decode(encoding.ids).split()) == "".join(text.split())
        for encoding, text in zip(encoded, texts, strict=True)
    )
    return Fertility(
        sum(len(text.encode()) for text in texts) / max(1, len(ids)),
        sum(not whole(number) for number in ids) / max(1, len(ids)),
        sum(number == unknown for number in ids) / max(1, len(ids)),
        same / len(texts),
        Counter(names[number] for number in ids if number in names),
    )


def _whole(tokenizer: Any) -> Callable[[int], bool]:
    """Return whether a token consists of whole characters."""
    known: dict[int, bool] = {}

    def whole(number: int) -> bool:
        if number not in known:
            piece = tokenizer.id_to_token(number) or ""
            known[number] = not FALLBACK.fullmatch(piece) and BROKEN not in tokenizer.decode([number])
        return known[number]

    return whole


def load_tokenizer(folder: Path, key: str) -> Any:
    """Return the fast tokenizer of a checkpoint folder."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadInput(f"{key}: {folder} has no tokenizer.json. Save its tokenizer there in the fast format.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # the library raises nothing more special
        raise BadInput(f"{path}: not a tokenizer file. Save the tokenizer again.") from None  # as in merge/
