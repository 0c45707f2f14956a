"""Files of a checkpoint besides weights and config: tokenizer, processor, generation settings, and its own code.

Tokenizer files are found by the names that transformers, sentencepiece, mistral-common and tiktoken use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from common.errors import BadInput
from common.validation import read_json

# The vocabulary in forms other than tokenizer.json; patterns of names in the folder itself.
VOCABULARIES = (
    "*.model", "tokenizer.model.*", "*.tiktoken", "*.spm", "tekken*.json", "vocab*.json", "vocab*.txt", "vocab.bpe",
    "merges.txt", "encoder.json", "bpe.codes", "added_tokens.json", "dict.txt", "emoji.json", "byte_maps.json",
    "prophetnet.tokenizer", "target_vocab.json", "entity_vocab.json", "word_shape.json", "word_pronunciation.json",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", *VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json")
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
PROCESSOR_FILES = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    "image_processor_config.json", "audio_tokenizer_config.json", "normalizer.json",
)  # fmt: skip
_RELATIVE = re.compile(
    r"^\s*(?:from\s+\.(?P<module>[\w.]*)\s+import\s+(?P<names>[^#\n]+)|import\s+\.(?P<own>[\w.]+))", re.MULTILINE
)


def sidecars(folder: Path) -> list[Path]:
    """List the files that are copied to a merge's result, with the code of its tokenizer and processor.

    Raises BadInput for one that is a link out of the folder: what it leads to was not given with the checkpoint, and
    would be given away with the result. The hub's cache keeps the files of a snapshot two folders above it.
    """
    names = (*TOKENIZER_FILES, *TEMPLATES, *PROCESSOR_FILES, "generation_config.json")
    files = dict.fromkeys(file for name in names for file in sorted(folder.glob(name)) if file.is_file())
    return within(folder, [*files, *code_of(folder, ("tokenizer_config.json", *PROCESSOR_FILES))])


def code_of(folder: Path, configs: Iterable[str] = ("config.json",)) -> list[Path]:
    """Find the code that a checkpoint's configs name (`auto_map`), and modules of the folder that it imports.

    Raises BadInput as `sidecars` does.
    """
    modules: dict[Path, None] = {}
    wanted = [folder / f"{module}.py" for name in configs for module in _modules(folder / name)]
    while wanted:
        file = wanted.pop()
        if file not in modules and file.is_file():
            modules[file] = None
            wanted += _imported(file)
    return within(folder, modules)


def vocabulary_files(folder: Path) -> list[Path]:
    """List the files of a folder that are its vocabulary in a form other than tokenizer.json."""
    return [file for name in VOCABULARIES for file in sorted(folder.glob(name)) if file.is_file()]


def _modules(file: Path) -> Iterator[str]:
    """List modules of the folder that a config names for its classes; those of other repositories are downloaded."""
    maps = read_json(file).get("auto_map") if file.is_file() else None
    for classes in maps.values() if isinstance(maps, dict) else ():
        for name in classes if isinstance(classes, list) else [classes]:
            if isinstance(name, str) and "--" not in name and re.fullmatch(r"[\w.]+", name):
                yield name.rpartition(".")[0].replace(".", "/")


def _imported(file: Path) -> Iterator[Path]:
    text = file.read_text(encoding="utf-8", errors="replace")
    for match in _RELATIVE.finditer(text):
        module = match["module"] or match["own"]
        names = [module] if module else re.findall(r"\w+", match["names"])
        for name in names:
            path = name.replace(".", "/")
            yield from (file.parent / f"{path}.py", file.parent / path / "__init__.py")


def within(folder: Path, files: Iterable[Path]) -> list[Path]:
    """Return the files, each once. Raises BadInput for a link out of the folder, except in the Hub's cache."""
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    listed = list(dict.fromkeys(files))
    for file in listed:
        if not file.resolve().is_relative_to(root):
            raise BadInput(
                f"{file}: must not be a link out of the checkpoint, got a link to {file.resolve()}. Put a copy there."
            )
    return listed
