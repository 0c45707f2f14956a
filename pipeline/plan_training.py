"""Config -> the stages up to the checkpoints: text, items, blocks and trainings. Pure: no torch, no files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from common.units import format_tokens
from pipeline.config import CipherCorpus, Config, HubCorpus, Training
from pipeline.graph import Inputs, Stage

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
    """The stages that make text. `instructions`: what SFT learns, the items themselves where the hub gives none."""

    corpus: Stage
    items: Stage
    instructions: Stage


def data_stages(config: Config, inputs: Inputs) -> Data:
    language, seed, hub = config.language.code, config.corpus.seed, config.sft.hub
    corpus = _corpus(config, inputs)
    asked = {
        "language": language,
        "families": config.eval.families,
        "sft_items": 0 if hub else config.sft.items,
        "eval_items": config.eval.items,
        "seed": seed,
        "inputs": () if hub else inputs.sft,
    }
    items = Stage("items", language, asked, {"corpus": corpus}, {"sft_path": config.sft.path})
    if hub is None:
        return Data(corpus, items, items)
    taken = {"hub": hub.content, "seed": seed, "inputs": inputs.sft}
    options = {"folder": hub.folder, **workers(config)}
    # on their own, so that the English SFT of all languages is one
    return Data(corpus, items, Stage("instructions", "en", taken, options=options))


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
    return Stage("corpus", f"{config.language.code}-{corpus.source}", content, options=options)


@dataclass(frozen=True)
class Start:
    """What the arms of a cell are trained from."""

    config: Config
    data: Data
    base: Stage
    ct: Stage
    sft: Stage
    ct_blocks: Stage
    sft_blocks: Stage

    def ct_on(self, model: Stage, after: str) -> Stage:
        """CT of this budget on another model than the base: a trajectory of its own."""
        slug = f"{self.config.language.code}-after-{after}-{_budget(self.config)}"
        return _training("ct", slug, self.config, {"model": model, "blocks": self.ct_blocks})

    def sft_on(self, model: Stage, after: str) -> Stage:
        """English SFT on another model than the base."""
        slug = f"en-after-{after}-{_budget(self.config)}"
        return _training("sft", slug, self.config, {"model": model, "blocks": self.sft_blocks})


def trained_stages(config: Config, inputs: Inputs, data: Data, wanted: Collection[str] = ()) -> dict[str, Stage]:
    """Base, CT and SFT, and the wanted ones of the other arms, by the names that they have in results."""
    base = _base(config, inputs, data)
    ct_blocks, english_sft = _ct_blocks(config, data, base), sft_blocks(config, data, base)
    if config.ct_source:
        options = {"path": config.ct_source}
        ct = Stage("model", f"ct-{config.language.code}", {"sha256": inputs.ct}, options=options)
    else:
        slug = f"{config.language.code}-{_budget(config)}"
        ct = _training("ct", slug, config, {"model": base, "blocks": ct_blocks})
    if config.sft.source:
        sft = Stage("model", "sft-en", {"sha256": inputs.sft_model}, options={"path": config.sft.source})
    else:
        sft = _training("sft", f"en-s{config.seed}", config, {"model": base, "blocks": english_sft})
    start = Start(config, data, base, ct, sft, ct_blocks, english_sft)
    further = {name: train(start) for name, train in FURTHER.items() if name in wanted}
    return {"base": base, "sft": sft, "ct": ct, **further}


def _ct_then_sft(start: Start) -> Stage:
    return start.sft_on(start.ct, start.config.language.code)


def _sft_then_ct(start: Start) -> Stage:
    return start.ct_on(start.sft, "en")


# A new arm is a row here and one of pipeline/arms.py.
FURTHER: Mapping[str, Callable[[Start], Stage]] = {
    "ct_then_sft": _ct_then_sft,
    "sft_then_ct": _sft_then_ct,
}


def _budget(config: Config) -> str:
    """What names a cell's trainings in their slugs."""
    return f"{format_tokens(config.ct.tokens)}-s{config.seed}"


