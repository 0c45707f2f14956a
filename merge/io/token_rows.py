"""Embeddings and heads of models with different vocabularies, read in one order of tokens.

A row for a token that a model does not have is filled as in mergekit: by the only model that has it, else by the base's
row, else by the mean of those that have it; a token that no model has is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from merge.io.checkpoint import Checkpoint, torch_dtype
from merge.io.token_tensors import is_one_row

if TYPE_CHECKING:
    import torch

NOBODY, MEAN = -1, -2  # in place of a donor's number
Numbers = NDArray[numpy.int64]


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


class AlignedCheckpoint(Checkpoint):
    """A checkpoint, model `number` of several, whose tables have the rows of one tokenizer."""

    def __init__(self, inner: Checkpoint, number: int, tables: Mapping[str, Table]):
        own = {}
        for name, table in tables.items():
            info = inner.tensors[table.sources[number]]
            rows = len(table.rows.donor)
            own[name] = replace(info, name=name, shape=(1, rows) if is_one_row(info.shape) else (rows, *info.shape[1:]))
        super().__init__(inner.folder, inner.config, inner.tensors | own)
        self.inner, self.number, self.tables = inner, number, tables

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name not in self.tables:
            return self.inner.read(name, start, stop)
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

    def parts(self, name: str) -> list[tuple[Checkpoint, str]]:
        """List its own tensor, then those of the models that fill in."""
        if name not in self.tables:
            return self.inner.parts(name)
        table = self.tables[name]
        pairs = list(zip(table.models, table.sources, strict=True))
        return [part for model, source in [pairs[self.number], *pairs] for part in model.parts(source)]

    @property
    def files(self) -> set[Path]:
        return self.inner.files

    def close(self) -> None:
        self.inner.close()


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
