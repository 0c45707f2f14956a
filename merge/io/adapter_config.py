"""The parts of a LoRA's adapter_config.json that decide the weights; all others are rejected by name."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

import regex
from pydantic import BaseModel, Field

from common.errors import BadInput
from common.validation import read_json, validate

# What peft computes otherwise than W + scale·B·A, or with further tensors: each must be off. `fan_in_fan_out` is none
# of them: peft decides by the layer and ignores the config (merge/io/transposed.py).
_OFF = (
    "lora_bias", "layer_replication", "trainable_token_indices",
    "target_parameters", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "velora_config", "monteclora_config", "megatron_config",
)  # fmt: skip
# Initialisations that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) take something out of it
# when peft loads the adapter.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
# A stranger's pattern may take time exponential in a name's length; those that name modules take microseconds.
LONGEST_MATCH_S = 1.0

Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class LoraConfig(BaseModel):
    """The keys of adapter_config.json that we read, with peft's defaults."""

    peft_type: str
    r: Rank = 8
    lora_alpha: Alpha = 8.0
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | None = True
    modules_to_save: list[str] | None = None
    ensure_weight_tying: bool = False

    def saves(self, module: str) -> bool:
        """Tell whether the adapter contains the whole module instead of factors."""
        return module.endswith(tuple(self.modules_to_save or ()))


def read_config(path: Path) -> LoraConfig:
    """Read the config. Raises BadInput for other kinds of adapters, and for what is not W + scale·B·A."""
    data: dict[str, Any] = read_json(path, expected="the config of a LoRA as peft saves it")
    config: LoraConfig = validate(data, str(path), LoraConfig)
    if config.peft_type != "LORA":
        raise BadInput(
            f"{path}: peft_type must be LORA, got {config.peft_type}. Merge the adapter into its base with peft first."
        )
    wrong = {key: data[key] for key in _OFF if data.get(key)}
    if config.init_lora_weights not in _PLAIN_STARTS:
        wrong["init_lora_weights"] = config.init_lora_weights
    for key, value in wrong.items():
        raise BadInput(
            f"{path}: {key} is not supported, got {value!r}. Merge this adapter into its base with peft first."
        )
    return config


def rank_and_scale(config: LoraConfig, module: str, path: Path) -> tuple[int, float]:
    """Return the rank of a module's factors and the factor of their product."""
    rank = int(_by_pattern(config.rank_pattern, module, config.r, f"{path}: rank_pattern"))
    alpha = _by_pattern(config.alpha_pattern, module, config.lora_alpha, f"{path}: alpha_pattern")
    return rank, alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _by_pattern(patterns: dict[str, Any] | None, module: str, otherwise: float, where: str) -> float:
    """Return the value of the first pattern that matches, as in peft."""
    for pattern, value in (patterns or {}).items():
        whole = rf"(.*\.)?({pattern})$"
        try:
            re.compile(whole)  # what is one for `re`, as peft has it, means the same for `regex`
            if regex.match(whole, module, timeout=LONGEST_MATCH_S):
                return float(value)
        except TimeoutError:
            raise BadInput(f"{where}: {pattern!r} takes too long to match. List the modules' names instead.") from None
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise BadInput(
                f"{where}: {pattern!r} is not a regular expression ({error}). Correct it, or list the modules' names."
            ) from None
    return otherwise
