"""Bring models with different vocabularies to one: which tokenizer the result has, and which row is which token.

Embeddings and heads are read in one order of tokens. A row for a token that a model does not have is filled as in
mergekit: by the only model that has it, else by the base's row, else by the mean of those that have it. A token that no
model has is zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from common.errors import BadInput
from merge.checkpoints.checkpoint import Checkpoint, WrappedCheckpoint, torch_dtype
from merge.checkpoints.tensor_names import is_one_row, row_count, token_tensors
from merge.checkpoints.tokenizer import Vocabulary, read_vocabulary, union

if TYPE_CHECKING:
    import tokenizers
    import torch

NO_TOKENIZER = (
    "no tokenizer.json, vocab.json, vocab.txt, tekken.json, nor a model of sentencepiece or tiktoken; add the "
    "tokenizer, or set `tokenizer: optional`"
)
NOBODY, MEAN = -1, -2  # in place of a donor's number
Numbers = NDArray[numpy.int64]


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


@dataclass(frozen=True)
class Rows:
    """The sources of a table's rows.

    own: [models, rows], the row of each model, -1 if it does not have that token. donor: [rows], the number of the
    model whose row replaces a missing one; NOBODY, or MEAN over those that have it.
    """

    own: Numbers
    donor: Numbers


def arranged(
    tokens: Mapping[str, int],
    count: int,
    vocabularies: Sequence[Mapping[str, int]],
    heights: Sequence[int],
    origin: int,
    base: int | None,
) -> Rows:
    """Return the rows of a table of `count` rows, with `tokens` at their numbers.

    heights: rows of each model's table; a model does not have tokens beyond them. origin: the model of this tokenizer:
    rows without a token, which pad the table, are its own. base: the model that fills in first.
    """
    own = numpy.full((len(vocabularies), count), -1, dtype=numpy.int64)
    for i, vocabulary in enumerate(vocabularies):
        for token, row in tokens.items():
            if 0 <= (found := vocabulary.get(token, -1)) < heights[i]:
                own[i, row] = found
    padding = numpy.ones(count, dtype=bool)
    padding[list(tokens.values())] = False
    padding[heights[origin] :] = False
    own[origin, padding] = numpy.flatnonzero(padding)
    there = own >= 0
    holders = there.sum(0)
    donor = numpy.full(count, MEAN, dtype=numpy.int64)
    if base is not None:
        donor[there[base]] = base
    donor[holders == 1] = there.argmax(0)[holders == 1]
    donor[holders == 0] = NOBODY
    return Rows(own, donor)


@dataclass(frozen=True)
class Table:
    """One table in all models: its names there, and the sources of its rows."""

    models: Sequence[Checkpoint]
    sources: Sequence[str]
    rows: Rows


class AlignedCheckpoint(WrappedCheckpoint):
    """A checkpoint, model `number` of several, whose tables have the rows of one tokenizer."""

    def __init__(self, inner: Checkpoint, number: int, tables: Mapping[str, Table]):
        own = {}
        for name, table in tables.items():
            info = inner.tensors[table.sources[number]]
            rows = len(table.rows.donor)
            own[name] = replace(info, name=name, shape=(1, rows) if is_one_row(info.shape) else (rows, *info.shape[1:]))
        super().__init__(inner, own)
        self.number, self.tables = number, tables

    def read_own(self, name: str, start: int, stop: int) -> torch.Tensor:
        import torch

        table, info = self.tables[name], self.tensors[name]
        columns = info.numel // len(table.rows.donor)
        first, last = start // columns, math.ceil(stop / columns)
        out = torch.zeros(last - first, columns, dtype=torch_dtype(info.dtype))
        own, donor = table.rows.own[:, first:last], table.rows.donor[first:last]
        there = own[self.number] >= 0
        _copy(out, there, table, self.number, own, columns)
        for other in range(len(table.models)):
            _copy(out, ~there & (donor == other), table, other, own, columns)
        if (mean := ~there & (donor == MEAN)).any():
            out[torch.from_numpy(mean)] = _mean(mean, table, own, columns).to(out.dtype)
        return out.view(-1)[start - first * columns : stop - first * columns]

    def own_parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        """List its own tensor, then those of the models that fill in."""
        table = self.tables[name]
        pairs = list(zip(table.models, table.sources, strict=True))
        return [part for model, source in [pairs[self.number], *pairs] for part in model.parts(source)]


def _copy(out: torch.Tensor, where: NDArray[numpy.bool_], table: Table, model: int, own: Numbers, columns: int) -> None:
    """Copy selected rows of a model into `out`; consecutive rows are read at once."""
    targets = numpy.flatnonzero(where)
    wanted = own[model, targets]
    for run in numpy.split(numpy.arange(len(wanted)), numpy.flatnonzero(numpy.diff(wanted) != 1) + 1):
        if len(run):
            first, last = int(wanted[run[0]]), int(wanted[run[-1]]) + 1
            read = table.models[model].read(table.sources[model], first * columns, last * columns)
            out[targets[run]] = read.view(-1, columns).to(out.dtype)


def _mean(where: NDArray[numpy.bool_], table: Table, own: Numbers, columns: int) -> torch.Tensor:
    import torch

    total = torch.zeros(len(where), columns)
    for model in range(len(table.models)):
        rows = torch.zeros(len(where), columns)
        _copy(rows, where & (own[model] >= 0), table, model, own, columns)
        total += rows
    holders = torch.from_numpy((own >= 0).sum(0)).view(-1, 1)
    return (total / holders)[torch.from_numpy(where)]
