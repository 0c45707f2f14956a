"""TODO."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.chat import DATE_FUNCTION
from common.errors import BadInput
from common.special_tokens import in_words
from common.units import format_tokens
from pipeline.config import CipherCorpus, Config, HubCorpus
from pipeline.execute import Job
from pipeline.stages.stage import Inputs, Stage
from train.data.chat_template import NONE, TOKENIZER
from train.data.conversations import format_counts
from train.stage_settings import (
    CipherSettings,
    CorpusOptions,
    CorpusSettings,
    CtBlocksSettings,
    InstructionsInLanguageSettings,
    InstructionsSettings,
    ItemsSettings,
    SftBlocksSettings,
)

AUTO = "auto"  # of sft.format: by the columns


ALL = "all"  # in place of a budget, in slugs: CT on all of the text


@dataclass(frozen=True)
class Data:
    """The stages that make text.

    instructions: what SFT learns, the items themselves where the Hub gives none. template: the text of the chat
    template that it is put into, if it is known.
    """

    corpus: Stage
    items: Stage
    instructions: Stage
    template: str | None = None


def budget_name(config: Config) -> str:
    """The CT budget of a cell in slugs."""
    return ALL if config.ct.whole_text else format_tokens(config.ct.tokens)


def data_stages(config: Config, inputs: Inputs) -> Data:
    """The text of a language; budgets and seeds share it."""
    language, seed, hub = config.language.code, config.corpus.seed, config.sft.hub
    corpus = _corpus(config, inputs)
    asked = {
        "language": language,
        "families": config.eval.families,
        "sft_items": 0 if hub else config.sft.items,
        "eval_items": config.eval.items,
        "seed": seed,
        "inputs": () if hub else inputs.sft,
        **_questions(config),
        **(_own_format(config) if config.sft.path else {}),
    }
    items = Stage("items", language, asked, {"corpus": corpus}, {"sft_path": config.sft.path})
    if hub is None:
        return Data(corpus, items, items, inputs.template)
    taken = {"hub": hub.content, "seed": seed, "inputs": inputs.sft}
    taken |= {} if hub.columns or config.sft.format == AUTO else {"format": config.sft.format}
    options = {"folder": hub.folder, **workers(config)}
    # on their own, so that the English SFT of all languages is one
    return Data(corpus, items, Stage("instructions", "en", taken, options=options), inputs.template)


def _corpus(config: Config, inputs: Inputs) -> Stage:
    corpus = config.corpus
    content: dict[str, Any] = {
        "source": corpus.source,
        "language": config.language.code,
        "dev": corpus.dev,
        "test": corpus.test,
        "seed": corpus.seed,
        "inputs": inputs.corpus,
    }
    if isinstance(corpus, HubCorpus):
        content |= {"text": corpus.text.content, "english": corpus.english.content}
        content |= {"text_bytes": corpus.text_bytes, "english_bytes": corpus.english_bytes}
        folders = {"text_folder": corpus.text.folder, "english_folder": corpus.english.folder}
        options: dict[str, Any] = {**folders, **workers(config)}
    elif isinstance(corpus, CipherCorpus):
        cipher = {"replaced", "cipher_seed", "withheld_chapters", "withheld_seed"}
        content, options = content | corpus.model_dump(include=cipher), {}
    else:
        options = {"path": corpus.path, "english_path": corpus.english_path}
        if corpus.source == "files":
            content["lines"] = "kept"  # once they were joined: entries of that time have another key
    return Stage("corpus", f"{config.language.code}-{corpus.source}", content, options=options)


def bible_corpus(cipher: CipherCorpus, inputs: Inputs) -> Stage:
    """The corpus that a cipher's base is trained on: Chichewa's, so that both languages begin with one base."""
    content = {"source": "bible", "language": "nya", **cipher.model_dump(include={"dev", "test", "seed"})}
    options = {"path": None, "english_path": None}
    return Stage("corpus", "nya-bible", content | {"inputs": inputs.base_corpus}, options=options)


def ct_blocks(config: Config, data: Data, base: Stage) -> Stage:
    """What CT learns, up to the end of its schedule: all budgets read the same."""
    language, ct = config.language.code, config.ct
    settings = {
        "language": language,
        "schedule_tokens": None if ct.whole_text else ct.schedule_tokens,
        "block_size": ct.block_size,
        "english_share": ct.english_share,
        "seed": config.seed,
        **({} if ct.epochs == 1 else {"epochs": ct.epochs}),
        **({} if ct.document_end is None else {"document_end": ct.document_end}),
    }
    slug = f"{language}-{ALL if ct.whole_text else format_tokens(ct.schedule_tokens)}-s{config.seed}"
    return Stage("ct_blocks", slug, settings, {"corpus": data.corpus, "model": base}, workers(config))


def sft_blocks(config: Config, data: Data, base: Stage, language: str = "en") -> Stage:
    """What SFT learns: instructions in English, or for the upper bound in the language, and replay in the same."""
    sft = config.sft
    settings = {
        "tokens": sft.tokens,
        "block_size": sft.block_size,
        "replay_share": sft.replay_share,
        "seed": config.seed,
        **({} if language == "en" else {"language": language}),
        **chat(config, data.template),
    }
    instructions = data.instructions if language == "en" else target_instructions(config, data)
    parents = {"items": instructions, "model": base}
    if sft.replay_share or not sft.hub:
        parents["corpus"] = data.corpus
    return Stage("sft_blocks", f"{language}-s{config.seed}", settings, parents, workers(config))


def chat(config: Config, text: str | None) -> dict[str, Any]:
    """How SFT puts conversations into text, said where there is a template, and only what differs from the defaults.

    text: of the template; None if only the network would know it. In the key it stands for itself, but for the
    tokenizer's own, which is known by the checksum of the model.
    """
    sft = config.sft
    if sft.template == NONE:
        return {}
    asks_date = text is None or DATE_FUNCTION in text
    how = {
        "template": TOKENIZER if sft.template == TOKENIZER else text,
        **({"args": sft.template_args} if sft.template_args else {}),
        **({} if sft.system is None else {"system": sft.system}),
        **({} if sft.too_long == "cut" else {"too_long": sft.too_long}),
        **({"date": config.chat.date} if asks_date else {}),
    }
    return {"chat": how}


def _own_format(config: Config) -> dict[str, Any]:
    """What a user's own instructions are read as, where it is not prompts and answers of a format known by itself."""
    conversations = {} if config.sft.template == NONE else {"conversations": True}
    return conversations | ({} if config.sft.format == AUTO else {"format": config.sft.format})