def _base(config: Config, inputs: Inputs, data: Data) -> Stage:
    model = config.model
    if model.path is not None:
        return Stage("model", model.name, {"sha256": inputs.model}, options={"path": model.path})
    assert model.recipe is not None
    recipe = model.recipe.model_dump(exclude={"save_every_tokens"})
    corpus = _bible(config.corpus, inputs) if isinstance(config.corpus, CipherCorpus) else data.corpus
    settings = {**recipe, "language": corpus.settings["language"], **_precision(config)}
    options = {"compute": _compute(config), "save_every_tokens": model.recipe.save_every_tokens}
    return Stage("base", model.name, settings, {"corpus": corpus}, options)


def _bible(cipher: CipherCorpus, inputs: Inputs) -> Stage:
    """The corpus that a cipher's base is trained on: Chichewa's, so that both languages begin with one base."""
    content = {"source": "bible", "language": "nya", **cipher.model_dump(include={"dev", "test", "seed"})}
    options = {"path": None, "english_path": None}
    return Stage("corpus", "nya-bible", content | {"inputs": inputs.base_corpus}, options=options)


def _ct_blocks(config: Config, data: Data, base: Stage) -> Stage:
    language, ct = config.language.code, config.ct
    settings = {
        "language": language,
        "schedule_tokens": ct.schedule_tokens,
        "block_size": ct.block_size,
        "english_share": ct.english_share,
        "seed": config.seed,
    }
    slug = f"{language}-{format_tokens(ct.schedule_tokens)}-s{config.seed}"
    return Stage("ct_blocks", slug, settings, {"corpus": data.corpus, "model": base}, workers(config))


def sft_blocks(config: Config, data: Data, base: Stage, language: str = "en") -> Stage:
    """What SFT learns: instructions in English, or for the ceiling in the language, and replay in the same."""
    sft = config.sft
    settings = {
        "tokens": sft.tokens,
        "block_size": sft.block_size,
        "replay_share": sft.replay_share,
        "seed": config.seed,
        **({} if language == "en" else {"language": language}),
    }
    instructions = data.instructions if language == "en" else target_instructions(config, data)
    parents = {"items": instructions, "model": base}
    if sft.replay_share or not sft.hub:
        parents["corpus"] = data.corpus
    return Stage("sft_blocks", f"{language}-s{config.seed}", settings, parents, workers(config))


def target_instructions(config: Config, data: Data) -> Stage:
    """Instructions of the same families in the language itself, a stage of its own: no other key depends on it."""
    asked = {
        "language": config.language.code,
        "families": config.eval.families,
        "sft_items": config.sft.items,
        "seed": config.corpus.seed,
    }
    return Stage("target_instructions", config.language.code, asked, {"corpus": data.corpus})


def _training(kind: Literal["ct", "sft"], slug: str, config: Config, parents: Mapping[str, Stage]) -> Stage:
    section: Training = config.ct if kind == "ct" else config.sft
    horizon = config.ct.schedule_tokens if kind == "ct" else config.sft.schedule_tokens or config.sft.tokens
    lora = config.train.lora
    settings = {
        **{name: getattr(section, name) for name in TRAINING_KEYS},
        "schedule_tokens": horizon,
        "seed": config.seed,
        **_precision(config),
        **({"lora": lora.model_dump()} if lora else {}),
    }
    options = {
        "compute": _compute(config),
        "save_every_tokens": section.save_every_tokens,
        "keep_last_state": config.compute.keep_last_state,
    }
    return Stage(kind, slug, settings, parents, options)


def _precision(config: Config) -> dict[str, str]:
    """fp32 is not said, so that keys stay."""
    return {} if config.compute.precision == "fp32" else {"precision": config.compute.precision}


def _compute(config: Config) -> dict[str, Any]:
    """How a training is computed, as `train.parallel.Compute` takes it."""
    return config.compute.model_dump(exclude={"first_guess", "keep_last_state"})


def workers(config: Config) -> dict[str, int]:
    """Processes that read text; said of text of the hub only, one elsewhere."""
    return {"workers": config.corpus.workers} if isinstance(config.corpus, HubCorpus) else {}
