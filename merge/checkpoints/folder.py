"""Open a Hugging Face folder: its config and its table of tensors.

Weights are in safetensors, whose header is checked as strictly as by safetensors itself, or in the older .bin format,
which torch maps with weights_only and so without running code of the file. Quantized weights are rejected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput, line_of, listed, user_errors
from common.validation import WeightIndex, inside, parse_json, read_json, validate
from merge.checkpoints.checkpoint import COMPUTED, ITEM_BYTES, Checkpoint, TensorInfo, torch_dtype
from merge.checkpoints.tensor_names import is_embedding, is_head

if TYPE_CHECKING:
    import torch

FORMATS = ("model.safetensors", "pytorch_model.bin")  # the first one that exists is read, as a file or by its index
INDEX = ".index.json"
PIECE = 1 << 20  # elements
LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
Natural = Annotated[int, Field(ge=0)]
QUANTIZED_REMEDY = "Merge the 16-bit weights that it was made from, or dequantize it and save it again"
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
# What quantizers write beside a weight, or in its place: GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8, MXFP4, HQQ,
# AQLM, VPTQ, quanto.
_QUANTIZER_TENSORS = re.compile(
    r".*(?:\.(?:qweight|qzeros|g_idx|SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+"
    r"|weight_packed|weight_scale|weight_scale_inv|weight_scale_2|weight_global_scale|weight_zero_point|W_q|codebooks"
    r"|centroids|weight\._data|weight_u?int\d)|_(?:blocks|packed))"
)
_PACKED = ("U8", "I8", "I32")  # dtypes of packed weights


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config and headers, no weights. Raises BadInput for an incomplete checkpoint."""
    with user_errors():
        if not folder.is_dir():
            raise BadInput(
                f"{folder}: no such folder; expected a Hugging Face checkpoint (config.json and model.safetensors)."
            )
        _reject_adapter(folder)
        config = read_json(folder / "config.json", expected="the config of a Hugging Face checkpoint")
        files, index = weight_files(folder)
        if files[0].suffix == ".bin":
            checkpoint: Checkpoint = _open_pickled(folder, config, files)
        else:
            checkpoint = Checkpoint(folder, config, _safetensors_table(files, index))
        for name in [name for name in checkpoint.tensors if name.endswith(COMPUTED)]:
            del checkpoint.tensors[name]
        if not checkpoint.tensors:
            raise BadInput(f"{folder}: its weight files contain no tensors. Download the checkpoint again.")
        check_not_quantized(checkpoint)
        _drop_tied_head(checkpoint)
    return checkpoint


def _reject_adapter(folder: Path) -> None:
    """Reject the folder of a LoRA instead of a checkpoint; a checkpoint may have an adapter next to it."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file() or any((folder / f"{name}{end}").is_file() for name in FORMATS for end in ("", INDEX)):
        return
    base = read_json(adapter).get("base_model_name_or_path")
    raise BadInput(
        f"{folder}: expected a checkpoint, got a LoRA "
        f"adapter{f' of {base}' if isinstance(base, str) and base else ''}. Set its "
        "base as `path` and this folder as `adapter` (in a mergekit config `model: base+adapter`)."
    )


def _open_pickled(folder: Path, config: dict[str, Any], files: list[Path]) -> Checkpoint:
    try:
        return open_pickled(folder, config, files)
    except BadInput as error:  # tensors of a quantizer's own kind
        if (quantizer := quantizer_of(config)) is None:
            raise
        raise BadInput(f"{error} Its config names the quantizer {quantizer}. {QUANTIZED_REMEDY}.") from None


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Return the folder's weight files, and the file of each tensor of an index (empty if there is none)."""
    for single in FORMATS:
        if (folder / single).is_file():  # as transformers has it: before an index, which is then of something else
            return [folder / single], {}
        index = folder / f"{single}{INDEX}"
        if index.is_file():
            weight_map: dict[str, str] = read_json(index, WeightIndex)["weight_map"]
            if not weight_map:
                raise BadInput(f"{index}: weight_map is empty. Download the checkpoint again.")
            files = {name: inside(folder, name, f"{index}: weight_map") for name in sorted(set(weight_map.values()))}
            for name, file in files.items():
                if Path(name).suffix != Path(single).suffix:
                    raise BadInput(f"{index}: weight_map: expected names of files such as {single}, got {name!r}.")
                if not file.is_file():
                    raise BadInput(f"{file}: no such file, but {index.name} lists it. Download the checkpoint again.")
            return list(files.values()), weight_map
    raise BadInput(
        f"{folder}: no weights (model.safetensors, model.safetensors.index.json or pytorch_model.bin). Save them there."
    )


