"""The names that this transformers gives a model's tensors, by its own tables of renamed weights.

Importing transformers takes seconds: this is looked up only where the names of two checkpoints differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from merge.io.checkpoint import Checkpoint

DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers",
    "num_decoder_layers",
)  # fmt: skip


@dataclass(frozen=True)
class Joined:
    """A tensor in memory that a stored one becomes a part of, and what joins the parts.

    part: number of the kind of part; operations: what transformers does, by name and dimension.
    """

    target: str
    part: int
    operations: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Names:
    """An architecture's names. tied: tensors that are another one, by the names of today."""

    renamings: list[Any]
    converters: list[Any]
    prefix: str
    state: Mapping[str, Any]
    tied: Mapping[str, str]

    def today(self, name: str) -> str:
        """What a tensor is called in memory, where it is not joined with others."""
        from transformers.core_model_loading import rename_source_key

        return str(rename_source_key(name, self.renamings, [], self.prefix, dict(self.state))[0])

    def joined(self, name: str) -> Joined | None:
        """What a tensor becomes a part of; None for one that stays as it is stored."""
        renamed = name
        for renaming in self.renamings:
            renamed, _ = renaming.rename_source_key(renamed)
        for converter in self.converters:
            target, pattern = converter.rename_source_key(renamed)
            if pattern is not None:
                operations = tuple((type(each).__name__, getattr(each, "dim", None)) for each in converter.operations)
                return Joined(self.today(target), converter.source_patterns.index(pattern), operations)
        return None

    def in_memory(self, name: str) -> str:
        """The tensor in memory that a stored one is, or becomes a part of."""
        joined = self.joined(name)
        return self.today(name) if joined is None else joined.target


def names_of(checkpoint: Checkpoint) -> Names | None:
    """None where this transformers does not know the model: of custom code, or newer."""
    depths = [value for part in _parts(checkpoint.config) for key in DEPTHS if type(value := part.get(key)) is int]
    if not depths or max(depths) > len(checkpoint.tensors):
        return None  # not a config of these tensors
    return _names(checkpoint.folder, json.dumps(checkpoint.config, sort_keys=True, default=str))


@lru_cache(maxsize=8)
def _names(folder: Path, config_text: str) -> Names | None:
    """The model is built without weights: which names are changed depends on its modules."""
    import torch
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = getattr(transformers, str((json.loads(config_text).get("architectures") or [""])[0]))
        with torch.device("meta"):
            model = kind._from_config(config)
        mapping = get_model_conversion_mapping(model)
        tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    except Exception:  # whatever a config leads transformers to: then it does not know the names
        return None
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    return Names(renamings, converters, model.base_model_prefix, dict(model.state_dict()), tied)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A config and those of its parts."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and (key.endswith("_config") or key in ("encoder", "decoder")):
            yield value
