"""What a tensor's name tells: embedding, head, layer and kind of module, by the names of transformers and custom code.

Tensors with one row per token are found here for the whole package: embeddings, heads, and others that follow the
tokens' ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

HEAD = "lm_head.weight"  # what most models call it
TEXT_PARTS = ("text_config", "decoder", "encoder")  # keys of configs that contain the config of a text model
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings?|tok_embeddings|tokens_embed|token_embeddings?|shared"
    r"|input_embedding|embeddings?|emb|transformer\.w)\.weight"
)
_HEAD = re.compile(
    r"(?:.+\.)?(?:\w*lm_head(?:\.decoder|\.out_proj)?|embed_out|output_layer|output_projection|lm_loss|vocab_projector"
    r"|pred_layer\.proj|predictions\.decoder|head\.decoder)\.weight"
    r"|(?:(?:.+\.)?language_model\.|model\.)?(?:output|head|decoder|proj_out)\.weight"
)
_HEAD_BIAS = re.compile(r"(?:.+\.)?(?:predictions|lm_head)\.bias|(?:.+\.)?final_logits_bias")
# Tables of further kinds: embeddings of each layer (Gemma 3n), those of layers that predict tokens ahead (DeepSeek).
_FURTHER = re.compile(r".*(?:embed_tokens_per_layer|\.\d+\.embed_tokens|shared_head\.head)\.weight")
_NUMBERED = re.compile(r"\.\d+\.")
_PLACES = re.compile(r"pos|wpe|type|quant")  # rows for each position, type of token, or vector of a codebook
# Heads of models whose files have none, as it is the embedding: by model_type, where the name is another than HEAD.
_HEADS = {
    "gpt_neox": "embed_out.weight", "gpt_neox_japanese": "embed_out.weight", "whisper": "proj_out.weight",
    "biogpt": "output_projection.weight", "trocr": "output_projection.weight", "xlnet": "lm_loss.weight",
    "rwkv": "head.weight", "xlm": "pred_layer.proj.weight", "flaubert": "pred_layer.proj.weight",
    "modernbert": "decoder.weight", "modernbert-decoder": "decoder.weight", "electra": "generator_lm_head.weight",
    "convbert": "generator_lm_head.weight", "distilbert": "vocab_projector.weight", "internlm2": "output.weight",
    "chatglm": "transformer.output_layer.weight", "bert-generation": "lm_head.decoder.weight",
    "t5gemma": "lm_head.out_proj.weight", "t5gemma2": "lm_head.out_proj.weight",
}  # fmt: skip
# Of encoders, which have a transform before it: by that transform's names.
_AFTER = re.compile(r"(?P<start>(?:.+\.)?(?:cls\.)?predictions\.|(?:.+\.)?lm_head\.(?=dense\.))")
_PART = re.compile(r"(?P<start>.*?(?:language_model|text_model)\.)model\.")  # models with the head inside the part
KINDS = ("embeddings", "attention", "mlp", "norms", "head", "other")
# The outermost numbered row counts: T5's `block.3.layer.1` is a part of block 3.
_LAYER = re.compile(r"(?:^|\.)(?:\w*layers|h|blocks?|layer|attentions|ffns|layer_norm[12])\.(\d+)\.")
_MLP = re.compile(r"mlp|feed_?forward|experts|moe|ffn|dense_?relu_?dense|\.fc[12]\.|\.(?:intermediate|output)\.dense\.")
_NORM = re.compile(r"norm|(?:^|\.)ln(?:_\w+|\d*)\.")
_NUMBERED_MODULE = re.compile(r"\.\d+\.\w+\.")


def is_embedding(name: str) -> bool:
    """Tell whether a tensor is the input embedding, or one of a model with several parts."""
    match = _EMBEDDING.search(name)
    if match is None or match.end() < len(name) or _NUMBERED.search(name):
        return False
    return _PLACES.search(name) is None


def is_head(name: str) -> bool:
    """Tell whether a tensor gives a logit for each token."""
    return _HEAD.fullmatch(name) is not None and _NUMBERED.search(name) is None


def is_head_bias(name: str) -> bool:
    """Tell whether a tensor is added to the logits."""
    return _HEAD_BIAS.fullmatch(name) is not None or (
        name.endswith(".bias") and is_head(f"{name.removesuffix('bias')}weight")
    )


def head_name(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return the name of a model's head: the one among its tensors, else the one that it would have."""
    listed = list(names)
    if (own := next(filter(is_head, listed), None)) is not None:
        return own
    if (known := _HEADS.get(str(config.get("model_type")))) is not None:
        return known
    if (match := next(filter(None, map(_AFTER.match, listed)), None)) is not None:
        return f"{match['start']}decoder.weight"
    part = next(filter(None, map(_PART.match, filter(is_embedding, listed))), None)
    return f"{part['start']}{HEAD}" if part is not None else HEAD