def _safetensors_table(files: list[Path], index: dict[str, str]) -> dict[str, TensorInfo]:
    """Join the tables of all files, with further names of tensors unless these are heads."""
    table: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    for file in files:
        found, names = read_header(file)
        aliases |= names
        if twice := sorted(table.keys() & found):
            raise BadInput(
                f"{file}: tensor {twice[0]} is also in {table[twice[0]].file.name}. Download the checkpoint again."
            )
        table |= found
    for name, file_name in index.items():
        if name not in table:
            raise BadInput(
                f"{files[0].parent / file_name}: has no tensor {name}, but the index lists it. "
                "Download the checkpoint again."
            )
    for name, stored in aliases.items():
        if not is_head(name):
            table[name] = replace(table[stored], name=name)
    for stored in aliases.values():  # a tied head is left out, as other savers do
        if is_head(stored) and any(map(is_embedding, aliases)):
            table.pop(stored, None)
    return table


def _drop_tied_head(checkpoint: Checkpoint) -> None:
    """Remove a head that is a copy of the embedding from the table.

    As in transformers, two copies of a tied tensor are one if they are equal; else the model is not tied, whatever its
    config states. If the config states nothing, the files decide.
    """
    heads, source = [name for name in checkpoint.tensors if is_head(name)], checkpoint.embedding
    if checkpoint.says_tied is False or len(heads) != 1 or source is None:
        return
    import torch

    head, embedding = checkpoint.tensors[heads[0]], checkpoint.tensors[source]
    if (head.shape, head.dtype) == (embedding.shape, embedding.dtype) and all(
        torch.equal(*(checkpoint.read(name, start, min(start + PIECE, head.numel)) for name in (heads[0], source)))
        for start in range(0, head.numel, PIECE)
    ):
        del checkpoint.tensors[heads[0]]


class HeaderEntry(TypedDict):
    """A tensor in the header. data_offsets: first byte and the one after the last, from the header's end."""

    dtype: str
    shape: list[Natural]
    data_offsets: Annotated[list[Natural], Field(min_length=2, max_length=2)]


