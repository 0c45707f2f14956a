"""Models with different vocabularies brought to one: whose tokenizer the result has, and which row is which token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import BadInput
from merge.io.checkpoint import Checkpoint
from merge.io.token_rows import AlignedCheckpoint, Table, arranged
from merge.io.token_tensors import row_count, token_tensors
from merge.io.tokenizer_files import union
from merge.io.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    import tokenizers

NO_TOKENIZER = (
    "no tokenizer.json, vocab.json, vocab.txt, tekken.json, nor a model of sentencepiece or tiktoken; add the "
    "tokenizer, or set `tokenizer: optional`"
)


@dataclass(frozen=True)
class Alignment:
    """The models as they are merged, and the tokenizer of the result.

    origin: number of the model whose tokenizer it is, or that the others' tokens are added to. rows: of the result's
    embedding, where it was rearranged. tokenizer: where it is a union.
    """

    models: list[Checkpoint]
    origin: int
    rows: int | None = None
    tokenizer: tokenizers.Tokenizer | None = None


def align(models: list[Checkpoint], mode: str, origin: int, base: int | None) -> Alignment:
    """mode: `union`, or anything else for the tokenizer of model `origin`. base: fills in what others have not.

    Models that have one vocabulary and tables of one height are left as they are. Raises BadInput.
    """
    read = [read_vocabulary(model.folder) for model in models]
    own = read[origin]
    if own is None:
        raise BadInput(f"{models[origin].folder}: {NO_TOKENIZER}")
    vocabularies = [vocabulary or own for vocabulary in read]
    tables = _tables(models)
    heights = {name: _heights(models, name) for name in tables}
    same = all(own.difference(other) is None for other in vocabularies)
    if same and all(len(set(found)) == 1 for found in heights.values()):
        return Alignment(models, origin)
    if not tables:
        raise BadInput(
            f"{models[origin].folder}: none of its tensors is known to have a row for each token, so that none can be "
            "merged by token; set `tokenizer: optional` to merge by row number"
        )
    for model, vocabulary in zip(models, vocabularies, strict=True):
        if not vocabulary.whole:
            raise BadInput(f"{model.folder}: its tokenizer's file does not list all tokens; add its tokenizer.json")
    tokenizer = None if same or mode != "union" else _union(models, vocabularies, origin, heights)
    tokens = own.ids if tokenizer is None else tokenizer.get_vocab()
    height = max((found[origin] for found in heights.values()), default=0)
    count = max(height, max(tokens.values(), default=-1) + 1)
    _check(tokens, count, models[origin].folder)
    ids = [vocabulary.ids for vocabulary in vocabularies]
    aligned = {
        name: Table(models, tables[name], arranged(tokens, count, ids, heights[name], origin, base)) for name in tables
    }
    return Alignment([AlignedCheckpoint(model, i, aligned) for i, model in enumerate(models)], origin, count, tokenizer)


def _tables(models: list[Checkpoint]) -> dict[str, list[str]]:
    """Tensors that have a row for each token, with their names in each model: a head that is tied is the embedding."""
    names: dict[str, None] = {}
    for model in models:
        shapes = {name: info.shape for name, info in model.tensors.items()}
        names |= dict.fromkeys(token_tensors(shapes, model.config))
    sources = {name: [model.source_of(name) for model in models] for name in names}
    return {name: [s for s in found if s] for name, found in sources.items() if all(found)}


def _heights(models: list[Checkpoint], name: str) -> list[int]:
    heights = [row_count(model.tensors[model.source_of(name) or name].shape) for model in models]
    if None in heights:
        raise BadInput(f"tensor {name} has no rows; expected one for each token")
    return [height or 0 for height in heights]


def _union(
    models: list[Checkpoint], vocabularies: list[Vocabulary], origin: int, heights: dict[str, list[int]]
) -> tokenizers.Tokenizer:
    order = [origin, *(i for i in range(len(models)) if i != origin)]
    smallest = [min((found[i] for found in heights.values()), default=0) for i in range(len(models))]
    known = [{token for token, number in vocabularies[i].ids.items() if number < smallest[i]} for i in order]
    folders = [models[i].folder for i in order]
    whole = [i for i, folder in enumerate(folders) if i == 0 or read_vocabulary(folder) is not None]
    return union([folders[i] for i in whole], [known[i] for i in whole])


def _check(tokens: dict[str, int], count: int, folder: Path) -> None:
    """Numbers of tokens are rows: none twice, none below 0, and not far beyond the number of tokens."""
    numbers = set(tokens.values())
    if len(numbers) < len(tokens) or min(numbers, default=0) < 0 or count > 2 * len(tokens) + 1_000_000:
        raise BadInput(f"{folder}: its tokenizer's ids are not rows: some are equal, negative or far too large")
