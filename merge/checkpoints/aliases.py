"""Give tensors of one architecture the same names, whichever program saved them.

Savers differ: with and without the prefix of the model inside (the Hub's `gpt2`), before and after transformers renamed
or joined weights, with a tied tensor stored under one of its names. transformers' own tables know the present names.
Importing it takes seconds, so the tables are used only if the names of two checkpoints differ."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import BadInput
from merge.checkpoints.checkpoint import Checkpoint, WrappedCheckpoint
from merge.checkpoints.tensor_names import is_embedding, is_head

if TYPE_CHECKING:
    import torch

Key = TypeVar("Key")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
# Operations that join experts so that each is contiguous: stacked, with the parts of each below each other.
_IN_PIECES = ((("MergeModulelist", 0),), (("MergeModulelist", 0), ("Concatenate", 1)))
DEPTHS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers",
    "num_decoder_layers",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """`shape` elements of a stored tensor, beginning with element `start`."""

    source: str
    start: int
    shape: tuple[int, ...]


class RenamedCheckpoint(WrappedCheckpoint):
    """A checkpoint whose tensors have other names. sources: its tensors, or parts of them, by the new names."""

    def __init__(self, inner: Checkpoint, sources: Mapping[str, str | Part]):
        self.sources = {
            new: Part(old, 0, inner.tensors[old].shape) if isinstance(old, str) else old for new, old in sources.items()
        }
        own = {
            new: replace(inner.tensors[part.source], name=new, shape=part.shape) for new, part in self.sources.items()
        }
        super().__init__(inner, own, kept={})

    def read_own(self, name: str, start: int, stop: int) -> torch.Tensor:
        part = self.sources[name]
        return self.inner.read(part.source, part.start + start, part.start + stop)

    def own_parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        return self.inner.parts(self.sources[name].source)


def under_one_set_of_names(parents: Mapping[Key, Checkpoint], leader: Key) -> tuple[dict[Key, Checkpoint], list[str]]:
    """Return all parents with the leader's names for tensors that are known to be the same, and what is left out.

    Left out are tensors that not all parents have and that transformers does not load, such as layers that predict
    tokens ahead. Raises BadInput for equal tensors stored in forms of which neither is a part of the other.
    """
    lead = parents[leader]
    if lead.embedding is None and (head := lead.only_head) is not None and lead.says_tied is not False:
        name = next((other.embedding for other in parents.values() if other.embedding is not None), None)
        if name is not None:  # it stored its embedding as its head
            lead = RenamedCheckpoint(lead, {name if old == head else old: old for old in lead.tensors})
    for other in parents.values():
        if (split := _with_experts_of(other, lead)) is not lead:
            lead = with_names_of(other, split)
    others = {key: lead if key == leader else _with_experts_of(lead, other) for key, other in parents.items()}
    named = {key: with_names_of(lead, other) for key, other in others.items()}
    unused = _not_loaded(named, lead)
    if not unused:
        return named, []
    kept = {key: [name for name in each.tensors if name not in unused] for key, each in named.items()}
    return {key: RenamedCheckpoint(each, {name: name for name in kept[key]}) for key, each in named.items()}, unused


def _not_loaded(parents: Mapping[Key, Checkpoint], lead: Checkpoint) -> list[str]:
    """Return tensors that not all parents have and that a model in memory does not use."""
    everything = dict.fromkeys(name for each in parents.values() for name in each.tensors)
    lacking = [name for name in everything if any(each.source_of(name) is None for each in parents.values())]
    names = names_of(lead) if lacking else None
    if names is None:
        return []
    return [name for name in lacking if names.in_memory(name) not in names.state and not is_head(name)]


def with_names_of(lead: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Return `other` with the names of `lead`: by a prefix, else by transformers' tables; else unchanged.

    Raises BadInput for tensors that transformers treats as equal, but in another form.
    """
    if _fit(lead, set(other.tensors)):
        return other
    own = _by_prefix(lead, other)
    if own is not None:
        return RenamedCheckpoint(other, own)
    names = names_of(lead)
    if names is None:
        return other
    here = {names.today(name): name for name in lead.tensors}
    own = {here.get(names.today(name), names.today(name)): name for name in other.tensors}
    if len(own) < len(other.tensors):
        raise BadInput(
            f"{other.folder}: two of its tensors have the same name in transformers. "
            "Save it again with save_pretrained."
        )
    for twin, source in names.tied.items():
        twin, source = here.get(twin, twin), here.get(source, source)
        if twin in lead.tensors and twin not in own and source in own and not is_head(twin):
            own[twin] = own[source]
    if not _fit(lead, set(own)):
        _refuse_other_forms(lead, other, names)
    return RenamedCheckpoint(other, own)