def read_header(file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read the tensor table of a safetensors file, checked against the file's size, and aliases of its tensors.

    Of tensors that share memory, safetensors' `save_model` writes one, and the names of the others into the metadata.
    Raises BadInput for a damaged file.
    """
    damaged = f"{file}: damaged safetensors file"
    with user_errors(), file.open("rb") as stream:
        size = file.stat().st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise BadInput(f"{damaged}: its header does not fit into its {size} bytes. Download the file again.")
        if length > LARGEST_HEADER:
            raise BadInput(f"{damaged}: its header may have {LARGEST_HEADER} bytes, got {length}. Save the file again.")
        text = stream.read(length)
    header: dict[str, Any] = parse_json(text, f"{damaged}: its header")
    metadata: dict[str, str] = validate(header.pop("__metadata__", {}), f"{damaged}: __metadata__", dict[str, str])
    entries: dict[str, HeaderEntry] = validate(header, f"{damaged}: its header", dict[str, HeaderEntry])
    table, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in ITEM_BYTES:
            small = entry["dtype"].startswith(("F8", "F6", "F4"))
            remedy = f"its weights are quantized. {QUANTIZED_REMEDY}." if small else f"Use one of {listed(ITEM_BYTES)}."
            raise BadInput(f"{file}: tensor {name} has dtype {entry['dtype']}{': ' if small else '. '}{remedy}")
        start, end_before = entry["data_offsets"][0], end
        end = entry["data_offsets"][1]
        info = TensorInfo(name, file, entry["dtype"], tuple(entry["shape"]), 8 + length + start)
        if end - start != info.nbytes:
            raise BadInput(
                f"{damaged}: tensor {name} must span {info.nbytes} bytes, got {end - start}. Download it again."
            )
        if start != end_before:
            raise BadInput(f"{damaged}: tensor {name} must begin at byte {end_before}, got {start}. Download it again.")
        table[name] = info
    if 8 + length + end > size:
        raise BadInput(f"{damaged}: its tensors end beyond its {size} bytes, so it was cut short. Download it again.")
    if 8 + length + end < size:
        raise BadInput(f"{damaged}: {size - 8 - length - end} bytes belong to no tensor. Download it again.")
    aliases = {name: stored for name, stored in metadata.items() if stored in table and name not in table}
    return {name: table[name] for name in entries}, aliases


@dataclass
class PickledCheckpoint(Checkpoint):
    """Tensors mapped from pytorch_model*.bin."""

    mapped: dict[str, torch.Tensor] = field(default_factory=dict)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.mapped[name].reshape(-1)[start:stop].clone()

    def close(self) -> None:
        self.mapped.clear()


def open_pickled(folder: Path, config: dict[str, Any], files: list[Path]) -> PickledCheckpoint:
    """Map the files. Raises BadInput for a damaged file, and for one with more than plain tensors by name."""
    import torch

    mapped: dict[str, torch.Tensor] = {}
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # whatever a damaged or foreign pickle leads to; no code of it runs
            reason = line_of(error)[:120]
            raise BadInput(f"{file}: cannot be read ({reason}). Convert it to safetensors.") from None
        if not isinstance(content, dict):
            raise BadInput(f"{file}: expected a mapping of names to tensors, got {type(content).__name__}.")
        for name, tensor in content.items():
            mapped[name] = tensor
            tensors[name] = _pickled_info(file, name, tensor)
    return PickledCheckpoint(folder, config, tensors, mapped=mapped)


def _pickled_info(file: Path, name: Any, tensor: Any) -> TensorInfo:
    """Describe a plain tensor of numbers. Raises BadInput for anything else."""
    import torch

    codes = {torch_dtype(code): code for code in ITEM_BYTES}
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise BadInput(f"{file}: expected a tensor under {name!r}, got {type(tensor).__name__}.")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in codes:
        kind = "without values" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}".replace("torch.", "")
        raise BadInput(f"{file}: tensor {name} must be dense and one of {listed(ITEM_BYTES)}, got {kind}.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BadInput(
            f"{file}: tensor {name} {list(tensor.shape)} is larger than its stored data. Save the checkpoint again."
        )
    return TensorInfo(name, file, codes[tensor.dtype], tuple(tensor.shape), 0)


def quantization_settings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return the quantization settings of a config, or of a part."""
    for part in (config, *(value for key, value in config.items() if key.endswith("_config"))):
        if isinstance(part, Mapping):
            yield from (part[key] for key in QUANTIZATION_KEYS if isinstance(part.get(key), Mapping))


def quantizer_of(config: Mapping[str, Any]) -> str | None:
    """Return the name of the quantizer, if a config has one."""
    return next((str(each.get("quant_method") or "a quantizer") for each in quantization_settings(config)), None)


def without_quantization(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the same weights without quantization."""
    return {
        key: without_quantization(value) if isinstance(value, dict) and key.endswith("_config") else value
        for key, value in config.items()
        if key not in QUANTIZATION_KEYS
    }


def check_not_quantized(checkpoint: Checkpoint) -> None:
    """Raise BadInput for weights that are quantized, or are quantized at run time.

    Tensors decide, as a config may be out of date.
    """
    named = quantizer_of(checkpoint.config)
    for name, info in checkpoint.tensors.items():
        packed = info.dtype in _PACKED and len(info.shape) > 1 and (named is not None or name.endswith(".weight"))
        if packed or _QUANTIZER_TENSORS.fullmatch(name):
            by = f" by {named}" if named else ""
            raise BadInput(
                f"{checkpoint.folder}: its weights are quantized{by} (tensor {name} is {info.dtype} "
                f"{list(info.shape)}) and cannot be merged. {QUANTIZED_REMEDY}."
            )
    if named == "bitnet":
        raise BadInput(
            f"{checkpoint.folder / 'config.json'}: quantization_config: a model that quantizes its weights at "
            "run time (bitnet) cannot be merged: the result would not be such a model. Merge models without it."
        )
