"""LoRA adapters, merged onto their base while it is read: W + scale·B·A (Hu et al. 2022), row by row.

The sum is taken in float32 and rounded to the base's dtype, as merging the adapter into the checkpoint beforehand
would.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from merge.io.checkpoint import Checkpoint
from merge.io.safetensors_header import read_header

if TYPE_CHECKING:
    import torch

_KNOWN_OFF = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
}
_NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")


@dataclass
class AdaptedCheckpoint(Checkpoint):
    """A checkpoint with a LoRA on it."""

    factors: dict[str, tuple[str, str, float]] = field(default_factory=dict)  # weight -> names of A and B, scale
    lora: Checkpoint | None = None

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        plain = super().read(name, start, stop)
        if name not in self.factors:
            return plain
        assert self.lora is not None
        a_name, b_name, scale = self.factors[name]
        columns = self.tensors[name].shape[-1]
        first, last = start // columns, math.ceil(stop / columns)
        rank = self.lora.tensors[a_name].shape[0]
        a = self.lora.read(a_name, 0, self.lora.tensors[a_name].numel).float().view(rank, columns)
        b = self.lora.read(b_name, first * rank, last * rank).float().view(-1, rank)
        delta = (b @ a).mul_(scale).view(-1)[start - first * columns : stop - first * columns]
        return (plain.float() + delta).to(plain.dtype)

    def close(self) -> None:
        super().close()
        if self.lora is not None:
            self.lora.close()


def adapted(base: Checkpoint, folder: Path) -> AdaptedCheckpoint:
    """`base` with the LoRA in `folder`.

    Raises BadInput for adapters of other kinds and for modules that the base has not.
    """
    path = folder / "adapter_config.json"
    file = folder / "adapter_model.safetensors"
    for needed in (path, file):
        if not needed.is_file():
            raise BadInput(f"{needed}: missing; expected a LoRA folder as peft saves it")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise BadInput(
            f"{path}: peft_type is {config.get('peft_type')}; "
            "only LORA can be merged on the fly, merge it with peft first"
        )
    for key, off in _KNOWN_OFF.items():
        if config.get(key) not in (off, None):
            raise BadInput(f"{path}: {key} is {config[key]!r}; merge this adapter into its base with peft first")
    lora = Checkpoint(folder, config, read_header(file))
    sides: dict[str, dict[str, str]] = {}
    for name in lora.tensors:
        match = _NAME.match(name)
        if not match:
            raise BadInput(
                f"{file}: tensor {name} is not a LoRA factor of a linear layer; merge this adapter with peft first"
            )
        sides.setdefault(match["module"], {})[match["side"]] = name
    factors = {}
    for module, names in sides.items():
        weight = f"{module}.weight"
        if set(names) != {"A", "B"}:
            raise BadInput(f"{file}: module {module} has only one of lora_A and lora_B")
        a, b = lora.tensors[names["A"]].shape, lora.tensors[names["B"]].shape
        if weight not in base.tensors or base.tensors[weight].shape != (b[0], a[1]):
            raise BadInput(
                f"{file}: module {module} ({b[0]} × {a[1]}) is not one of {base.folder}: the adapter has another base"
            )
        factors[weight] = (names["A"], names["B"], _scale(config, module, a[0]))
    return AdaptedCheckpoint(base.folder, base.config, base.tensors, factors=factors, lora=lora)


def _scale(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / √r with rank-stabilised LoRA; alpha_pattern overrides alpha for modules that it names."""
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = float(value)
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
