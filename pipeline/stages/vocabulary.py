"""The stage that gives a model new tokens for a language: `base_extended`. It trains nothing.

It leaves `model/`, the checkpoint with a longer tokenizer, embedding and head, and `vocabulary.json`: the number of new
tokens, the first of them, and what dev text takes before and after. Plans need no torch and no files.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput
from common.files import read_jsonl, write_json
from common.settings import NoSettings
from common.units import format_tokens
from common.validation import read_json
from pipeline.config import Config
from pipeline.stages.data import Data
from pipeline.stages.stage import Stage, StageType
from train.settings import VocabularySettings

if TYPE_CHECKING:
    import tokenizers

    from pipeline.execute import Job
    from train.vocabulary import Extension, Matrix

VOCABULARY = "vocabulary.json"
MOST_TEXT = 200_000_000  # UTF-8 bytes of training text that tokens are learnt from: more would change few of them
SHOWN = 20  # new tokens in vocabulary.json


def plan_extended(config: Config, data: Data, model: Stage) -> Stage:
    """Plan the model with new tokens for the language."""
    settings = VocabularySettings.pick(config.model, language=config.language.code)
    slug = f"{config.language.code}-{model.slug}-{format_tokens(settings.new_tokens or 0)}"
    return Stage(BASE_EXTENDED, slug, settings, {"model": model, "corpus": data.corpus})


def run_extended(job: Job[VocabularySettings, NoSettings]) -> None:
    import tokenizers

    from train import vocabulary
    from train.data.packing import load_tokenizer

    settings, corpus, model = job.settings, job.folders["corpus"], job.checkpoint("model")
    before = load_tokenizer(model).backend_tokenizer
    assert settings.new_tokens is not None, "only models with new tokens are planned"
    extension = vocabulary.extend(before, training_texts(corpus, settings.language), settings.new_tokens)
    if not extension.tokens:
        raise BadInput(no_token(settings.new_tokens, settings.language))
    after = tokenizers.Tokenizer.from_str(json.dumps(extension.described))
    weights = first_weights(extension, settings, after, corpus)
    write_model(model, job.out / "model", extension, after, weights)
    dev = [row["text"] for row in read_jsonl(corpus / "text" / f"{settings.language}.dev.jsonl")]
    measured = {
        name: vocabulary.fertility(tokenizer, dev) for name, tokenizer in (("before", before), ("after", after))
    }
    found = {"tokens": len(extension.tokens), "asked": settings.new_tokens, "first": extension.first}
    write_json(job.out / VOCABULARY, {**found, **measured, "begin": extension.tokens[:SHOWN]})
    job.note = f": {new_tokens_in_words({**found, **measured})}"


BASE_EXTENDED = StageType("base_extended", run_extended, 1, "data", 20, shared=True)


def new_tokens_in_words(found: Mapping[str, Any]) -> str:
    """Describe what new tokens change. found: as in vocabulary.json."""
    before, after = found["before"], found["after"]
    fewer = "" if found["tokens"] == found["asked"] else f" of {found['asked']:,}, as the text gives no more"
    return (
        f"{found['tokens']:,} new tokens{fewer}; dev text has {after['bytes_per_token']:.2f} bytes per token"
        f" (before: {before['bytes_per_token']:.2f}), {after['tokens_per_word']:.2f} tokens per word"
        f" (before: {before['tokens_per_word']:.2f})"
    )


def training_texts(corpus: Path, language: str) -> Iterator[str]:
    """Yield the language's training documents, up to `MOST_TEXT` bytes."""
    from train.data.corpus.documents import read_rows, training_files

    left = MOST_TEXT
    for row in itertools.chain.from_iterable(map(read_rows, training_files(corpus, language))):
        if (left := left - len(row["text"].encode())) < 0:
            return
        yield row["text"]


def first_weights(
    extension: Extension, settings: VocabularySettings, after: tokenizers.Tokenizer, corpus: Path
) -> Matrix:
    """Return how much of each old token's embedding each new one starts with, (new tokens, old tokens)."""
    from train import vocabulary

    parts, first = extension.parts, extension.first
    if settings.new_token_init == "mean":
        return vocabulary.mean_weights(parts, first)
    texts = training_texts(corpus, settings.language)
    documents = (after.encode(text, add_special_tokens=False).ids for text in texts)
    return vocabulary.focus_weights(parts, first, first, documents)


# --- the checkpoint folder ---


def write_model(model: Path, out: Path, extension: Extension, tokenizer: tokenizers.Tokenizer, weights: Matrix) -> None:
    """Write a checkpoint with the new tokens: longer tables, vocabulary and config; all else is copied.

    weights: see `first_weights`. Raises BadInput for a model whose tables are not found, or lack rows of old tokens.
    """
    from safetensors.torch import load_file, save_file

    from merge.checkpoints.folder import open_checkpoint, weight_files
    from merge.checkpoints.sidecars import code_of, sidecars
    from merge.checkpoints.tensor_names import row_count, token_tensors
    from merge.checkpoints.tokenizer import put_union
    from merge.output.writer import with_rows
    from train.vocabulary import extend_rows

    checkpoint = open_checkpoint(model)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    tables = token_tensors(shapes, checkpoint.config)
    check_tables(model, {name: row_count(shapes[name]) for name in tables}, extension.first)
    out.mkdir(parents=True)
    for file in dict.fromkeys([*sidecars(model), *code_of(model)]):
        place = out / file.relative_to(model)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    put_union(out, tokenizer)
    files, index = weight_files(model)
    rows, total = 0, 0
    for file in files:
        tensors = load_file(file)
        longer = {name: extend_rows(tensors[name], extension.first, weights) for name in tensors if name in tables}
        rows = max(rows, *(row_count(tuple(table.shape)) or 0 for table in longer.values())) if longer else rows
        tensors |= longer
        total += sum(tensor.nbytes for tensor in tensors.values())
        if longer:
            save_file(tensors, out / file.name, metadata={"format": "pt"})
        else:
            shutil.copyfile(file, out / file.name)
    if index:
        write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    config = with_rows(read_json(model / "config.json"), rows)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_tables(model: Path, rows: Mapping[str, int | None], first: int) -> None:
    """Raise BadInput for a model without known tables of tokens, or whose tables lack rows for old tokens."""
    if not rows:
        raise BadInput(
            f"model.new_tokens: no tensor of {model} is known to be an embedding of tokens. Set model.new_tokens=null."
        )
    if short := next((name for name, count in rows.items() if (count or 0) < first), None):
        raise BadInput(too_few_rows(short, model, rows[short], first))


# --- what is rejected here, and before a run by a check ---


def no_token(asked: int, language: str) -> str:
    """Describe a text that gives no token."""
    return (
        f"model.new_tokens={asked}: the {language} training text has no two tokens that occur together twice."
        " Give more text, or set model.new_tokens=null."
    )


def too_few_rows(table: str, model: Path, rows: int | None, tokens: int) -> str:
    """Describe a table of a model that lacks rows for tokens of its tokenizer."""
    return (
        f"model.new_tokens: {table} of {model} has {rows} rows, but its tokenizer has {tokens} tokens."
        " Set model.new_tokens=null, or save model and tokenizer with as many."
    )
