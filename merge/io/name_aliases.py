"""Names of tensors that differ between versions of transformers, by its own table of how checkpoints are renamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from merge.io.checkpoint import Checkpoint
from merge.io.token_tensors import is_head

if TYPE_CHECKING:
    import torch


class RenamedCheckpoint(Checkpoint):
    """A checkpoint whose tensors go by other names. own: its own, by the new ones."""

    def __init__(self, inner: Checkpoint, own: Mapping[str, str]):
        super().__init__(
            inner.folder, inner.config, {new: replace(inner.tensors[old], name=new) for new, old in own.items()}
        )
        self.inner, self.own = inner, own

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.inner.read(self.own[name], start, stop)

    def parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        """Those of the tensor under its own name."""
        return self.inner.parts(self.own[name])

    @property
    def files(self) -> set[Path]:
        return self.inner.files

    def close(self) -> None:
        self.inner.close()


def with_names_of(lead: Checkpoint, other: Checkpoint) -> Checkpoint:
    """`other` under the names that `lead` has, where transformers knows both; as it is where it does not.

    Only models of several parts (vision and text) are looked up: the names of others are the same in all versions.
    """
    if lead.tensors.keys() == other.tensors.keys() or not any(_parts(lead.config)):
        return other
    if {name for name in lead.tensors.keys() ^ other.tensors.keys() if not is_head(name)} == set():
        return other
    today = _todays_names(lead)
    if today is None:
        return other
    here = {today(name): name for name in lead.tensors}
    own = {here.get(today(name), today(name)): name for name in other.tensors}
    if len(own) < len(other.tensors):
        raise BadInput(f"{other.folder}: two of its tensors are one by transformers' names; save it again")
    return RenamedCheckpoint(other, own)


def under_todays_names(checkpoint: Checkpoint) -> Checkpoint:
    """A model of several parts under the names that this transformers has in memory, which adapters are saved by."""
    today = _todays_names(checkpoint) if any(_parts(checkpoint.config)) else None
    own = {today(name): name for name in checkpoint.tensors} if today else {}
    same = len(own) < len(checkpoint.tensors) or own.keys() == checkpoint.tensors.keys()
    return checkpoint if same else RenamedCheckpoint(checkpoint, own)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return (value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict))


def _todays_names(checkpoint: Checkpoint) -> Callable[[str], str] | None:
    """What this transformers calls a tensor of such a model, whoever saved it; None where it does not know the model.

    The model is built without weights: which names are changed depends on its modules.
    """
    import torch
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    depths = [value for part in _parts(checkpoint.config) for value in part.values() if type(value) is int]
    layers = [part.get(key) for part in _parts(checkpoint.config) for key in ("num_hidden_layers", "depth")]
    if not depths or any(type(count) is int and count > len(checkpoint.tensors) for count in layers):
        return None  # not a config of these tensors
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
        kind = getattr(transformers, str((checkpoint.config.get("architectures") or [""])[0]))
        with torch.device("meta"):
            model = kind._from_config(config)
        renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    except Exception:  # whatever a config leads transformers to: then it does not know the names
        return None
    known = dict(model.state_dict())
    prefix = model.base_model_prefix
    return lambda name: str(rename_source_key(name, renamings, [], prefix, known)[0])
