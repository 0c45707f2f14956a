"""The stages that make text: corpora, items, instructions, and the blocks that trainings read.

Each kind has its planner and its function side by side. Plans need no torch and no files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.chat import DATE_FUNCTION
from common.errors import BadInput
from common.settings import Settings
from common.special_tokens import format_control_counts
from common.units import format_tokens
from pipeline.config import CipherCorpus, Config, HubCorpus
from pipeline.stages.stage import Inputs, Stage, StageType
from train.data.chat_template import NONE, TOKENIZER
from train.data.conversations import format_counts
from train.settings import (
    ChatSettings,
    CipherSettings,
    CorpusOptions,
    CorpusSettings,
    CtBlocksSettings,
    HubCorpusSettings,
    InstructionsInLanguageSettings,
    InstructionSource,
    InstructionsSettings,
    ItemsSettings,
    SftBlocksSettings,
    TextSource,
    TextSourceOptions,
    TextSourceSettings,
)

if TYPE_CHECKING:
    from pipeline.execute import Job

AUTO = "auto"  # of sft.format: by the columns
ALL = "all"  # in place of a budget, in slugs: CT on all of the text


class WorkerOptions(Settings):
    """workers: processes that read text."""

    workers: int = 1


@dataclass(frozen=True)
class Data:
    """The text of a language; budgets and seeds share it.

    instructions: what SFT learns, the items themselves where the Hub gives none. template: the text of the chat
    template that it is put into, if it is known. sources: further texts for CT, by their roles as parents.
    """

    corpus: Stage
    items: Stage
    instructions: Stage
    template: str | None = None
    sources: Mapping[str, Stage] = field(default_factory=dict)

    @staticmethod
    def of(config: Config, inputs: Inputs) -> Data:
        """Plan the text of a language."""
        corpus = plan_corpus(config, inputs)
        items = plan_items(config, inputs, corpus)
        instructions = plan_instructions(config, inputs) if config.sft.hub else items
        return Data(corpus, items, instructions, inputs.template, plan_text_sources(config, inputs, corpus))


def budget_name(config: Config) -> str:
    """Return the CT budget of a cell as slugs have it."""
    return ALL if config.ct.whole_text else format_tokens(config.ct.tokens)


def workers(config: Config) -> int:
    """Return how many processes read text: several for text of the Hub only."""
    return config.corpus.workers if isinstance(config.corpus, HubCorpus) else 1


# --- corpus ---


def plan_corpus(config: Config, inputs: Inputs) -> Stage:
    corpus, language = config.corpus, config.language.code
    options = CorpusOptions()
    if isinstance(corpus, HubCorpus):
        sources = {"text": TextSource(**corpus.text.unplaced), "english": TextSource(**corpus.english.unplaced)}
        settings: CorpusSettings = HubCorpusSettings.pick(corpus, language=language, **sources)
        folders = {"text_folder": corpus.text.folder, "english_folder": corpus.english.folder}
        options = CorpusOptions(**folders, workers=corpus.workers)
    elif isinstance(corpus, CipherCorpus):
        settings = CipherSettings.pick(corpus, language=language)
    else:
        settings = CorpusSettings.pick(corpus, language=language)
        options = CorpusOptions(path=corpus.path, english_path=corpus.english_path)
    return Stage(CORPUS, f"{language}-{corpus.source}", settings, {}, options, inputs.corpus)


def plan_base_corpus(cipher: CipherCorpus, inputs: Inputs) -> Stage:
    """Plan the corpus that a cipher's base is trained on: Chichewa's, so that both languages begin with one base."""
    settings = CorpusSettings.pick(cipher, source="bible", language="nya")
    return Stage(CORPUS, "nya-bible", settings, {}, CorpusOptions(), inputs.base_corpus)


def run_corpus(job: Job[CorpusSettings, CorpusOptions]) -> None:
    from train.data.corpus import build

    build.build(job.settings, job.options, job.out, job.work)


CORPUS = StageType("corpus", run_corpus, 3, "data", 3, shared=True)


# --- further text for CT ---

SOURCE_ROLE = "source-"  # begins the role of a source among the parents, before its name


def plan_text_sources(config: Config, inputs: Inputs, corpus: Stage) -> dict[str, Stage]:
    """Plan the further texts of CT, by role. The corpus is a parent, as its held-out text is dropped."""
    language, planned = config.language.code, {}
    for name, source in sorted((config.ct.sources or {}).items()):
        values = {key: value for key, value in source.unplaced.items() if key != "fraction"}
        settings = TextSourceSettings(**values, name=name, seed=config.corpus.seed)
        options = TextSourceOptions(folder=source.folder, workers=workers(config))
        known = (inputs.sources[name],) if name in inputs.sources else ()
        stage = Stage(TEXT_SOURCE, f"{language}-{name}", settings, {"corpus": corpus}, options, known)
        planned[f"{SOURCE_ROLE}{name}"] = stage
    return planned


def run_text_source(job: Job[TextSourceSettings, TextSourceOptions]) -> None:
    from train.data.corpus import further_text

    further_text.write_source(job.settings, job.options, job.folders["corpus"], job.out, job.work)
    counts = block_counts(job.out)
    left_out = {name.replace("_", " "): count for name, count in counts["left_out"].items()}
    job.note = f": {counts['documents']:,} documents" + (f", left out: {format_counts(left_out)}" if left_out else "")


def source_folders(job: Job[Any, Any]) -> dict[str, Path]:
    """Return the folder of each further text among the parents of a stage, by name."""
    sources = (role for role in job.stage.parents if role.startswith(SOURCE_ROLE))
    return {role.removeprefix(SOURCE_ROLE): job.folders[role] for role in sources}


TEXT_SOURCE = StageType("text_source", run_text_source, 1, "data", 10, shared=True)


# --- items and instructions ---


class ItemsOptions(Settings):
    """sft_path: a user's instructions."""

    sft_path: str | None


