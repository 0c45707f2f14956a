"""Whose tokenizer, chat template and generation config a merge is scored with.

Plain prompts need those of the base. A merge with a chat model is asked by the template of this model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.chat import read_chat_template
from pipeline.arms import ARMS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE = "model"  # the role of what task vectors start from
NOT_INSTRUCTED = ("base", "ct")  # arms that learnt no instructions: their templates, if any, are the base's


def speaker(folders: Mapping[str, Path], chat: str, named: str | None = None) -> str:
    """Return the role of the parent of a merge whose tokenizer it is scored with. Reads the parents' templates.

    folders: checkpoints by role. chat: none, auto or both. named: the model that the recipe takes its tokenizer from.
    By a template: the first parent that learnt instructions and has one, else the first that has one, else the base.
    """
    if named in folders:
        return str(named)
    if chat == "none":
        return BASE
    merged = [name for name in folders if name in ARMS]
    by_instructions = sorted(merged, key=lambda name: name in NOT_INSTRUCTED)
    return next((name for name in [*by_instructions, BASE] if read_chat_template(folders[name])), BASE)


def tokenizer_of(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def generates_as(model: PreTrainedModel, folder: Path) -> None:
    """Give a merge in memory the generation config of a checkpoint, if that has one."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
