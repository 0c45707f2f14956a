"""The header of a safetensors file: tensors and their offsets. It rejects what safetensors rejects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput, listed, user_errors
from common.validation import parse_json, validate
from merge.io.checkpoint import ITEM_BYTES, TensorInfo
from merge.io.quantized import REMEDY

LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit

Natural = Annotated[int, Field(ge=0)]


class Entry(TypedDict):
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
    entries: dict[str, Entry] = validate(header, f"{damaged}: its header", dict[str, Entry])
    table, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in ITEM_BYTES:
            small = entry["dtype"].startswith(("F8", "F6", "F4"))
            remedy = f"its weights are quantized. {REMEDY}." if small else f"Use one of {listed(ITEM_BYTES)}."
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
