"""Bring models with different vocabularies to one: which tokenizer the result has, and which row is which token.

Embeddings and heads are read in one order of tokens. A row for a token that a model does not have is filled as in
mergekit: by the only model that has it, else by the base's row, else by the mean of those that have it. A token that no
model has is zero.
"""

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
NO_MODEL, MEAN = -1, -2  # in place of a model's number
Numbers = NDArray[numpy.int64]
Mask = NDArray[numpy.bool_]


@dataclass(frozen=True)
class Alignment:
    """The models as they are merged, and the tokenizer of the result.

    origin: number of the model whose tokenizer it is, or to whose tokens the others' are added. rows: rows of the
    result's embedding, if it was rearranged. tokenizer: the union, if it is one.
    """

    models: list[Checkpoint]
    origin: int
    rows: int | None = None
    tokenizer: tokenizers.Tokenizer | None = None


def align(models: list[Checkpoint], joined: bool, origin: int, base: int | None) -> Alignment:
    """Bring all models to one tokenizer: if `joined` the union, which begins with that of model `origin`, else that.

    base: the model that fills in rows that others lack. Models with one vocabulary and tables of one size stay as they
    are. Raises BadInput.
    """
    known = [read_vocabulary(model.folder) for model in models]
    own = known[origin]
    if own is None:
        raise BadInput(f"{models[origin].folder}: {NO_TOKENIZER}")
    vocabularies = [vocabulary or own for vocabulary in known]
    tables = _token_tables(models)
    sizes = {name: _row_counts(models, name) for name in tables}
    is_same = all(own.difference(other) is None for other in vocabularies)
    if is_same and all(len(set(counts)) == 1 for counts in sizes.values()):
        return Alignment(models, origin)
    if not tables:
        raise BadInput(
            f"{models[origin].folder}: none of its tensors is known to have a row for each token, so that none can be "
            "merged by token; set `tokenizer: optional` to merge by row number"
        )
    for model, vocabulary in zip(models, vocabularies, strict=True):
        if not vocabulary.whole:
            raise BadInput(f"{model.folder}: its tokenizer's file does not list all tokens; add its tokenizer.json")
    tokenizer = None if is_same or not joined else _union(models, vocabularies, origin, sizes)
    tokens = own.ids if tokenizer is None else tokenizer.get_vocab()
    count = max(*(counts[origin] for counts in sizes.values()), max(tokens.values(), default=-1) + 1)
    _check_ids(tokens, count, models[origin].folder)
    ids = [vocabulary.ids for vocabulary in vocabularies]
    aligned = {
        name: Table(models, sources, align_rows(tokens, count, ids, sizes[name], origin, base))
        for name, sources in tables.items()
    }
    return Alignment([AlignedCheckpoint(model, i, aligned) for i, model in enumerate(models)], origin, count, tokenizer)


def _token_tables(models: list[Checkpoint]) -> dict[str, list[str]]:
    """Return tensors with one row per token, with their names in each model; a tied head is the embedding."""
    names: dict[str, None] = {}
    for model in models:
        shapes = {name: info.shape for name, info in model.tensors.items()}
        names |= dict.fromkeys(token_tensors(shapes, model.config))
    sources = {name: [model.source_of(name) for model in models] for name in names}
    return {name: [source for source in found if source] for name, found in sources.items() if all(found)}


def _row_counts(models: list[Checkpoint], name: str) -> list[int]:
    counts = [row_count(model.tensors[model.source_of(name) or name].shape) for model in models]
    if None in counts:
        raise BadInput(f"tensor {name} has no rows; expected one for each token")
    return [count or 0 for count in counts]


def _union(
    models: list[Checkpoint], vocabularies: list[Vocabulary], origin: int, sizes: dict[str, list[int]]
) -> tokenizers.Tokenizer:
    """Return the union of the tokens for which the models have rows, those of model `origin` first."""
    order = [origin, *(i for i in range(len(models)) if i != origin)]
    folders, known = [], []
    for i in order:
        if i == origin or read_vocabulary(models[i].folder) is not None:
            count = min((counts[i] for counts in sizes.values()), default=0)
            folders.append(models[i].folder)
            known.append({token for token, number in vocabularies[i].ids.items() if number < count})
    return union(folders, known)


def _check_ids(tokens: dict[str, int], count: int, folder: Path) -> None:
    """Reject ids that cannot be rows: equal ones, ids below 0, and ids far beyond the number of tokens."""
    ids = set(tokens.values())
    if len(ids) < len(tokens) or min(ids, default=0) < 0 or count > 2 * len(tokens) + 1_000_000:
        raise BadInput(f"{folder}: its tokenizer's ids are not rows: some are equal, negative or far too large")