def bare_architecture(names: Any) -> bool:
    """Tell whether a config's architectures are a model without a head, such as GPT2Model."""
    listed = names if isinstance(names, list) else [names]
    return all(re.fullmatch(r"\w+(?<!LMHead)(?<!Heads)Model", str(name)) for name in listed)


def is_one_row(shape: tuple[int, ...]) -> bool:
    """Tell whether a table is a single row with a number for each token, as some biases are."""
    return len(shape) == 2 and shape[0] == 1


def row_count(shape: tuple[int, ...]) -> int | None:
    """Return the number of tokens of a table of this shape; None for a single number."""
    return None if not shape else shape[1] if is_one_row(shape) else shape[0]


def token_tensors(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> list[str]:
    """List the tensors of a model with one row per token.

    These are tensors with known names, and others outside of layers with as many rows, so that none is missed. If no
    embedding has a known name, the config's vocab_size gives the number of rows.
    """
    parts = (config, *(config.get(key) for key in TEXT_PARTS))
    sizes = {part.get("vocab_size") for part in parts if isinstance(part, Mapping)}
    named = [name for name in shapes if is_embedding(name) or is_head(name)]
    if fitting := [name for name in named if row_count(shapes[name]) in sizes]:  # parts may have other vocabularies
        named = [name for name in named if row_count(shapes[name]) == row_count(shapes[fitting[0]])]
    rows = {row_count(shapes[name]) for name in named} or {size for size in sizes if isinstance(size, int)}
    widths = {shapes[name][1] for name in named if len(shapes[name]) == 2}

    def is_table(name: str, shape: tuple[int, ...]) -> bool:
        if name in named or _FURTHER.fullmatch(name):
            return True
        if row_count(shape) not in rows or _NUMBERED.search(name):
            return False
        if is_head_bias(name):
            return True
        return len(shape) == 2 and shape[0] not in widths and _PLACES.search(name) is None

    return [name for name, shape in shapes.items() if is_table(name, shape)]


def layer_of(name: str) -> int | None:
    """Return the index of a tensor's layer; None for embeddings, the final norm and the head."""
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def stack_of(name: str) -> str | None:
    """Return the stack of layers of a tensor: its name up to the layer's index; None outside of stacks."""
    match = _LAYER.search(name)
    return name[: match.start(1)] if match else None


def layer_counts(names: Iterable[str]) -> dict[str, int]:
    """Count the layers of every stack that tensors of these names belong to."""
    counts: dict[str, int] = {}
    for name in names:
        if (stack := stack_of(name)) is not None:
            counts[stack] = max(counts.get(stack, 0), (layer_of(name) or 0) + 1)
    return counts


def is_in_unknown_stack(name: str) -> bool:
    """Tell whether a tensor seems to belong to a numbered module, such as `resblocks.3.attn.weight`, that is not a
    stack of layers with a known name.
    """
    return stack_of(name) is None and _NUMBERED_MODULE.search(name) is not None


def kind_of(name: str) -> str:
    """Return the module kind of a tensor, by the names of Hugging Face models; one of KINDS."""
    lowered = name.lower().replace("norm_attn_norm.attn", "attn")
    if is_head(name) or is_head_bias(name):
        return "head"
    if _NORM.search(lowered):
        return "norms"
    if is_embedding(name):
        return "embeddings"
    if "attn" in lowered or "attention" in lowered:
        return "attention"
    if _MLP.search(lowered):
        return "mlp"
    if any(part in lowered for part in ("embed", "wte", "wpe")):
        return "embeddings"
    if "lm_head" in lowered or "output.weight" in lowered:
        return "head"
    return "other"


def depth_of(name: str, layers: int) -> float:
    """Return a tensor's depth between the first layer (0) and the last (1); 0 outside of layers, as in mergekit."""
    layer = layer_of(name)
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0