def target_instructions(config: Config, data: Data) -> Stage:
    """Instructions of the same families in the language itself, a stage of its own: no other key depends on it."""
    asked = {
        "language": config.language.code,
        "families": config.eval.families,
        "sft_items": config.sft.items,
        "seed": config.corpus.seed,
        **_questions(config),
    }
    return Stage("target_instructions", config.language.code, asked, {"corpus": data.corpus})


def _questions(config: Config) -> dict[str, int]:
    """One a passage is not said, so that keys stay."""
    given = config.sft.path or config.sft.hub
    return {} if given or config.sft.questions == 1 else {"questions": config.sft.questions}


def workers(config: Config) -> dict[str, int]:
    """Processes that read text; said of text of the Hub only, one elsewhere."""
    return {"workers": config.corpus.workers} if isinstance(config.corpus, HubCorpus) else {}


def run_corpus(job: Job) -> None:
    from train.data.corpus import build

    kind = CipherSettings if job.settings["source"] == "cipher" else CorpusSettings
    settings = kind.from_mapping(job.settings)
    build.build(settings, CorpusOptions.from_mapping(job.options), job.out, job.work)


def run_items(job: Job) -> None:
    from train.data import instructions

    settings = ItemsSettings.from_mapping(job.settings)
    instructions.build(job.folders["corpus"], settings, job.out, job.options["sft_path"])


def run_instructions(job: Job) -> None:
    from train.data import instructions

    settings, options = InstructionsSettings.from_mapping(job.settings), job.options
    instructions.from_hub(settings, job.out, job.work, options["folder"], options.get("workers", 1))


def run_target_instructions(job: Job) -> None:
    from train.data import instructions

    settings = InstructionsInLanguageSettings.from_mapping(job.settings)
    instructions.build_in_language(job.folders["corpus"], settings, job.out)


def run_ct_blocks(job: Job) -> None:
    from train.data import packing

    settings, workers = CtBlocksSettings.from_mapping(job.settings), job.options.get("workers", 1)
    packing.ct_blocks(job.folders["corpus"], job.checkpoint("model"), settings, job.out, job.work, workers)
    job.note = packed(job.out)


def run_sft_blocks(job: Job) -> None:
    from train.data import packing

    settings, workers = SftBlocksSettings.from_mapping(job.settings), job.options.get("workers", 1)
    items, corpus = job.folders["items"], job.folders.get("corpus")
    packing.sft_blocks(items, corpus, job.checkpoint("model"), settings, job.out, job.work, workers)
    job.note = packed(job.out)


def run_mixed_blocks(job: Job) -> None:
    from train.data import packing

    check_budget(job.folders["ct_blocks"], job.settings["ct_tokens"])
    packing.mixed_blocks(job.folders["ct_blocks"], job.folders["sft_blocks"], job.settings["ct_tokens"], job.out)
    job.note = packed(job.out)


def packed(blocks: Path) -> str:
    """How many blocks there are, how full they are, and control tokens that their text has by name."""
    counts = json.loads((blocks / "counts.json").read_text(encoding="utf-8"))
    filled = f": {counts['blocks']:,} blocks, {counts['real_token_share']:.2%} of their positions real tokens"
    chat = conversed(counts["chat"], counts["trained_tokens"]) if "chat" in counts else ""
    return filled + chat + in_words(counts.get("control_tokens", {}))


def conversed(chat: Mapping[str, Any], trained: int) -> str:
    """How many conversations SFT learns, and what became of the others."""
    names = {"cut": "cut to a block", "unrolled": "unrolled", "shortened": "ended at an empty turn"}
    names |= {"system_in_question": "with the system message in the first question"}
    changed = "".join(f", {chat[name]:,} {words}" for name, words in names.items() if chat.get(name))
    left_out = sum(chat["left_out"].values())
    reasons = f", {left_out:,} left out ({format_counts(chat['left_out'])})" if left_out else ""
    sequences = f"{chat['answers']:,} answers in {chat['sequences']:,} sequences"
    return f"; {chat['conversations']:,} conversations, {sequences}, {trained:,} tokens with loss{changed}{reasons}"


def check_budget(blocks: Path, tokens: int) -> None:
    """Reject a budget that the packed corpus cannot fill."""
    available = json.loads((blocks / "counts.json").read_text(encoding="utf-8"))["tokens"]
    if tokens > available:
        raise BadInput(
            f"ct.tokens={format_tokens(tokens)}: the corpus has {available:,} tokens including English."
            " Set a smaller budget, or give more text."
        )