@dataclass(frozen=True)
class RowSources:
    """The sources of a table's rows.

    rows: [models, rows], the row of each model, -1 if it does not have that token. fallback: [rows], the model whose
    row replaces a missing one; NO_MODEL, or MEAN over those that have it.
    """

    rows: Numbers
    fallback: Numbers


def align_rows(
    tokens: Mapping[str, int],
    count: int,
    vocabularies: Sequence[Mapping[str, int]],
    sizes: Sequence[int],
    origin: int,
    base: int | None,
) -> RowSources:
    """Return the sources of a table of `count` rows, with `tokens` at their ids.

    sizes: rows of each model's table; a model does not have tokens beyond them. origin: the model of this tokenizer:
    rows without a token, which pad the table, are its own. base: the model that fills in first.
    """
    rows = numpy.full((len(vocabularies), count), -1, dtype=numpy.int64)
    for i, vocabulary in enumerate(vocabularies):
        for token, row in tokens.items():
            if 0 <= (found := vocabulary.get(token, -1)) < sizes[i]:
                rows[i, row] = found
    padding = numpy.ones(count, dtype=bool)
    padding[list(tokens.values())] = False
    padding[sizes[origin] :] = False
    rows[origin, padding] = numpy.flatnonzero(padding)
    has_token = rows >= 0
    holders = has_token.sum(0)
    fallback = numpy.full(count, MEAN, dtype=numpy.int64)
    if base is not None:
        fallback[has_token[base]] = base
    fallback[holders == 1] = has_token.argmax(0)[holders == 1]
    fallback[holders == 0] = NO_MODEL
    return RowSources(rows, fallback)


@dataclass(frozen=True)
class Table:
    """One table in all models: its name in each of them, and the sources of its rows."""

    models: Sequence[Checkpoint]
    names: Sequence[str]
    sources: RowSources

    def copy_rows(self, out: torch.Tensor, where: Mask, model: int, wanted: Numbers) -> None:
        """Copy a model's rows into the selected rows of `out`; consecutive rows are read at once.

        where: [rows of out]. wanted: the model's row for each row of `out`.
        """
        columns = out.shape[1]
        targets = numpy.flatnonzero(where)
        rows = wanted[targets]
        for run in numpy.split(numpy.arange(len(rows)), numpy.flatnonzero(numpy.diff(rows) != 1) + 1):
            if len(run):
                first, last = int(rows[run[0]]), int(rows[run[-1]]) + 1
                read = self.models[model].read(self.names[model], first * columns, last * columns)
                out[targets[run]] = read.view(-1, columns).to(out.dtype)

    def mean(self, where: Mask, rows: Numbers, columns: int) -> torch.Tensor:
        """Return the selected rows as the mean over the models that have them, float32."""
        import torch

        total = torch.zeros(len(where), columns)
        for model in range(len(self.models)):
            part = torch.zeros(len(where), columns)
            self.copy_rows(part, where & (rows[model] >= 0), model, rows[model])
            total += part
        holders = torch.from_numpy((rows >= 0).sum(0)).view(-1, 1)
        return (total / holders)[torch.from_numpy(where)]


class AlignedCheckpoint(WrappedCheckpoint):
    """A checkpoint, model `number` of several, whose tables have the rows of one tokenizer."""

    def __init__(self, inner: Checkpoint, number: int, tables: Mapping[str, Table]):
        own = {}
        for name, table in tables.items():
            info = inner.tensors[table.names[number]]
            rows = len(table.sources.fallback)
            own[name] = replace(info, name=name, shape=(1, rows) if is_one_row(info.shape) else (rows, *info.shape[1:]))
        super().__init__(inner, own)
        self.number, self.tables = number, tables

    def read_own(self, name: str, start: int, stop: int) -> torch.Tensor:
        import torch

        table, info = self.tables[name], self.tensors[name]
        columns = info.numel // len(table.sources.fallback)
        first, last = start // columns, math.ceil(stop / columns)
        out = torch.zeros(last - first, columns, dtype=torch_dtype(info.dtype))
        rows, fallback = table.sources.rows[:, first:last], table.sources.fallback[first:last]
        has_token = rows[self.number] >= 0
        table.copy_rows(out, has_token, self.number, rows[self.number])
        for other in range(len(table.models)):
            table.copy_rows(out, ~has_token & (fallback == other), other, rows[other])
        if (mean := ~has_token & (fallback == MEAN)).any():
            out[torch.from_numpy(mean)] = table.mean(mean, rows, columns).to(out.dtype)
        return out.view(-1)[start - first * columns : stop - first * columns]

    def own_parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        """List its own tensor, then those of the models that fill in."""
        table = self.tables[name]
        pairs = list(zip(table.models, table.names, strict=True))
        return [part for model, source in [pairs[self.number], *pairs] for part in model.parts(source)]
