"""Config -> the checkpoints of a cell: base, CT, SFT, and the arms that are trained from these. No torch, no files.

A new arm is a row of FURTHER and one of pipeline/arms.py; only merge-then-SFT, which needs a merge, is planned later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pipeline.config import Config
from pipeline.graph import Inputs, Stage
from pipeline.plan_choice import roles, tune
from pipeline.plan_training import (
    Data,
    base_model,
    budget_name,
    chat_model,
    continual_training,
    ct_blocks,
    given,
    sft_blocks,
    training,
)


@dataclass(frozen=True)
class Start:
    """What the arms of a cell are trained from.

    asks_date: whether a chat template that tries are scored by writes the date.
    """

    config: Config
    data: Data
    base: Stage
    ct: Stage
    sft: Stage
    asks_date: bool = False

    @staticmethod
    def of(config: Config, inputs: Inputs, data: Data) -> Start:
        language, base = config.language.code, base_model(config, inputs, data)
        if config.ct_source:
            ct = given(f"ct-{language}", config.ct_source, inputs.ct, "ct" in inputs.special_tokens)
        else:
            learnt = {"model": base, "blocks": ct_blocks(config, data, base)}
            ct = continual_training(f"{language}-{budget(config)}", config, learnt)
        if config.sft.source:
            sft = chat_model(config, inputs)
        else:
            learnt = {"model": base, "blocks": sft_blocks(config, data, base)}
            sft = training("sft", f"en-s{config.seed}", config, learnt)
        return Start(config, data, base, ct, sft, inputs.asks_date)

    @cached_property
    def sft_tries(self) -> tuple[Stage, ...]:
        """CT-then-SFT by every setting of its grid, the config's own first."""
        tries = enumerate(self.config.sft.tries)
        configs = [
            (n, self.config.model_copy(update={"sft": self.config.sft.tried(settings)})) for n, settings in tries
        ]
        return tuple(self._sft_on_ct(config, "en", f"-try-{n}" if n else "") for n, config in configs)

    @cached_property
    def sft_tune(self) -> Stage:
        """The tries of CT-then-SFT, scored on dev."""
        tried = {f"try-{number}": stage for number, stage in enumerate(self.sft_tries)}
        scored = {**tried, "items": self.data.items, "corpus": self.data.corpus}
        slug = f"{self.config.language.code}-ct-then-sft-{budget(self.config)}"
        return tune(self.config, slug, self.config.sft.tries, scored, self.asks_date)

    @property
    def sft_in_the_language(self) -> Stage:
        """SFT on CT, on as many tokens of instructions in the language."""
        return self._sft_on_ct(self.config, self.config.language.code)

    @property
    def sft_with_replay(self) -> Stage:
        """SFT on CT, with `sft.arm_replay_share` of running English among the instructions."""
        sft = self.config.sft.model_copy(update={"replay_share": self.config.sft.arm_replay_share})
        return self._sft_on_ct(self.config.model_copy(update={"sft": sft}), "en", "-replay")

    @property
    def mixed(self) -> Stage:
        """One training by the settings of CT, of the blocks of CT and of SFT spread evenly among each other."""
        config, ct = self.config, self.config.ct
        total = ct.tokens + config.sft.tokens
        both = config.model_copy(update={"ct": ct.model_copy(update={"tokens": total, "schedule_tokens": total})})
        slug = f"{config.language.code}-and-en-{budget(config)}"
        of_ct, of_sft = ct_blocks(config, self.data, self.base), sft_blocks(config, self.data, self.base)
        sources = {"ct_blocks": of_ct, "sft_blocks": of_sft}
        blocks = Stage("mixed_blocks", slug, {"ct_tokens": ct.tokens, "tokens": total}, sources)
        # of kind sft, as no larger budget continues from it
        return replace(training("ct", slug, both, {"model": self.base, "blocks": blocks}), kind="sft")

    def sft_on(self, model: Stage, after: str) -> Stage:
        """English SFT on a checkpoint that is none of these."""
        learnt = {"model": model, "blocks": sft_blocks(self.config, self.data, self.base)}
        return training("sft", f"en-after-{after}", self.config, learnt)

    @property
    def ct_on_sft(self) -> Stage:
        """CT of this budget and these blocks on SFT: a trajectory of its own."""
        learnt = {"model": self.sft, "blocks": ct_blocks(self.config, self.data, self.base)}
        slug = f"{self.config.language.code}-after-en-{budget(self.config)}"
        return continual_training(slug, self.config, learnt)

    def _sft_on_ct(self, config: Config, language: str, more: str = "") -> Stage:
        learnt = {"model": self.ct, "blocks": sft_blocks(config, self.data, self.base, language)}
        return training("sft", f"{language}-after-{config.language.code}-{budget(config)}{more}", config, learnt)


def trained_stages(start: Start, judges: Sequence[Start], wanted: Collection[str]) -> dict[str, Stage]:
    """Base, CT and SFT, and the wanted ones of the other arms, by the names that they have in results.

    judges: the cells on whose dev scores tries are chosen.
    """
    further = {name: train(start, judges) for name, train in FURTHER.items() if name in wanted}
    return {"base": start.base, "sft": start.sft, "ct": start.ct, **further}


def _ct_then_sft(start: Start, judges: Sequence[Start]) -> Stage:
    """By the config's settings; with a grid by those that were best on dev, unless all of them are scored."""
    plain, *others = start.sft_tries
    if not others or start.config.eval.frontier:
        return plain
    blocks = {f"blocks-{number}": stage.parents["blocks"] for number, stage in enumerate(start.sft_tries)}
    settings = {**plain.settings, "trainings": [dict(stage.settings) for stage in start.sft_tries]}
    parents = {"model": start.ct, **blocks, **roles(judge.sft_tune for judge in judges)}
    return Stage("sft", f"{plain.slug}-chosen", settings, parents, plain.options)


FURTHER: Mapping[str, Callable[[Start, Sequence[Start]], Stage]] = {
    "ct_then_sft": _ct_then_sft,
    "sft_then_ct": lambda start, _: start.ct_on_sft,
    "mixed": lambda start, _: start.mixed,
    "sft_replay": lambda start, _: start.sft_with_replay,
    "target_sft": lambda start, _: start.sft_in_the_language,
}


def budget(config: Config) -> str:
    """What names a cell's trainings in their slugs."""
    return f"{budget_name(config)}-s{config.seed}"
