"""What a checkpoint's files state about its architecture, before its weights are read: sizes, tokenizer, support.

transformers' own tables decide: its config classes map each model type's names of sizes, and its model classes have
flags for their attention and for a state. `where` is what messages begin with, such as `model.path=models/mine`.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict  # pydantic's condition before Python 3.12

from common.errors import BadInput, line_of
from common.validation import read_json
from train.settings import LoraSettings

FEED_FORWARD = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")  # names of one size
LISTED = 3  # tokens that a message names


class Described(TypedDict, total=False):
    """The keys of a config.json that we read."""

    model_type: str


@cache
def config_of(folder: Path, where: str) -> Any:
    """Return the transformers config of a folder. Raises BadInput if it is no causal language model of transformers."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if (kind := read_json(folder / "config.json", Described).get("model_type")) not in KNOWN:
        raise BadInput(
            f"{where}: model_type must be a causal language model of transformers, got {kind!r}. "
            "Choose another model: code that comes with a checkpoint is not supported."
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a stranger's file leads transformers to anything
        raise BadInput(f"{where}: config.json cannot be read ({line_of(error)[:200]}). Save the model again.") from None


def sizes(config: Any) -> dict[str, Any]:
    """Return sizes of the language model under Llama's names; None for those that the architecture does not have."""
    text = config.get_text_config(decoder=True)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    found = {name: getattr(text, name, None) for name in names}
    width = next((size for name in FEED_FORWARD if (size := getattr(text, name, None))), None)
    return {
        **found,
        "num_key_value_heads": getattr(text, "num_key_value_heads", None) or found["num_attention_heads"],
        "intermediate_size": width or (4 * found["hidden_size"] if found["hidden_size"] else None),  # as GPT-2 has it
        "tie_word_embeddings": bool(getattr(config, "tie_word_embeddings", False)),
    }


def model_class(config: Any) -> Any:
    """Return the class that transformers loads for a config as a causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def check_packing(folder: Path, where: str) -> None:
    """Reject an architecture whose packed examples would see each other.

    SFT puts several examples into one row and restarts the positions at each. An architecture keeps them apart only
    where its attention mask is made from the positions, and where nothing but attention connects tokens. Raises
    BadInput.
    """
    config = config_of(folder, where)
    if reason := shares_rows(config):
        raise BadInput(
            f"{where}: model_type {config.model_type!r} {reason}, so the examples that SFT packs into one row "
            "would read each other. Take a transformer whose attention follows the positions, such as Llama, Qwen, "
            "Gemma or GPT-NeoX."
        )


def shares_rows(config: Any) -> str | None:
    """Why the examples of a row would read each other in this architecture; None if they do not."""
    made, text = model_class(config), config.get_text_config(decoder=True)
    others = sorted({kind for kind in getattr(text, "layer_types", None) or () if not is_attention(kind)})
    if getattr(made, "_is_stateful", False) or others:
        return "keeps a state from token to token" + (f" ({', '.join(others)})" if others else "")
    modules = {part.__module__ for part in made.__mro__ if ".models." in part.__module__}
    if not any(masks_follow_positions(module) for module in modules):
        return "makes its attention mask without the positions"
    return None


def is_attention(kind: str) -> bool:
    """Return whether a kind of layer, as `layer_types` names it, is softmax attention."""
    return kind.endswith("attention") and kind != "linear_attention"


@cache
def masks_follow_positions(module: str) -> bool:
    """Return whether a modeling module of transformers hands the positions to what makes its attention mask.

    Its masks come from transformers.masking_utils, called with `config` and `position_ids` by name, or with a dict of
    such names. True if the source is not there to be read.
    """
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError):
        return True
    for node in ast.walk(tree):
        names: set[Any] = set()
        if isinstance(node, ast.Call):
            names = {keyword.arg for keyword in node.keywords}
        elif isinstance(node, ast.Dict):
            names = {name.value for name in node.keys if isinstance(name, ast.Constant)}
        if {"config", "position_ids", "attention_mask"} <= names:
            return True
    return False


def check_attention(folder: Path, where: str, attention: str | None) -> None:
    """Reject `compute.attention` if the architecture has no such kernel. Raises BadInput."""
    flags = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
    config = config_of(folder, where)
    if attention in flags and not getattr(model_class(config), flags[attention], True):
        raise BadInput(
            f"compute.attention={attention}: transformers does not have it for model_type "
            f"{config.model_type!r} ({where}). Set compute.attention=eager."
        )


def check_lora(folder: Path, where: str, settings: LoraSettings) -> None:
    """Reject LoRA on modules that the architecture has not, or whose additions cannot be merged. Raises BadInput.

    The model is built without weights.
    """
    import torch

    from train import lora

    config = config_of(folder, where)
    with torch.device("meta"):
        lora.add_adapter(model_class(config)._from_config(config), settings)


@cache
def tokenizer_of(folder: Path, where: str) -> Any:
    """Return the tokenizer of a folder. Raises BadInput."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a stranger's files lead transformers to anything
        raise BadInput(
            f"{folder}/tokenizer.json: transformers cannot load the tokenizer of {where} ({line_of(error)[:200]}). "
            "Save it again with save_pretrained."
        ) from None


def check_end(folder: Path, where: str) -> None:
    """Reject a tokenizer without an end-of-text token, which separates documents. Raises BadInput."""
    if tokenizer_of(folder, where).eos_token_id is None:
        raise BadInput(
            f"{where}: its tokenizer has no end-of-text token, which separates documents. "
            "Set eos_token in its tokenizer_config.json."
        )


def beyond_embedding(folder: Path, where: str) -> str | None:
    """Return a warning if special tokens have no row in the embedding, as text may hold their names; None if all have
    one.

    Raises BadInput if other tokens, or the ones that begin or end a document, have none.
    """
    rows, tokenizer = sizes(config_of(folder, where))["vocab_size"], tokenizer_of(folder, where)
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if rows and number >= rows}
    if not beyond:
        return None
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {tokenizer.bos_token_id, tokenizer.eos_token_id}
    needed = sorted(set(beyond) - special)
    named = ", ".join(f"{beyond[number]!r} is {number}" for number in (needed or sorted(beyond))[:LISTED])
    stated = f"{where}: config.json states an embedding of {rows:,} rows (vocab_size)"
    if needed:
        raise BadInput(
            f"{stated}, but its tokenizer has {len(beyond):,} tokens beyond them ({named}). "
            "Save the tokenizer that belongs to the model, or the model after resize_token_embeddings."
        )
    return (
        f"{stated}, but {len(beyond):,} special tokens of its tokenizer are beyond them ({named}): "
        "a text that holds one of these names cannot be read"
    )