def plan_items(config: Config, inputs: Inputs, corpus: Stage) -> Stage:
    """Plan the items, and where the Hub gives none, the instructions."""
    sft, hub = config.sft, config.sft.hub
    settings = ItemsSettings(
        language=config.language.code,
        families=tuple(config.eval.families),
        sft_items=0 if hub else sft.items,
        eval_items=config.eval.items,
        seed=config.corpus.seed,
        questions=1 if sft.path or hub else sft.questions,
        conversations=bool(sft.path) and sft.template != NONE,
        format=sft.format if sft.path else AUTO,
    )
    options = ItemsOptions(sft_path=sft.path)
    return Stage(ITEMS, config.language.code, settings, {"corpus": corpus}, options, () if hub else inputs.sft)


def run_items(job: Job[ItemsSettings, ItemsOptions]) -> None:
    from train.data import instructions

    instructions.build(job.folders["corpus"], job.settings, job.out, job.options.sft_path)


ITEMS = StageType("items", run_items, 2, "data", 10, shared=True)


class InstructionsOptions(WorkerOptions):
    """folder: of a local data set."""

    folder: str | None


def plan_instructions(config: Config, inputs: Inputs) -> Stage:
    """Plan the instructions of a data set: on their own, so that the English SFT of all languages is one."""
    hub = config.sft.hub
    assert hub is not None
    settings = InstructionsSettings(
        hub=InstructionSource(**hub.unplaced),
        seed=config.corpus.seed,
        format=AUTO if hub.columns else config.sft.format,
    )
    options = InstructionsOptions(folder=hub.folder, workers=workers(config))
    return Stage(INSTRUCTIONS, "en", settings, {}, options, inputs.sft)


def run_instructions(job: Job[InstructionsSettings, InstructionsOptions]) -> None:
    from train.data import instructions

    instructions.from_hub(job.settings, job.out, job.work, job.options.folder, job.options.workers)


INSTRUCTIONS = StageType("instructions", run_instructions, 1, "data", 10, shared=True)


def plan_target_instructions(config: Config, data: Data) -> Stage:
    """Plan instructions of the same families in the language itself: no other key depends on them."""
    settings = InstructionsInLanguageSettings(
        language=config.language.code,
        families=tuple(config.eval.families),
        sft_items=config.sft.items,
        seed=config.corpus.seed,
        questions=1 if config.sft.path or config.sft.hub else config.sft.questions,
    )
    return Stage(TARGET_INSTRUCTIONS, config.language.code, settings, {"corpus": data.corpus})


def run_target_instructions(job: Job[InstructionsInLanguageSettings, Settings]) -> None:
    from train.data import instructions

    instructions.build_in_language(job.folders["corpus"], job.settings, job.out)


TARGET_INSTRUCTIONS = StageType("target_instructions", run_target_instructions, 1, "data", 10, shared=True)


# --- blocks ---


def plan_ct_blocks(config: Config, data: Data, base: Stage) -> Stage:
    """Plan what CT learns, up to the end of its schedule: all budgets read the same."""
    language, ct = config.language.code, config.ct
    tokens = None if ct.whole_text else ct.schedule_tokens
    settings = CtBlocksSettings.pick(ct, config, language=language, schedule_tokens=tokens, sources=ct.fractions)
    slug = f"{language}-{ALL if ct.whole_text else format_tokens(ct.schedule_tokens)}-s{config.seed}"
    options = WorkerOptions(workers=workers(config))
    return Stage(CT_BLOCKS, slug, settings, {"corpus": data.corpus, "model": base, **data.sources}, options)


def run_ct_blocks(job: Job[CtBlocksSettings, WorkerOptions]) -> None:
    from train.data import packing

    corpus, model = job.folders["corpus"], job.checkpoint("model")
    sources = source_folders(job)
    packing.ct_blocks(corpus, model, job.settings, job.out, job.work, job.options.workers, sources)
    job.note = packed(job.out)


CT_BLOCKS = StageType("ct_blocks", run_ct_blocks, 1, "data", 4, shared=True)


