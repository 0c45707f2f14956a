"""LoRA adapters, merged onto their base while it is read: W + scale·B·A (Hu et al. 2022), row by row.

The sum is taken in float32 and rounded to the base's dtype, as merging the adapter into the checkpoint beforehand
would.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from common.errors import BadInput, in_one_line
from common.parsing import read_json, shaped
from merge.io.checkpoint import FLOATS, Checkpoint
from merge.io.safetensors_header import read_header

if TYPE_CHECKING:
    import torch

# What peft computes otherwise than W + scale·B·A, or with further tensors: each must be off.
_OFF = (
    "use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices",
    "target_parameters", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "velora_config", "monteclora_config", "megatron_config",
)  # fmt: skip
# Initialisations that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) take something out of it
# when peft loads the adapter.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

Rank = Annotated[int, Field(ge=1)]


class LoraConfig(BaseModel):
    """What we read of adapter_config.json; defaults are peft's."""

    peft_type: str
    r: Rank = 8
    lora_alpha: float = Field(8.0, allow_inf_nan=False)
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Annotated[float, Field(allow_inf_nan=False)]] | None = None
    use_rslora: bool = False
    init_lora_weights: bool | str | None = True
    bias: str | None = "none"


@dataclass(frozen=True)
class Factors:
    """Names of a weight's A [rank, columns] and B [rows, rank], and their product's factor."""

    a: str
    b: str
    scale: float


class AdaptedCheckpoint(Checkpoint):
    """A checkpoint with a LoRA on it."""

    def __init__(self, base: Checkpoint, lora: Checkpoint, factors: dict[str, Factors]):
        super().__init__(base.folder, base.config, base.tensors)
        self.base, self.lora, self.factors = base, lora, factors

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        plain = self.base.read(name, start, stop)
        if name not in self.factors:
            return plain
        factors = self.factors[name]
        columns = self.tensors[name].shape[-1]
        first, last = start // columns, math.ceil(stop / columns)
        rank = self.lora.tensors[factors.a].shape[0]
        a = self.lora.read(factors.a, 0, rank * columns).float().view(rank, columns)
        b = self.lora.read(factors.b, first * rank, last * rank).float().view(-1, rank)
        delta = (b @ a).mul_(factors.scale).view(-1)[start - first * columns : stop - first * columns]
        return (plain.float() + delta).to(plain.dtype)

    def parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        """The base's tensor, and the factors on it."""
        factors = self.factors.get(name)
        own = [(self.lora, factors.a), (self.lora, factors.b)] if factors else []
        return self.base.parts(name) + own

    @property
    def files(self) -> set[Path]:
        return self.base.files | self.lora.files

    def close(self) -> None:
        self.base.close()
        self.lora.close()


def adapted(base: Checkpoint, folder: Path) -> AdaptedCheckpoint:
    """`base` with the LoRA in `folder`.

    Raises BadInput for adapters of other kinds, for what peft would read otherwise, and for modules that the base has
    not.
    """
    path, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    with in_one_line():
        config = _config(path)
        if not file.is_file():
            raise BadInput(f"{file}: missing; expected a LoRA folder as peft saves it")
        lora = Checkpoint(folder, {}, read_header(file))
    sides: dict[str, dict[str, str]] = {}
    for name, info in lora.tensors.items():
        match = _NAME.fullmatch(name)
        if not match:
            raise BadInput(
                f"{file}: tensor {name} is not a LoRA factor of a linear layer; merge this adapter with peft first"
            )
        if len(info.shape) != 2 or info.dtype not in FLOATS:
            raise BadInput(f"{file}: tensor {name} is {info.dtype} {list(info.shape)}; a factor is a matrix of floats")
        sides.setdefault(match["module"], {})[match["side"]] = name
    if not sides:
        raise BadInput(f"{file}: holds no LoRA factors")
    factors = {f"{module}.weight": _factors(base, lora, config, path, module, names) for module, names in sides.items()}
    return AdaptedCheckpoint(base, lora, factors)


def _config(path: Path) -> LoraConfig:
    data: dict[str, Any] = read_json(path, expected="the config of a LoRA as peft saves it")
    config: LoraConfig = shaped(data, str(path), LoraConfig)
    if config.peft_type != "LORA":
        raise BadInput(
            f"{path}: peft_type is {config.peft_type}; only LORA can be merged on the fly, merge it with peft first"
        )
    wrong = {key: data[key] for key in _OFF if data.get(key)}
    if config.bias not in ("none", None):
        wrong["bias"] = config.bias
    if config.init_lora_weights not in _PLAIN_STARTS:
        wrong["init_lora_weights"] = config.init_lora_weights
    for key, value in wrong.items():
        raise BadInput(f"{path}: {key} is {value!r}; merge this adapter into its base with peft first")
    return config


def _factors(
    base: Checkpoint, lora: Checkpoint, config: LoraConfig, path: Path, module: str, names: dict[str, str]
) -> Factors:
    """The factors of one module. Raises BadInput where they do not fit each other, the config or the base."""
    file = lora.tensors[next(iter(names.values()))].file
    if set(names) != {"A", "B"}:
        raise BadInput(f"{file}: module {module} has only one of lora_A and lora_B")
    a, b = lora.tensors[names["A"]].shape, lora.tensors[names["B"]].shape
    rank = int(_by_pattern(config.rank_pattern, module, config.r, f"{path}: rank_pattern"))
    if not a[0] == b[1] == rank:
        raise BadInput(f"{file}: module {module} has A of rank {a[0]} and B of rank {b[1]}; {path.name} says {rank}")
    weight = f"{module}.weight"
    if weight not in base.tensors or base.tensors[weight].shape != (b[0], a[1]):
        raise BadInput(
            f"{file}: module {module} ({b[0]} × {a[1]}) is not one of {base.folder}: the adapter has another base"
        )
    alpha = _by_pattern(config.alpha_pattern, module, config.lora_alpha, f"{path}: alpha_pattern")
    return Factors(names["A"], names["B"], alpha / math.sqrt(rank) if config.use_rslora else alpha / rank)


def _by_pattern(patterns: dict[str, Any] | None, module: str, otherwise: float, where: str) -> float:
    """The value of the first pattern that matches, as in peft."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(value)
        except (re.error, OverflowError) as error:
            raise BadInput(f"{where}: {pattern!r} is not a regular expression ({error})") from None
    return otherwise
