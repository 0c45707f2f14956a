"""A random Llama, its tokenizer, blocks and items: made once, shared by all steps."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import write_jsonl
from tests.architectures.tokenizer_kinds import lines, tokenizer
from train.settings import CtBlocksSettings, SftBlocksSettings, TrainingSettings

# Weights far from 0, so that a wrong mask shows in a loss. On a GPU a model that outweighs what a process allocates
# besides; on a CPU a few thousand parameters.
SHAPES = {
    "cuda": {
        "hidden_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "intermediate_size": 2816,
        "initializer_range": 0.05,
    },
    "cpu": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "initializer_range": 0.2,
    },
}
BLOCK = {"cuda": 512, "cpu": 64}
STEPS, BLOCKS = 4, 8  # of a training, and of one step


@dataclass(frozen=True)
class Prepared:
    """folder: holds `model`, `ct_blocks`, `sft_blocks` and `tasks`."""

    folder: Path
    device: str

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model)

    def items(self) -> list[dict[str, Any]]:
        file = self.folder / "tasks" / "next_xx.test.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def ties(self, other: Path, density: float) -> dict[str, Any]:
        """A recipe of TIES with slack over the model, as base and protected parent, and another."""
        models = {"a": {"path": other, "density": density}, "b": {"path": self.moved(), "density": density}}
        return {"method": "ties_sv", "base": self.model, "slack": 1.0, "protect": ["b"], "models": models}

    def moved(self) -> Path:
        """A copy of the model whose weights have moved a little, as training would move them."""
        import torch
        from transformers import AutoModelForCausalLM

        folder = self.folder / "moved"
        if not folder.is_dir():
            model: Any = AutoModelForCausalLM.from_pretrained(self.model)
            draw = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for tensor in model.parameters():
                    tensor += 1e-3 * torch.randn(tensor.shape, generator=draw)
            model.save_pretrained(folder)
            self.tokenizer().save_pretrained(folder)
        return folder


def settings_of(made: Prepared) -> TrainingSettings:
    """A training of a few steps of eight blocks."""
    block = BLOCK[made.device]
    return TrainingSettings(
        tokens=STEPS * BLOCKS * block, schedule_tokens=STEPS * BLOCKS * block, batch_tokens=BLOCKS * block,
        block_size=block, learning_rate=1e-3, min_lr_ratio=0.1, warmup_ratio=0.1, weight_decay=0.1, seed=0,
    )  # fmt: skip


def prepare(folder: Path, device: str) -> Prepared:
    """Everything that steps share, made by the first of them."""
    made = Prepared(folder / "prepared", device)
    if (made.folder / "whole").exists():
        return made
    shutil.rmtree(made.folder, ignore_errors=True)  # a step before has failed to make it whole
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer("qwen")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), max_position_embeddings=2048, tie_word_embeddings=True, eos_token_id=words.eos_token_id,
        bos_token_id=None, **SHAPES[device],
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(made.model)
    words.save_pretrained(made.model)
    write_data(made)
    (made.folder / "whole").touch()
    return made


def write_data(made: Prepared) -> None:
    """Blocks of running text and of packed examples, and items."""
    from train.data import packing
    from train.data.corpus import build
    from train.settings import CorpusOptions, CorpusSettings

    folder, settings = made.folder, settings_of(made)
    count = max(120, settings.tokens // 50)  # documents: enough that some fall into each split
    for name, seed in (("mine", 1), ("english", 2)):
        (folder / f"{name}.txt").write_text("\n\n".join(lines(seed, count)), encoding="utf-8")
    options = CorpusOptions(path=str(folder / "mine.txt"), english_path=str(folder / "english.txt"))
    build.build(
        CorpusSettings(source="files", language="xx", dev=0.1, test=0.1, seed=0),
        options,
        folder / "corpus",
        folder / "work",
    )
    words = [line.split() for line in lines(3, 200)]
    examples = [{"prompt": f"{row[0]} {row[1]}\nAnswer:", "output": row[4]} for row in words]
    items = [
        {"id": f"next.{number}", "prompt": f"{' '.join(row[:4])}\nAnswer:", "choices": row[4:8], "answer": 0,
         "trivial": 1, "family": "next", "language": "xx"}
        for number, row in enumerate(words[:40])
    ]  # fmt: skip
    for place in ("items", "tasks", "ct_blocks", "sft_blocks"):
        (folder / place).mkdir()
    write_jsonl(folder / "items" / "sft.jsonl", examples)
    write_jsonl(folder / "tasks" / "next_xx.test.jsonl", items)
    ct = CtBlocksSettings(
        language="xx", schedule_tokens=settings.tokens, block_size=settings.block_size, english_fraction=0.25, seed=0
    )
    packing.ct_blocks(folder / "corpus", made.model, ct, folder / "ct_blocks", folder / "work")
    sft = SftBlocksSettings(tokens=settings.tokens, block_size=settings.block_size, replay_fraction=0.0, seed=0)
    packing.sft_blocks(folder / "items", None, made.model, sft, folder / "sft_blocks", folder / "work")
