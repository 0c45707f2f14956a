"""A Hugging Face folder, opened: its config and its table of tensors, in safetensors or in the older format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import BadInput
from merge.io.checkpoint import COMPUTED, Checkpoint
from merge.io.pickled import open_pickled, pickled_files
from merge.io.safetensors_header import read_header


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config and headers, no weights. Raises BadInput for a folder that is not a whole checkpoint."""
    if not folder.is_dir():
        raise BadInput(
            f"{folder}: no such folder; expected a Hugging Face checkpoint (config.json and model.safetensors)"
        )
    config = _json(folder / "config.json")
    if not isinstance(config, dict):
        raise BadInput(f"{folder / 'config.json'}: expected a JSON object")
    if not any(folder.glob("*.safetensors*")) and (old := pickled_files(folder)):
        return open_pickled(folder, config, old)
    tensors = {name: info for file in _weight_files(folder) for name, info in read_header(file).items()}
    dropped = [name for name in tensors if name.endswith(COMPUTED)]
    for name in dropped:
        del tensors[name]
    if not tensors:
        raise BadInput(f"{folder}: the weight files hold no tensors")
    return Checkpoint(folder, config, tensors)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        data = _json(index)
        weight_map = data.get("weight_map") if isinstance(data, dict) else None
        if not isinstance(weight_map, dict):
            raise BadInput(f"{index}: no weight_map")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.is_file():
                raise BadInput(f"{file}: missing, though {index.name} lists it; fetch the checkpoint again")
        named = {name for file in files for name in read_header(file)}
        for name, file_name in weight_map.items():
            if name not in named:
                raise BadInput(f"{folder / file_name}: tensor {name} is missing, though {index.name} lists it")
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    raise BadInput(f"{folder}: no model.safetensors, model.safetensors.index.json or pytorch_model.bin")


def _json(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f"{path}: missing; expected a Hugging Face checkpoint folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
