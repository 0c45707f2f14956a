"""Config -> the stages that checkpoints are made by: text, items, blocks, trainings. Pure: no torch, no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from common import hub
from common.chat import DATE_FUNCTION
from common.units import format_tokens
from pipeline.config import CipherCorpus, Config, HubCorpus, Training
from pipeline.graph import TRUNK, Inputs, Stage
from train.data.chat.template import NONE, TOKENIZER

AUTO = "auto"  # of sft.format: by the columns
ALL = "all"  # in place of a budget, in slugs: CT on all of the text
TRAINING_KEYS = (
    "tokens",
    "batch_tokens",
    "block_size",
    "learning_rate",
    "min_lr_ratio",
    "warmup_ratio",
    "weight_decay",
)


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


def base_model(config: Config, inputs: Inputs, data: Data | None = None) -> Stage:
    """The model that everything starts from: given, or trained from scratch, which needs the data."""
    model = config.model
    if model.path is not None:
        return given(model.name, model.path, inputs.model, "model" in inputs.special_tokens)
    assert model.recipe is not None and data is not None
    recipe = model.recipe.model_dump(exclude={"save_every_tokens", "dev_every_tokens"})
    corpus = _bible(config.corpus, inputs) if isinstance(config.corpus, CipherCorpus) else data.corpus
    settings = {**recipe, "language": corpus.settings["language"], **_precision(config)}
    options = {"compute": _compute(config), "save_every_tokens": model.recipe.save_every_tokens}
    return Stage("base", model.name, settings, {"corpus": corpus}, options)


def chat_model(config: Config, inputs: Inputs) -> Stage:
    """The SFT checkpoint that was given."""
    assert config.sft.source is not None
    return given("sft-en", config.sft.source, inputs.sft_model, "sft_model" in inputs.special_tokens)


def given(slug: str, path: str, known: str | None, special_tokens: bool = False) -> Stage:
    """A model from outside, known by a checksum, or by its commit on the Hub, which is then the one that is fetched.

    special_tokens: whether its tokenizer puts some around a text. It is a part of the key, as what is trained and
    scored with such a tokenizer has changed.
    """
    of_hub = known is not None and known.startswith(hub.PREFIX)
    settings = {"sha256": known, **({"special_tokens": True} if special_tokens else {})}
    return Stage("model", slug, settings, options={"path": known if of_hub else path})


def _bible(cipher: CipherCorpus, inputs: Inputs) -> Stage:
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


def continual_training(slug: str, config: Config, parents: Mapping[str, Stage]) -> Stage:
    """CT of `model` on `blocks`; under a wsd schedule the decay of this budget, from a trunk that budgets share."""
    stage = training("ct", slug, config, parents)
    if config.ct.schedule == "cosine":
        return stage
    trunk = config.ct.tokens // config.ct.batch_tokens * config.ct.batch_tokens - config.ct.decay_tokens
    if not trunk:
        return stage
    not_in_trunk = ("decay_tokens", "decay_shape")
    shared = {name: value for name, value in stage.settings.items() if name not in not_in_trunk}
    slug = f"{slug}-trunk-{format_tokens(trunk)}"
    return replace(
        stage, parents={**parents, TRUNK: Stage("ct", slug, {**shared, "tokens": trunk}, parents, stage.options)}
    )


def training(kind: Literal["ct", "sft"], slug: str, config: Config, parents: Mapping[str, Stage]) -> Stage:
    """A training by the config's section of this kind, of `model` on `blocks`."""
    section: Training = config.ct if kind == "ct" else config.sft
    horizon = config.ct.schedule_tokens if kind == "ct" else config.sft.schedule_tokens or config.sft.tokens
    lora, ct = config.train.lora, config.ct
    whole_text = kind == "ct" and ct.whole_text
    decay: dict[str, Any] = {}
    if kind == "ct" and ct.schedule == "wsd":
        decay = {"schedule": ct.schedule, "decay_tokens": ct.decay_tokens, "decay_shape": ct.decay_shape}
    settings = {
        **{name: getattr(section, name) for name in TRAINING_KEYS},
        "schedule_tokens": horizon,
        "seed": config.seed,
        **_precision(config),
        **({"lora": lora.model_dump()} if lora else {}),
        **decay,
        **({"tokens": None, "schedule_tokens": None} if whole_text else {}),
    }
    options = {
        **({"expected_tokens": ct.tokens} if whole_text else {}),
        "compute": _compute(config),
        "save_every_tokens": section.save_every_tokens,
        "keep_last_state": config.compute.keep_last_state,
    }
    if section.dev_every_tokens:
        options |= {"dev_every_tokens": section.dev_every_tokens, "dev_languages": [config.language.code, "en"]}
    return Stage(kind, slug, settings, parents, options)


def _questions(config: Config) -> dict[str, int]:
    """One a passage is not said, so that keys stay."""
    given = config.sft.path or config.sft.hub
    return {} if given or config.sft.questions == 1 else {"questions": config.sft.questions}


def _precision(config: Config) -> dict[str, str]:
    """Omitted at fp32, so that keys stay. published: the dtype of the weights, which once was that of the passes."""
    precision = config.compute.precision
    return {} if precision == "fp32" else {"precision": precision, "published": "float32"}


def _compute(config: Config) -> dict[str, Any]:
    """How a training is computed, as `train.parallel.Compute` takes it."""
    return config.compute.model_dump(exclude={"first_guess", "keep_last_state"})


def workers(config: Config) -> dict[str, int]:
    """Processes that read text; said of text of the Hub only, one elsewhere."""
    return {"workers": config.corpus.workers} if isinstance(config.corpus, HubCorpus) else {}
