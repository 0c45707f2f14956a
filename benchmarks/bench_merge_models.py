"""What the merging benchmarks share.

Llama-shaped bf16 checkpoints of a given size, and processes that are timed whole.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SIZES = {  # hidden, intermediate, layers, vocabulary
    "tiny": (256, 688, 4, 4096),
    "270m": (1024, 2816, 16, 32000),
    "1b": (2048, 5632, 18, 32000),
    "7b": (4096, 11008, 32, 32000),
}
SHARD = 2_500_000_000  # bytes


class Measured(NamedTuple):
    """One process: seconds of wall and CPU time (its children's too), peak resident bytes."""

    wall: float
    cpu: float
    rss: int


def built(folder: Path, size: str) -> list[Path]:
    """base, a and b under `folder`.

    Made once, in a process of its own: what a parent holds counts as its children's peak memory.
    """
    found = [folder / size / name for name in ("base", "a", "b")]
    if not all((path / "config.json").is_file() for path in found):
        subprocess.run(python(__file__, str(folder), size), check=True)
    return found


def build(folder: Path, size: str) -> None:
    """Write the three checkpoints. a and b stand a small random step away from base."""
    import torch

    hidden, middle, layers, vocabulary = SIZES[size]
    shapes = shapes_of(hidden, middle, layers, vocabulary)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": middle,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": vocabulary,
        "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    written = [Shards(folder / size / name) for name in ("base", "a", "b")]
    for index, (name, shape) in enumerate(shapes.items()):
        theta = torch.randn(shape, generator=torch.Generator().manual_seed(index)) * 0.02
        for number, shards in enumerate(written):  # a step is the base's own noise, a tenth of it and shifted: cheap
            step = theta.view(-1).roll(7919 * number).view(shape) * 0.1 if number else 0
            shards.add(name, (theta + step).bfloat16())
    for shards in written:
        shards.close(config)


def shapes_of(hidden: int, middle: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """By the names of a Llama's parameters."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (middle, hidden) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (hidden, middle)}
        shapes |= {f"{at}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return shapes


class Shards:
    """A checkpoint that is written a shard at a time: 7 B parameters are not held at once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.held, self.names = folder, dict[str, Any](), dict[str, str]()
        self.count = 0

    def add(self, name: str, tensor: Any) -> None:
        self.held[name] = tensor
        if sum(tensor.nbytes for tensor in self.held.values()) >= SHARD:
            self.write()

    def write(self) -> None:
        from safetensors.torch import save_file

        self.count += 1
        file = f"model-{self.count:05}.safetensors"
        save_file(self.held, self.folder / file, metadata={"format": "pt"})
        self.names |= dict.fromkeys(self.held, file)
        self.held = {}

    def close(self, config: dict[str, Any]) -> None:
        if self.held:
            self.write()
        if self.count == 1:
            next(self.folder.glob("*.safetensors")).rename(self.folder / "model.safetensors")
        else:
            index = {"metadata": {}, "weight_map": self.names}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (self.folder / "config.json").write_text(json.dumps(config))


def weights(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's tensors."""
    return sorted(folder.glob("*.safetensors"))


def timed(command: list[str]) -> Measured:
    """Run a command to its end and measure the process. Raises RuntimeError with its stderr when it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {errors.decode()[-2000:]}")
    return Measured(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2])
