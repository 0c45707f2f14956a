"""Bytes per GPU while a checkpoint is scored, or a merge is computed in memory and scored.

There is one merged model in memory, whatever the number of candidates: it is refilled. Its dtype is the base's
(`out_dtype: base` of merge/recipe.py) until scoring casts it.
"""

from __future__ import annotations

import json
from math import ceil

from common.hub import local_folder
from pipeline.config import Config, ModelShape
from pipeline.cost.model_shape import model_shape

# merge/stream: elements of a slice, bytes that all threads may keep of whole tensors, and of these bytes an element
SLICE, RESIDENT, RESIDENT_BYTES = 1 << 19, 1 << 29, 5
ARRAYS = 16  # 32-bit arrays of a slice that a thread holds while it merges (assumed: two parents, base, masks, result)


def scoring(
    shape: ModelShape, batch_tokens: int, dtype: str, gpus: int = 1, cached_tokens: int = 0, context: int = 0
) -> float:
    """Return bytes of one GPU of `gpus` that share a checkpoint while it is scored.

    The weights in `dtype`, and the larger of three that follow one another: a layer's intermediate values, the logits
    of a batch, and the key-value cache of generation for `cached_tokens`. eval/language_model.py brings logits to 32
    bits, and logsumexp subtracts and exponentiates in a copy of them.

    context: tokens of a row that takes a mask, 0: none. Layers are shared, the embedding and the head are not.
    """
    number = 2 if dtype in ("bfloat16", "float16") else 4
    weights = number * shape.parameters
    if gpus > 1:
        weights = number * (ceil(shape.layers / gpus) * shape.layer_parameters + shape.embedding_parameters)
    feed_forward = 3 * shape.feed_forward * (shape.active_experts or 1)
    layer = batch_tokens * (4 * 2 * shape.hidden + number * (2 * shape.hidden + feed_forward))
    logits = batch_tokens * (8 * shape.vocabulary + number * shape.hidden)
    cache = cached_tokens * 2 * shape.kv_width * shape.layers * number / gpus
    return weights + max(layer, logits, cache) + batch_tokens * context * number


def merging(shape: ModelShape, number: int, threads: int) -> float:
    """Return bytes of a merge in memory while it is filled: the model, `number` bytes per parameter, and what threads
    work on.

    A thread keeps magnitudes of a tensor, within the bound of all threads, and a few arrays of a slice.
    """
    largest = max(shape.embedding_parameters, shape.hidden * shape.feed_forward * (shape.experts or 1))
    working = min(RESIDENT, threads * RESIDENT_BYTES * largest)
    return number * shape.parameters + working + threads * ARRAYS * 4 * min(SLICE, largest)


def needed(config: Config, tuned: bool = True) -> float:
    """Return bytes of a GPU for the scoring of a cell's checkpoints and, where it is `tuned` or merges, of its
    merges.
    """
    shape, asked = model_shape(config), config.eval
    gpus = getattr(asked, "gpus", 1)  # devices that share a checkpoint
    # Which of lm-eval's tasks generate is not known here. An adaptation answers questions.
    generates = bool(asked.tasks or asked.include_path or config.adapt)
    cached = asked.batch_tokens if generates else 0
    scored = scoring(shape, asked.batch_tokens, asked.dtype, gpus, cached)
    if not (tuned and config.merge.methods):
        return scored
    return max(scored, merging(shape, base_width(config), config.compute.threads))


def base_width(config: Config) -> int:
    """Return bytes per parameter of the base, which merges have too: of its folder, else 2 of the Hub's and 4 of our
    own.
    """
    folder = local_folder(config.model.path)
    if folder and (file := folder / "config.json").is_file():
        stated = json.loads(file.read_text(encoding="utf-8"))
        text = stated.get("text_config") or {}
        found = next(
            (each.get(key) for each in (stated, text) for key in ("dtype", "torch_dtype") if each.get(key)), ""
        )
        return 2 if found in ("bfloat16", "float16") else 4
    return 2 if config.model.path else 4
