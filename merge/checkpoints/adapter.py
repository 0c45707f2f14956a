"""LoRA adapters, merged into their base while it is read: W + scale·B·A (Hu et al. 2022), row by row.

On an embedding, and where a weight is stored transposed, the product is transposed. DoRA gives each row of the sum its
own length (Liu et al. 2024). Modules that an adapter contains as a whole (`modules_to_save`, biases) replace the
base's. All of it is computed in float32 and rounded once to the base's dtype, as if the adapter were merged into the
checkpoint beforehand.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import regex
from pydantic import BaseModel, Field

from common.errors import BadInput, user_errors
from common.hub import ADAPTERS
from common.validation import read_json, validate
from merge.checkpoints.aliases import RenamedCheckpoint, names_of, under_todays_names, with_names_of
from merge.checkpoints.checkpoint import FLOATS, Checkpoint, WrappedCheckpoint, torch_dtype
from merge.checkpoints.folder import open_pickled, read_header
from merge.checkpoints.tensor_names import head_name, is_head, stack_of

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<side>[AB])\.weight|(?P<embedding>embedding_[AB]))")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.weight)?")
_WHOLE = re.compile(r"(?P<module>.+?)(?P<base>\.base_layer)?\.(?P<kind>weight|bias)")
MAGNITUDE = "magnitude"
# What peft computes otherwise than W + scale·B·A, or with further tensors: each must be off. `fan_in_fan_out` is none
# of them: peft decides by the layer and ignores the config (see is_transposed).
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
# Models all of whose layers are transposed, for layers without a bias.
_TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")


@dataclass(frozen=True)
class Factors:
    """Names of a weight's A and B, their product's factor, and the name of DoRA's row lengths.

    Of a linear layer, A is [rank, columns] and B [rows, rank]. Of an embedding, and of a weight that is stored
    transposed, A is [rank, rows] and B [columns, rank].
    """

    a: str
    b: str
    scale: float
    transposed: bool = False
    magnitude: str | None = None

    @property
    def parts(self) -> list[str]:
        return [self.a, self.b] + ([self.magnitude] if self.magnitude else [])


@dataclass(frozen=True)
class Change:
    """A changed tensor: the base's `source`, or the adapter's `whole` instead, plus `factors`."""

    source: str
    whole: str | None = None
    factors: Factors | None = None


class AdaptedCheckpoint(WrappedCheckpoint):
    """A checkpoint with a LoRA adapter on it. changes: what the adapter changes, by name."""

    def __init__(self, base: Checkpoint, lora: Checkpoint, changes: dict[str, Change]):
        super().__init__(
            base, {name: replace(base.tensors[change.source], name=name) for name, change in changes.items()}
        )
        self.lora, self.changes = lora, changes

    def read_own(self, name: str, start: int, stop: int) -> torch.Tensor:
        import torch

        checkpoint, stored = self._stored(name)
        dtype = torch_dtype(self.tensors[name].dtype)
        factors = self.changes[name].factors
        if factors is None:
            return checkpoint.read(stored, start, stop).to(dtype)
        columns = self.tensors[name].shape[-1]
        first, last = start // columns, math.ceil(stop / columns)
        plain = checkpoint.read(stored, first * columns, last * columns).to(dtype).view(-1, columns)
        summed = plain.to(torch.promote_types(dtype, torch.float32)) + self._product(factors, first, last, columns)
        if factors.magnitude is not None:
            lengths = self.lora.read(factors.magnitude, first, last).float()
            summed *= (lengths / torch.linalg.norm(summed, dim=1)).view(-1, 1)
        return summed.view(-1)[start - first * columns : stop - first * columns].to(dtype)

    def _stored(self, name: str) -> tuple[Checkpoint, str]:
        change = self.changes[name]
        return (self.inner, change.source) if change.whole is None else (self.lora, change.whole)

    def _product(self, factors: Factors, first: int, last: int, columns: int) -> torch.Tensor:
        """Compute rows [first, last) of scale·B·A, or of its transpose."""
        import torch

        rank = self.lora.tensors[factors.a].shape[0]
        if factors.transposed:
            rows = self.lora.tensors[factors.a].shape[1]
            a = torch.stack([self.lora.read(factors.a, i * rows + first, i * rows + last) for i in range(rank)])
            b = self.lora.read(factors.b, 0, columns * rank).view(columns, rank)
            return (b.float() @ a.float()).T * factors.scale
        a = self.lora.read(factors.a, 0, rank * columns).view(rank, columns)
        b = self.lora.read(factors.b, first * rank, last * rank).view(-1, rank)
        return (b.float() @ a.float()).mul_(factors.scale)

    def own_parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        """Return the base's tensor, or the adapter's instead, and the factors on it."""
        checkpoint, stored = self._stored(name)
        factors = self.changes[name].factors
        return checkpoint.parts(stored) + [(self.lora, part) for part in (factors.parts if factors else ())]

    @property
    def files(self) -> set[Path]:
        return self.inner.files | self.lora.files

    def close(self) -> None:
        self.inner.close()
        self.lora.close()


def adapted(base: Checkpoint, folder: Path) -> Checkpoint:
    """Return `base` with the LoRA adapter in `folder`.

    Raises BadInput for adapters of other kinds, for what peft would read otherwise, and for modules that the base does
    not have.
    """
    path = folder / "adapter_config.json"
    with user_errors():
        config = read_config(path)
        lora = _weights(folder)
        named = base
        if not _has_modules(base, lora):
            named = under_todays_names(base)
            if not _has_modules(named, lora):
                lora = _under_todays_modules(base, lora)
        return with_names_of(base, AdaptedCheckpoint(named, lora, _Adapter(named, lora, config, path).changes()))


def _modules(lora: Checkpoint) -> dict[str, str]:
    """Return the modules of an adapter's factors, by the names of its tensors."""
    matches = {name: _FACTOR.fullmatch(name.removeprefix(_PREFIX)) for name in lora.tensors}
    return {name: match["module"] for name, match in matches.items() if match}