def under_todays_names(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the names of this transformers in memory, by which adapters are saved."""
    names = names_of(checkpoint)
    own = {names.today(name): name for name in checkpoint.tensors} if names else {}
    same = len(own) < len(checkpoint.tensors) or own.keys() == checkpoint.tensors.keys()
    return checkpoint if same else RenamedCheckpoint(checkpoint, own)


def _fit(lead: Checkpoint, names: set[str]) -> bool:
    """Tell whether names are the lead's, except for a head that one of them lacks."""
    differing = lead.tensors.keys() ^ names
    return all(map(is_head, differing)) and len(differing) < 2


def _by_prefix(lead: Checkpoint, other: Checkpoint) -> dict[str, str] | None:
    """Return the tensors of `other` by the lead's names, if only one of them has a prefix."""
    for longer, shorter in ((lead, other), (other, lead)):
        sample = max((name for name in shorter.tensors if name not in longer.tensors), key=len, default="")
        for name in longer.tensors if sample else ():
            if name.endswith(f".{sample}"):
                prefix = name.removesuffix(sample)
                if longer is lead:
                    own = {prefix + old if prefix + old in lead.tensors else old: old for old in other.tensors}
                else:
                    stripped = {old: old.removeprefix(prefix) for old in other.tensors}
                    own = {new if new in lead.tensors else old: old for old, new in stripped.items()}
                if len(own) == len(other.tensors) and _fit(lead, set(own)):
                    return own
    return None


def _with_experts_of(template: Checkpoint, joined: Checkpoint) -> Checkpoint:
    """Return `joined` with single experts under the template's names, if it has them in one tensor per layer."""
    numbered = [name for name in template.tensors if _EXPERT.search(name)]
    if not numbered or any(map(_EXPERT.search, joined.tensors)) or (names := names_of(joined)) is None:
        return joined
    there = {names.in_memory(name): name for name in joined.tensors}
    groups: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for name in numbered:
        found, match = names.joined(name), _EXPERT.search(name)
        if found is None or match is None or found.target not in there or found.operations not in _IN_PIECES:
            return joined
        groups[there[found.target]].append((int(match[1]), found.part, name))
    own: dict[str, str | Part] = {name: name for name in joined.tensors if name not in groups}
    for source, experts in groups.items():
        start = 0
        for _, _, name in sorted(experts):
            own[name] = Part(source, start, template.tensors[name].shape)
            start += math.prod(template.tensors[name].shape)
        if start != joined.tensors[source].numel:
            raise BadInput(
                f"{joined.tensors[source].file}: tensor {source} has {joined.tensors[source].numel} elements, but "
                f"the experts of {template.folder} that make it up have {start}. Merge models of one architecture."
            )
    return RenamedCheckpoint(joined, own)


def _refuse_other_forms(lead: Checkpoint, other: Checkpoint, names: Names) -> None:
    """Raise BadInput if two checkpoints differ only in how savers divide the same weights into tensors."""
    sets = [{names.in_memory(name) for name in each.tensors if not is_head(name)} for each in (lead, other)]
    if sets[0] != sets[1]:
        return
    mine, theirs = (
        next(name for name in one.tensors if name not in two.tensors and not is_head(name) and not is_embedding(name))
        for one, two in ((lead, other), (other, lead))
    )
    apart = lead if any(names.joined(name) for name in lead.tensors) else other
    raise BadInput(
        f"{other.folder}: has {theirs}, but {lead.folder} has {mine}: the same weights, joined in one of them and not "
        f"in the other. Load {apart.folder} with transformers and save it by "
        "save_pretrained(FOLDER, save_original_format=False)."
    )


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
