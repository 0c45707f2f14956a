"""The header of a safetensors file: which tensors it has, and where they lie."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import BadInput
from merge.io.checkpoint import ITEM_BYTES, TensorInfo


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensor table of a safetensors file, checked against the file's size. Raises BadInput for a damaged file."""
    damaged = f"{file}: damaged safetensors file"
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise BadInput(f"{damaged}: its header does not fit into its {size} bytes; fetch it again")
        try:
            header = json.loads(stream.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            spans = {name: tuple(entry["data_offsets"]) for name, entry in entries.items()}
            shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in entries.items()}
            dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{damaged}: its header cannot be read ({type(error).__name__}); fetch it again") from None
    table = {}
    for name, (start, end) in spans.items():
        if dtypes[name] not in ITEM_BYTES:
            raise BadInput(
                f"{file}: tensor {name} has dtype {dtypes[name]}; merging needs one of {', '.join(ITEM_BYTES)}"
            )
        info = TensorInfo(name, file, dtypes[name], shapes[name], 8 + length + start)
        if end - start != info.nbytes or start < 0:
            raise BadInput(f"{damaged}: tensor {name} spans {end - start} bytes where its shape needs {info.nbytes}")
        if 8 + length + end > size:
            raise BadInput(
                f"{damaged}: tensor {name} ends beyond the file ({size} bytes): it was cut short, fetch it again"
            )
        table[name] = info
    return table