def _has_modules(base: Checkpoint, lora: Checkpoint) -> bool:
    return all(base.source_of(f"{module}.weight") is not None for module in _modules(lora).values())


def _under_todays_modules(base: Checkpoint, lora: Checkpoint) -> Checkpoint:
    """Rename the modules of an adapter that another version of transformers saved to their present names."""
    names = names_of(base)
    if names is None:
        return lora
    own = {}
    for name in lora.tensors:
        short = name.removeprefix(_PREFIX)
        match = _FACTOR.fullmatch(short) or _MAGNITUDE.fullmatch(short) or _WHOLE.fullmatch(short)
        module = match["module"] if match else short
        today = names.today(f"{module}.weight").removesuffix(".weight")
        own[name.replace(module, today, 1)] = name
    return lora if len(own) < len(lora.tensors) else RenamedCheckpoint(lora, own)


def _weights(folder: Path) -> Checkpoint:
    file, pickled = (folder / name for name in ADAPTERS)
    if file.is_file():
        return Checkpoint(folder, {}, read_header(file)[0])
    if pickled.is_file():
        return open_pickled(folder, {}, [pickled])
    raise BadInput(f"{file}: no such file; expected a LoRA folder as peft saves it.")


class _Adapter:
    """An adapter's tensors: factors by module, whole tensors by the base's names for them.

    own: modules of which peft trained a copy. replaced: tensors that peft loads into the base itself, so that a tied
    head sees them too.
    """

    def __init__(self, base: Checkpoint, lora: Checkpoint, config: LoraConfig, path: Path):
        self.base, self.lora, self.config, self.path = base, lora, config, path
        self.file = next((info.file for info in lora.tensors.values()), path)
        self.sides: dict[str, dict[str, str]] = {}
        self.own: dict[str, str] = {}
        self.replaced: dict[str, str] = {}
        self.untied: tuple[str, ...] = ()
        for name in lora.tensors:
            self._sort(name)
        if not (self.sides or self.own or self.replaced):
            raise BadInput(f"{self.file}: has no LoRA factors. Save the adapter again with peft.")
        for module in config.modules_to_save or ():
            if not any(name.rpartition(".")[0].endswith(module) for name in self.own):
                raise BadInput(
                    f"{self.file}: has no module {module}, which modules_to_save of {path.name} lists. "
                    "Save the adapter again."
                )

    def _sort(self, name: str) -> None:
        info, short = self.lora.tensors[name], name.removeprefix(_PREFIX)
        if name.startswith(_PREFIX) and (match := _FACTOR.fullmatch(short) or _MAGNITUDE.fullmatch(short)):
            kind = match.re is _FACTOR and (match["side"] or match["embedding"]) or MAGNITUDE
            if info.dtype not in FLOATS or len(info.shape) != (1 if kind == MAGNITUDE else 2):
                what = "a vector" if kind == MAGNITUDE else "a matrix"
                raise BadInput(
                    f"{self.file}: tensor {name} must be {what} of floats, got {info.dtype} {list(info.shape)}."
                )
            self.sides.setdefault(match["module"], {})[kind] = name
        elif name.startswith(_PREFIX) and "lora_" not in short and (match := _WHOLE.fullmatch(short)):
            own = match["base"] is None and self.config.saves(match["module"])
            (self.own if own else self.replaced)[f"{match['module']}.{match['kind']}"] = name
        else:
            raise BadInput(f"{self.file}: tensor {name} does not belong to a LoRA. Merge this adapter with peft first.")

    def changes(self) -> dict[str, Change]:
        """Return the changes of the base's tensors, by name."""
        self._untie()
        factors = {f"{module}.weight": self._factors(module, names) for module, names in self.sides.items()}
        if both := sorted(factors.keys() & self.own):
            raise BadInput(
                f"{self.file}: contains both full weights and LoRA factors for {both[0]}. Remove one of them."
            )
        changes = {}
        for name in self._names():
            source = self.base.source_of(name)
            whole = self.own.get(name) or self.replaced.get(name)
            if source is None:
                raise self._of_another_base(name)
            if whole is not None:
                self._check_whole(whole, source)
            changes[name] = Change(source, whole, factors.get(name))
        return changes

    def _untie(self) -> None:
        """Untie head and embedding if the adapter changes one of them: in a run, the other stays unchanged.

        The merge then has its own head. With `ensure_weight_tying` peft changes both alike, if their scales agree.
        """
        named = next(filter(is_head, self._names()), None)
        head = named or head_name(self.base.config, self.base.tensors)
        embedding = self.base.source_of(head)
        if embedding is None or embedding == head:
            return
        if shared := self.replaced.pop(head, None) or self.replaced.get(embedding):
            self.replaced[embedding] = shared
        scales = [rank_and_scale(self.config, name.removesuffix(".weight"), self.path) for name in (head, embedding)]
        if self.config.ensure_weight_tying and scales[0] == scales[1]:
            self.own.pop(head, None)
            self.sides.pop(head.removesuffix(".weight"), None)
        elif {head, embedding} & {*self.own, *(f"{module}.weight" for module in self.sides)}:
            self.untied = (head, embedding)
            if shared:
                self.replaced[head] = shared

    def _names(self) -> list[str]:
        """Return the names of tensors that change, and of those that are no longer tied."""
        names = [*(f"{module}.weight" for module in self.sides), *self.own, *self.replaced, *self.untied]
        return list(dict.fromkeys(names))

    def _factors(self, module: str, names: dict[str, str]) -> Factors:
        """Return the factors of one module. Raises BadInput if they do not fit each other, the config or the base."""
        embedding = "embedding_A" in names or "embedding_B" in names
        sides = ("embedding_A", "embedding_B") if embedding else ("A", "B")
        if set(names) - {MAGNITUDE} != set(sides):
            raise BadInput(f"{self.file}: module {module} must have lora_A and lora_B, got {', '.join(sorted(names))}.")
        source = self.base.source_of(f"{module}.weight")
        turned = embedding or (source is not None and is_transposed(self.base, source))
        if (MAGNITUDE in names) != self.config.use_dora or (turned and self.config.use_dora):
            fault = f"has {', '.join(sorted(names))}"
            if turned:
                fault = "is an embedding" if embedding else "is stored transposed (Conv1D)"
            says = f"{self.path}: use_dora is {self.config.use_dora}"
            raise BadInput(f"{says}, but module {module} {fault}. Merge this adapter into its base with peft first.")
        a, b = (self.lora.tensors[names[side]].shape for side in sides)
        rank, scale = rank_and_scale(self.config, module, self.path)
        if not a[0] == b[1] == rank:
            says = f"{self.path.name} states rank {rank}. Save the adapter again with peft."
            raise BadInput(f"{self.file}: module {module} has A of rank {a[0]} and B of rank {b[1]}; {says}")
        shape = (a[1], b[0]) if turned else (b[0], a[1])
        if source is None or self.base.tensors[source].shape != shape:
            raise self._of_another_base(f"{module} ({shape[0]} × {shape[1]})")
        magnitude = names.get(MAGNITUDE)
        if magnitude is not None and self.lora.tensors[magnitude].shape != shape[:1]:
            raise self._of_another_base(f"{module}, by its magnitudes,")
        return Factors(names[sides[0]], names[sides[1]], scale, turned, magnitude)

    def _check_whole(self, name: str, source: str) -> None:
        mine, other = self.lora.tensors[name], self.base.tensors[source]
        if mine.dtype not in FLOATS or mine.shape != other.shape:
            raise BadInput(
                f"{self.file}: tensor {name} is {mine.dtype} {list(mine.shape)}, but {source} of {self.base.folder} is "
                f"{list(other.shape)}. If the adapter resized its base, merge it into the base with peft first."
            )

    def _of_another_base(self, what: str) -> BadInput:
        return BadInput(
            f"{self.file}: module {what} is not in {self.base.folder}: "
            "the adapter belongs to another base. Give that base."
        )


class LoraConfig(BaseModel):
    """The keys of adapter_config.json that decide the weights, with peft's defaults."""

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


def is_transposed(checkpoint: Checkpoint, name: str) -> bool:
    """Tell whether a linear layer's weight is stored as [inputs, outputs], as by Conv1D of GPT-2 and its descendants.

    The bias decides: it has one number per output. Neither a weight's name nor an adapter's `fan_in_fan_out`, which
    peft sets from the last layer, is reliable. A square weight is treated like the others of its stack.
    """
    own = _by_bias(checkpoint, name)
    stack = stack_of(name)
    if own is not None or stack is None:
        return own is True
    others = {_by_bias(checkpoint, other) for other in checkpoint.tensors if other.startswith(stack)} - {None}
    return others == {True} if others else checkpoint.config.get("model_type") in _TRANSPOSED


def _by_bias(checkpoint: Checkpoint, name: str) -> bool | None:
    """Decide by the bias; None if there is no bias, or if it fits both ways."""
    weight, bias = (checkpoint.tensors.get(f"{name.removesuffix('weight')}{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None or len(weight.shape) != 2 or weight.shape[0] == weight.shape[1]:
        return None
    return {weight.shape[0]: False, weight.shape[1]: True}.get(bias.numel)
