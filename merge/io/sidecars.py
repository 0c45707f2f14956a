"""What a checkpoint has beside weights and config: its tokenizer, its processor, its settings for generation."""

from __future__ import annotations

from pathlib import Path

from common.errors import BadInput

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def sidecars(folder: Path) -> list[Path]:
    """The files that are copied to a merge's result.

    Raises BadInput for one that is a link out of the folder: what it leads to was not given with the checkpoint, and
    would be given away with the result. The hub's cache keeps the files of a snapshot two folders above it.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parent.parent
    names = (*TOKENIZER_FILES, *PROCESSOR_FILES, "generation_config.json")
    files = [folder / name for name in names if (folder / name).is_file()]
    for file in files:
        if not file.resolve().is_relative_to(root):
            raise BadInput(f"{file}: a link to {file.resolve()}, outside of the checkpoint; put a copy there")
    return files
