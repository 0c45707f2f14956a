"""What publishing 16-bit checkpoints would do to task vectors: `python benchmarks/audit_of_16_bits.py BASE CT SFT`.

Audits one TIES merge (density 1, λ 1.5) of three checkpoint folders twice: in float32 as they are, and all rounded to
bfloat16 before. Prints a JSON line each: by model, the share of parameters that training changed, the share in sign
conflict, and of the largest 5% the share of parameters that they are (more where many are equal) and that are lost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import merge
from merge import Recipe


def converted(folder: Path, out: Path, dtype: torch.dtype) -> Path:
    """A copy of a checkpoint with its weights in another dtype."""
    shutil.copytree(folder, out)
    for file in out.glob("*.safetensors"):
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
    return out


def changed(folder: Path, base: Path) -> float:
    """The share of parameters that differ from the base's."""
    files = [{n: t for file in f.glob("*.safetensors") for n, t in load_file(file).items()} for f in (folder, base)]
    weights, origin = files
    differ = sum(int((tensor.float() != origin[name].float()).sum()) for name, tensor in weights.items())
    return differ / sum(tensor.numel() for tensor in weights.values())


def audited(base: Path, models: dict[str, Path]) -> dict[str, Any]:
    """What an audit says of each model, in short."""
    parts = {name: {"path": str(path)} for name, path in models.items()}
    described = {"method": "ties", "density": 1.0, "lambda": 1.5, "compute_dtype": "float32", "base": str(base)}
    report = merge.audit(Recipe.from_dict({**described, "models": parts}, where="recipe"))
    shown = {}
    for name, found in report["models"].items():
        top = found["top"]["5%"]
        shown[name] = {
            "changed": round(changed(models[name], base), 4),
            "in_conflict": round(found["share_in_conflict"], 4),
            "norm": round(found["norm"], 3),
            "top_5_share_of_parameters": round(top["share_of_parameters"], 4),
            "top_5_lost": round(top["share_lost_in_conflict"], 4),
        }
    return shown


def main() -> None:
    """Convert, audit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "ct", "sft"):
        parser.add_argument(name, type=Path)
    given = vars(parser.parse_args())
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            copies = {name: converted(path, Path(folder) / name, dtype) for name, path in given.items()}
            found = audited(copies.pop("base"), copies)
        print(json.dumps({"dtype": str(dtype).removeprefix("torch."), **found}), flush=True)


if __name__ == "__main__":
    main()
