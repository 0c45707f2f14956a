"""Open a Hugging Face folder: its config and its table of tensors, in safetensors or in the older format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import BadInput, user_errors
from common.validation import WeightIndex, inside, read_json
from merge.io.checkpoint import COMPUTED, Checkpoint, TensorInfo
from merge.io.pickled import open_pickled
from merge.io.quantized import REMEDY, check_not_quantized, method
from merge.io.safetensors_header import read_header
from merge.io.token_tensors import is_embedding, is_head

FORMATS = ("model.safetensors", "pytorch_model.bin")  # the first one that exists is read, as a file or by its index
INDEX = ".index.json"
PIECE = 1 << 20  # elements


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config and headers, no weights. Raises BadInput for an incomplete checkpoint."""
    with user_errors():
        if not folder.is_dir():
            raise BadInput(
                f"{folder}: no such folder; expected a Hugging Face checkpoint (config.json and model.safetensors)."
            )
        _refuse_adapter(folder)
        config = read_json(folder / "config.json", expected="the config of a Hugging Face checkpoint")
        files, index = weight_files(folder)
        if files[0].suffix == ".bin":
            checkpoint: Checkpoint = _pickled(folder, config, files)
        else:
            checkpoint = Checkpoint(folder, config, _tensors(files, index))
        for name in [name for name in checkpoint.tensors if name.endswith(COMPUTED)]:
            del checkpoint.tensors[name]
        if not checkpoint.tensors:
            raise BadInput(f"{folder}: its weight files contain no tensors. Download the checkpoint again.")
        check_not_quantized(checkpoint)
        _drop_tied_head(checkpoint)
    return checkpoint


def _refuse_adapter(folder: Path) -> None:
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


def _pickled(folder: Path, config: dict[str, Any], files: list[Path]) -> Checkpoint:
    try:
        return open_pickled(folder, config, files)
    except BadInput as error:  # tensors of a quantizer's own kind
        if (quantizer := method(config)) is None:
            raise
        raise BadInput(f"{error} Its config names the quantizer {quantizer}. {REMEDY}.") from None


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


def _tensors(files: list[Path], index: dict[str, str]) -> dict[str, TensorInfo]:
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
