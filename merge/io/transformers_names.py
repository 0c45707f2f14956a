"""The names of this transformers for a model's tensors, from its own tables of renamed weights.

Importing transformers takes seconds, so these are looked up only if the names of two checkpoints differ.
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
    """A tensor in memory of which a stored one is a part, and the operations that join the parts.

    part: number of the kind of part; operations: those of transformers, by name and dimension.
    """

    target: str
    part: int
    operations: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Names:
    """An architecture's names. tied: aliases of other tensors, by present names."""

    renamings: list[Any]
    converters: list[Any]
    prefix: str
    state: Mapping[str, Any]
    tied: Mapping[str, str]

    def today(self, name: str) -> str:
        """Return a tensor's name in memory, if it is not joined with others."""
        from transformers.core_model_loading import rename_source_key

        return str(rename_source_key(name, self.renamings, [], self.prefix, dict(self.state))[0])

    def joined(self, name: str) -> Joined | None:
        """Return the tensor that a stored one becomes a part of; None if it stays as stored."""
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
        """Return the tensor in memory that a stored one is, or becomes a part of."""
        joined = self.joined(name)
        return self.today(name) if joined is None else joined.target


def names_of(checkpoint: Checkpoint) -> Names | None:
    """Return the names of an architecture; None if this transformers lacks the model (custom code, or newer)."""
    depths = [value for part in _parts(checkpoint.config) for key in DEPTHS if type(value := part.get(key)) is int]
    if not depths or max(depths) > len(checkpoint.tensors):
        return None  # not a config of these tensors
    return _names(checkpoint.folder, json.dumps(checkpoint.config, sort_keys=True, default=str))


@lru_cache(maxsize=8)
def _names(folder: Path, config_text: str) -> Names | None:
    """Build the model without weights to get its names: which are changed depends on its modules."""
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
    """List a config and those of its parts."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and (key.endswith("_config") or key in ("encoder", "decoder")):
            yield value
