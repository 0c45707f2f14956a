"""A child process for test_memory.py: measures the peak memory of trainings, of scoring and of tuning.

`python measure_memory.py FOLDER` reads FOLDER/cases.json and prints one line of JSON by case: bytes of the process at
its peak (VmHWM, which the kernel counts) above what it held before, after a run of the same kind with a tiny model had
loaded all code. Of a training these are its steps, which a GPU would hold: a model is loaded and published in main
memory. MALLOC_MMAP_THRESHOLD_ in the environment makes the C library return freed tensors at once.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from merge.loops.machine_code import compiled_loops
from merge.loops.tables import EXACT

LIBC = ctypes.CDLL(None)


def resident(field: str) -> int:
    """A field of this process's status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    """Set VmHWM back to what this process holds."""
    gc.collect()
    LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def drop_file_pages() -> None:
    """Give back pages of files that are mapped: of a model in fewer bits, the weights that it was made from.

    Tensors that still are a part of the file read their pages again.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            assert not LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def peak(work: Callable[[], int | None]) -> int:
    """Bytes that `work` holds at its peak, above what is held before. work: returns the peak if it knows it."""
    reset_peak()
    before = resident("VmRSS")
    return (work() or resident("VmHWM")) - before


def make_model(folder: Path, shape: dict[str, Any], seed: int = 0) -> Path:
    """A random Llama of a shape, with a tokenizer of its vocabulary's size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if not folder.is_dir():
        torch.manual_seed(seed)
        names = {
            "vocabulary": "vocab_size",
            "hidden": "hidden_size",
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "feed_forward": "intermediate_size",
            "tied": "tie_word_embeddings",
        }
        config = LlamaConfig(**{names[name]: value for name, value in shape.items()}, max_position_embeddings=1024)
        LlamaForCausalLM(config).save_pretrained(folder)
        make_tokenizer(folder)
    return folder


def make_tokenizer(folder: Path) -> None:
    """A tokenizer with a token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<eos>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def train(model: Path, case: dict[str, Any]) -> int:
    """Two steps of a training on random tokens: the second one has the optimizer's state. Returns their peak."""
    from train import hf_trainer, trainer
    from train.settings import Compute, TrainingSettings

    batch, block, steps = case["batch_tokens"], case["block_size"], case.get("steps", 2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = np.random.default_rng(0).integers(0, 256, (steps * batch // block, block)).astype(np.uint16)
        np.save(folder / "blocks.npy", rows)
        given = {"tokens": steps * batch, "schedule_tokens": 30 * batch, "batch_tokens": batch, "block_size": block}
        rate = {"learning_rate": 1e-5, "min_lr_ratio": 0.1, "warmup_ratio": 0.1, "weight_decay": 0.0, "seed": 0}
        low = {"rank": case["lora_rank"], "alpha": 16, "dropout": 0.0, "targets": "all-linear"}
        how = dict(case["compute"])
        rate["precision"] = how.pop("precision", "fp32")
        more = {**case.get("saving", {}), **({"lora": low} if case["lora_rank"] else {})}
        settings = TrainingSettings(**given, **rate, **more)
        compute = Compute(threads=1, **how)
        seen: list[int] = []
        train_steps = hf_trainer.Trainer.train

        def measured(self: Any, **how: Any) -> None:
            if settings.base_dtype != "float32":
                drop_file_pages()
            reset_peak()
            try:
                train_steps(self, **how)
            finally:
                seen.append(resident("VmHWM"))

        with mock.patch.object(hf_trainer.Trainer, "train", measured):
            trainer.train(model, folder, settings, folder / "out", work=folder / "work", compute=compute)
        return seen[0]


def tasks(case: dict[str, Any]) -> Any:
    """Held-out text, of which each document fills a window."""
    from eval import task_set

    folder = Path(tempfile.mkdtemp())
    text = "".join(chr(97 + number % 26) for number in range(case["window"] - 1))
    lines = (json.dumps({"id": str(number), "text": text}) + "\n" for number in range(case["documents"]))
    (folder / "nya.test.jsonl").write_text("".join(lines))
    return task_set.prepare(None, folder, split="test", limit=None, max_chars=None)


def score(model: Path, case: dict[str, Any]) -> None:
    from eval import harness

    harness.evaluate_folder(model, tasks(case), batch_tokens=case["batch_tokens"], device="cpu", dtype=case["dtype"])


def tune(model: Path, case: dict[str, Any]) -> None:
    """A merge of two models, made and scored as pipeline/stages/tuning.py does."""
    from transformers import AutoTokenizer

    import merge
    from eval import harness
    from merge import Recipe

    others = {name: {"path": f"{model}-{name}", "density": 0.5} for name in ("ct", "sft")}
    recipe = Recipe.from_dict({"method": "ties", "base": str(model), "models": others}, where="recipe")
    tokenizer, scored = AutoTokenizer.from_pretrained(model), tasks(case)
    for _, merged in merge.load_many([recipe], "cpu"):
        harness.evaluate(merged, tokenizer, scored, batch_tokens=case["batch_tokens"], dtype=case["dtype"])


WORK: dict[str, Callable[[Path, dict[str, Any]], int | None]] = {"train": train, "score": score, "tune": tune}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    cases = json.loads((folder / "cases.json").read_text())
    tiny = {"vocabulary": 512, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 2, "feed_forward": 64, "tied": False}
    warmed = set()
    for case in cases:
        small, large = folder / "tiny", folder / str(case["model"])
        for model, shape in ((small, tiny), (large, case["shape"])):
            make_model(model, shape)
            if case["work"] == "tune":
                make_model(Path(f"{model}-ct"), shape, 1)
                make_model(Path(f"{model}-sft"), shape, 2)
        work = WORK[case["work"]]
        if case["work"] not in warmed:
            warmed.add(case["work"])
            few = {"batch_tokens": 128, "block_size": 64, "window": 64, "documents": 2}
            work(small, {**case, **few})
            if case["work"] == "tune":  # compiled loops are a process's own memory; the small model does without
                compiled_loops([EXACT], tell=False)
        if "saving" in case:  # each of these loads code of its own, some of it for its shapes
            work(large, {**case, "steps": 1})
        print(json.dumps({"case": case["case"], "peak": peak(lambda: work(large, case))}), flush=True)  # noqa: B023


if __name__ == "__main__":
    main(Path(sys.argv[1]))
