"""One slice of a tensor in all parents, with everything that several recipes may share computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy
import torch

from merge.arithmetic import row_ranks
from merge.engine.outputs import Output, Parent
from merge.engine.plan import Plan
from merge.loops.tables import Drawn, Loop, Stored, stream_from
from merge.select import Array, Ranking, TopK, magnitude_bits

SLICE = 1 << 19  # elements: long enough that threads seldom wait for the interpreter, short enough for the caches


class Quantity(Protocol):
    """A quantity that is ranked besides task vectors, never negative (merge/engine/sparsification.py)."""

    def of(self, piece: Piece, dtype: torch.dtype) -> torch.Tensor: ...

    def __hash__(self) -> int: ...


Subject = Parent | Quantity  # whose magnitudes are ranked; a parent: those of its task vector
Selection = dict[tuple[Subject, torch.dtype], Ranking]  # of a tensor, of whatever anything was asked


@dataclass
class Job:
    """The work on one output tensor."""

    plan: Plan
    output: Output
    device: torch.device
    resident: int  # elements of a tensor that may be held at once
    selection: Selection = field(default_factory=dict)
    masks: dict[tuple[Hashable, int], Array] = field(default_factory=dict)  # a bit an element, by who and by start
    loops: Mapping[int, Mapping[str, Loop]] | None = None  # compiled, by kind and name, where they can be used
    _only: Piece | None = None

    @property
    def columns(self) -> int:
        """Return the length of a row: the last dimension."""
        return self.output.shape[-1] if self.output.shape else 1

    def pieces(self) -> Iterator[Piece]:
        """Yield the slices in order. Draws and ties start again with every call; a tensor of one slice is read once."""
        shared = Shared()
        rows = max(1, SLICE // max(1, self.columns)) * self.columns
        if self.output.numel <= rows:
            if self._only is None:
                self._only = Piece(self, 0, self.output.numel, shared)
            yield self._only
            return
        for start in range(0, self.output.numel, rows):
            yield Piece(self, start, min(start + rows, self.output.numel), shared)


@dataclass
class Shared:
    """State that is carried from slice to slice in one pass."""

    top_ks: dict[tuple[Subject, torch.dtype, int], TopK] = field(default_factory=dict)
    draws: dict[tuple[int, str], numpy.random.Generator] = field(default_factory=dict)


class Piece:
    """Elements [start, stop) of a tensor, shaped [rows, columns]. Results are cached: do not write into them."""

    def __init__(self, job: Job, start: int, stop: int, shared: Shared):
        self.job, self.start, self.stop, self.shared = job, start, stop, shared
        self._raw: dict[Parent, torch.Tensor] = {}
        self._thetas: dict[tuple[Parent, torch.dtype], torch.Tensor] = {}
        self._taus: dict[tuple[Parent, torch.dtype], torch.Tensor] = {}
        self._measures: dict[tuple[Quantity, torch.dtype], torch.Tensor] = {}
        self._bits: dict[tuple[Subject, torch.dtype], Array] = {}
        self._largest: dict[tuple[Subject, torch.dtype, int], torch.Tensor] = {}
        self._ranks: dict[tuple[Parent, torch.dtype], torch.Tensor] = {}
        self.drawn: dict[Hashable, Drawn] = {}  # by compiled loops
        self._uniforms: dict[tuple[int, str], torch.Tensor] = {}

    def stored(self, parent: Parent, dtype: torch.dtype) -> Stored:
        """Return the parent's weights as compiled loops read them, for arithmetic in `dtype`."""
        return Stored.of(self._read(parent), dtype)

    def theta(self, parent: Parent, dtype: torch.dtype) -> torch.Tensor:
        """Return the parent's weights in the compute dtype."""
        key = (parent, dtype)
        if key not in self._thetas:
            self._thetas[key] = self._read(parent).to(dtype)
        return self._thetas[key]

    def _read(self, parent: Parent) -> torch.Tensor:
        if parent not in self._raw:
            flat = self.job.plan.parents[parent].read(self.job.output.sources[parent], self.start, self.stop)
            self._raw[parent] = flat.to(self.job.device).view(-1, self.job.columns)
        return self._raw[parent]

    def tau(self, parent: Parent, dtype: torch.dtype) -> torch.Tensor:
        """Return the parent's task vector θ − θ0."""
        key = (parent, dtype)
        if key not in self._taus:
            self._taus[key] = self.theta(parent, dtype) - self.theta(self.job.output.leader, dtype)
        return self._taus[key]

    def measure(self, subject: Subject, dtype: torch.dtype) -> torch.Tensor:
        """Return what is ranked: a task vector, or a quantity that is not negative."""
        if isinstance(subject, tuple):
            return self.tau(subject, dtype)
        key = (subject, dtype)
        if key not in self._measures:
            self._measures[key] = subject.of(self, dtype)
        return self._measures[key]

    def bits(self, subject: Subject, dtype: torch.dtype) -> Array:
        """Return flat bit patterns of magnitudes, by which parameters are ranked: see select.magnitude_bits."""
        key = (subject, dtype)
        if key not in self._bits:
            self._bits[key] = magnitude_bits(self.measure(subject, dtype))
        return self._bits[key]

    def largest(self, subject: Subject, dtype: torch.dtype, rank: int) -> torch.Tensor:
        """Return zeros except for the `rank` largest magnitudes of the tensor. Call it for every slice, in order."""
        key = (subject, dtype, rank)
        if rank == 0:
            return torch.zeros_like(self.measure(subject, dtype))
        if key not in self._largest:
            top_k = self.shared.top_ks.setdefault(key, TopK(self.job.selection[subject, dtype].thresholds[rank]))
            self._largest[key] = top_k.take(self.measure(subject, dtype), lambda: self.bits(subject, dtype))
        return self._largest[key]

    def mask(self, key: Hashable, draw: Callable[[], torch.Tensor], again: bool) -> torch.Tensor:
        """Return `draw`'s bools as 0 and 1, uint8. again: keep them for another pass, one bit each."""
        place = (key, self.start)
        if (bits := self.job.masks.get(place)) is not None:
            return torch.from_numpy(numpy.unpackbits(bits, count=self.stop - self.start)).view(-1, self.job.columns)
        mask = draw().view(torch.uint8)
        if again and mask.device.type == "cpu":
            self.job.masks[place] = numpy.packbits(mask.view(-1).numpy())
        return mask

    def ranks(self, parent: Parent, dtype: torch.dtype) -> torch.Tensor:
        """Return ranks of |τ| in each row: see arithmetic.row_ranks."""
        key = (parent, dtype)
        if key not in self._ranks:
            self._ranks[key] = row_ranks(self.tau(parent, dtype).abs())
        return self._ranks[key]

    def uniform(self, seed: int, model: str) -> torch.Tensor:
        """Return float32 draws in [0, 1), fixed by the seed, the names of model and tensor, and an element's index."""
        key = (seed, model)
        if key not in self._uniforms:
            if key not in self.shared.draws:
                self.shared.draws[key] = numpy.random.Generator(self._generator(seed, model))
            draws = self.shared.draws[key].random(self.stop - self.start, dtype=numpy.float32)
            self._uniforms[key] = torch.from_numpy(draws).to(self.job.device).view(-1, self.job.columns)
        return self._uniforms[key]

    def stream(self, seed: int, model: str) -> Array:
        """Return where the draws of `uniform` begin, for a compiled loop: see stream_from."""
        return stream_from(self._generator(seed, model), self.start)

    def _generator(self, seed: int, model: str) -> numpy.random.PCG64:
        digest = hashlib.sha256(f"{seed}\0{model}\0{self.job.output.name}".encode()).digest()
        return numpy.random.PCG64(int.from_bytes(digest[:16], "little"))