def plan_sft_blocks(config: Config, data: Data, base: Stage, language: str = "en") -> Stage:
    """Plan what SFT learns: instructions in English, or for the upper bound in the language, and replay in the same."""
    sft = config.sft
    settings = SftBlocksSettings.pick(sft, config, language=language, chat=chat_settings(config, data.template))
    in_english = language == "en"
    if not config.families and not (in_english and (sft.path or sft.hub)):
        remedy = "set sft.path or sft.hub" if in_english else "leave target_sft out of eval.baselines"
        raise BadInput(f"{config.no_families} SFT needs instructions, which families make. Name a family, or {remedy}.")
    instructions = data.instructions if in_english else plan_target_instructions(config, data)
    parents = {"items": instructions, "model": base}
    if sft.replay_fraction or not sft.hub:
        parents["corpus"] = data.corpus
    options = WorkerOptions(workers=workers(config))
    return Stage(SFT_BLOCKS, f"{language}-s{config.seed}", settings, parents, options)


def chat_settings(config: Config, text: str | None) -> ChatSettings | None:
    """Return how SFT puts conversations into text; None where there is no template.

    text: of the template; None if only the network would know it. In the key it stands for itself, but for the
    tokenizer's, which is known by the checksum of the model.
    """
    sft = config.sft
    if sft.template == NONE:
        return None
    values: dict[str, Any] = {
        "template": TOKENIZER if sft.template == TOKENIZER else text,
        "args": sft.template_args or {},
        "date": config.chat.date if text is None or DATE_FUNCTION in text else None,
    }
    return ChatSettings.pick(sft, **values)


def run_sft_blocks(job: Job[SftBlocksSettings, WorkerOptions]) -> None:
    from train.data import packing

    items, corpus = job.folders["items"], job.folders.get("corpus")
    packing.sft_blocks(items, corpus, job.checkpoint("model"), job.settings, job.out, job.work, job.options.workers)
    job.note = packed(job.out)


SFT_BLOCKS = StageType("sft_blocks", run_sft_blocks, 1, "data", 10, shared=True)


class MixedBlocksSettings(Settings):
    """ct_tokens: those of the blocks of CT. tokens: of both."""

    ct_tokens: int
    tokens: int


def plan_mixed_blocks(config: Config, slug: str, ct_blocks: Stage, sft_blocks: Stage) -> Stage:
    """Plan the blocks of CT and of SFT spread evenly among each other."""
    settings = MixedBlocksSettings(ct_tokens=config.ct.tokens, tokens=config.ct.tokens + config.sft.tokens)
    return Stage(MIXED_BLOCKS, slug, settings, {"ct_blocks": ct_blocks, "sft_blocks": sft_blocks})


def run_mixed_blocks(job: Job[MixedBlocksSettings, Settings]) -> None:
    from train.data import packing

    check_budget(job.folders["ct_blocks"], job.settings.ct_tokens)
    packing.mixed_blocks(job.folders["ct_blocks"], job.folders["sft_blocks"], job.settings.ct_tokens, job.out)
    job.note = packed(job.out)


MIXED_BLOCKS = StageType("mixed_blocks", run_mixed_blocks, 1, "data", 3)


def block_counts(blocks: Path) -> dict[str, Any]:
    """Return what was counted when blocks were packed."""
    counts: dict[str, Any] = json.loads((blocks / "counts.json").read_text(encoding="utf-8"))
    return counts


def packed(blocks: Path) -> str:
    """Describe how many blocks there are, how full they are, and control tokens that their text has by name."""
    counts = block_counts(blocks)
    filled = f": {counts['blocks']:,} blocks, {counts['real_token_share']:.2%} of their positions real tokens"
    chat = conversed(counts["chat"], counts["trained_tokens"]) if "chat" in counts else ""
    return filled + chat + format_control_counts(counts.get("control_tokens", {}))


def conversed(chat: Mapping[str, Any], trained: int) -> str:
    """Describe how many conversations SFT learns, and what became of the others."""

    names = {"cut": "cut to a block", "unrolled": "unrolled", "shortened": "ended at an empty turn"}
    names |= {"system_in_question": "with the system message in the first question"}
    changed = "".join(f", {chat[name]:,} {words}" for name, words in names.items() if chat.get(name))
    left_out = sum(chat["left_out"].values())
    reasons = f", {left_out:,} left out ({format_counts(chat['left_out'])})" if left_out else ""
    sequences = f"{chat['answers']:,} answers in {chat['sequences']:,} sequences"
    return f"; {chat['conversations']:,} conversations, {sequences}, {trained:,} tokens with loss{changed}{reasons}"


def check_budget(blocks: Path, tokens: int) -> None:
    """Raise BadInput for a budget that the packed corpus cannot fill."""
    available = block_counts(blocks)["tokens"]
    if tokens > available:
        raise BadInput(
            f"ct.tokens={format_tokens(tokens)}: the corpus has {available:,} tokens including English."
            " Set a smaller budget, or give more text."
        )
