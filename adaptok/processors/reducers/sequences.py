"""Rows of several sequences, one after the other, and what a reducer makes of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64, Shaped
from torch import Tensor

from adaptok.cells.lengths import (
    Count,
    Lengths,
    common,
    distinct,
    each,
    number,
    offsets_of,
    total,
)


class Sequences(NamedTuple):
    """The rows that reduce among themselves, as ``(g, m)`` slots: g sequences, m the longest.

    Attributes:
        lengths: rows of each sequence; the host knows them, so that all shapes are static.
        prefix: rows at the start of each (class and register tokens) that are never reduced.
        device: of the rows.
    """

    lengths: Lengths
    prefix: int
    device: torch.device

    @property
    def longest(self) -> int:
        """Rows of the longest sequence."""
        return max(distinct(self.lengths), default=0)

    @property
    def place(self) -> Int64[Tensor, " m"]:
        """Position of each slot in its sequence."""
        return torch.arange(self.longest, device=self.device)

    @property
    def rows(self) -> Count:
        """Number of rows of all sequences."""
        return total(self.lengths)

    def counts(self, lengths: Lengths | None = None) -> Int[Tensor, "g 1"]:
        """The lengths, or other numbers per sequence, on the device."""
        return offsets_of(self.lengths if lengths is None else lengths, self.device).diff()[:, None]

    def free(self) -> Bool[Tensor, "g m"]:
        """Which slots hold a row that may be reduced."""
        return (self.place >= self.prefix) & (self.place < self.counts())

    def spread(self, rows: Shaped[Tensor, "n *d"]) -> Shaped[Tensor, "g m *d"]:
        """Puts rows into slots; those without a row are zero."""
        shape = (number(self.lengths), self.longest)
        if common(self.lengths) is not None:
            return rows.unflatten(0, shape)
        dense = rows.new_zeros(shape[0] * shape[1], *rows.shape[1:])
        return dense.index_copy(0, self._slots(), rows).unflatten(0, shape)

    def collect(self, dense: Shaped[Tensor, "g m *d"]) -> Shaped[Tensor, "n *d"]:
        """Takes the rows out of their slots."""
        flat = dense.flatten(0, 1)
        return flat if common(self.lengths) is not None else flat[self._slots()]

    def mean(self, rows: Float[Tensor, "n *d"]) -> Float[Tensor, "g *d"]:
        """Mean over the rows of each sequence."""
        dense = self.spread(rows)
        return dense.sum(1) / self.counts().view(-1, *[1] * (dense.ndim - 2)).clamp(min=1)

    def _slots(self) -> Int64[Tensor, " n"]:
        sizes = self.counts()[:, 0].long()
        starts = offsets_of(self.lengths, self.device)[:-1].long()
        shift = torch.arange(len(sizes), device=self.device) * self.longest - starts
        shift = shift.repeat_interleave(sizes, output_size=self.rows)
        return torch.arange(self.rows, device=self.device) + shift

    def fewer(self, taken: Lengths) -> Lengths:
        """Lengths after some rows of each sequence are gone."""
        if isinstance(self.lengths, tuple) and isinstance(taken, tuple):
            return tuple(n - t for n, t in zip(self.lengths, taken, strict=True))
        assert not isinstance(self.lengths, tuple)  # one length, of a batch of any size
        return each(self.lengths, lambda n: n - distinct(taken)[0])


class Reduction(NamedTuple):
    """Which row goes where.

    Attributes:
        target: new row of each old one; the number of new rows for one that is dropped.
        kept: the old row whose place (cell, position) each new row has.
        lengths: new rows of each sequence.
    """

    target: Int64[Tensor, " n"]
    kept: Int64[Tensor, " m"]
    lengths: Lengths

    def sums(self, rows: Float[Tensor, "n *d"]) -> Float[Tensor, "m *d"]:
        """Adds the old rows of each new row."""
        room = rows.new_zeros(self.kept.shape[0] + 1, *rows.shape[1:])
        return room.index_add(0, self.target, rows)[:-1]

    def merge(
        self, x: Float[Tensor, "n d"], mass: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
        """Means of the rows by mass, and their mass."""
        own = mass.clamp(min=1e-6)  # what stands for nothing still has a mean
        mean = self.sums(x * own[:, None]) / self.sums(own)[:, None]
        return mean.to(x.dtype), self.sums(mass)


def reduction(
    sequences: Sequences,
    rank: Int64[Tensor, "g m"],
    stays: Bool[Tensor, "g m"],
    lengths: Lengths,
    gone: Bool[Tensor, "g m"] | None = None,
) -> Reduction:
    """Numbers the new rows.

    Args:
        rank: place in the new sequence of each slot's row.
        stays: slots whose row gives the new one its place; the others join it.
        lengths: new rows of each sequence.
        gone: slots whose rows are dropped.
    """
    after = total(lengths)
    target = offsets_of(lengths, sequences.device)[:-1, None] + rank
    if gone is not None:
        target = target.masked_fill(gone, after)
    target, stays = sequences.collect(target), sequences.collect(stays)
    own = torch.arange(sequences.rows, device=sequences.device)
    room = own.new_zeros(after + 1)  # the last one takes what joins
    kept = room.scatter(0, torch.where(stays, target, after), own)[:-1]
    return Reduction(target, kept, lengths)


def in_order(
    sequences: Sequences,
    stays: Bool[Tensor, "g m"],
    lengths: Lengths,
    into: Int64[Tensor, "g m"] | None = None,
) -> Reduction:
    """Keeps rows in their order.

    Args:
        stays: slots of rows that stay, prefix included.
        lengths: how many these are.
        into: slot of the row that each of the others joins; by default they are dropped.
    """
    rank = stays.long().cumsum(1) - 1
    if into is None:
        return reduction(sequences, rank, stays, lengths, gone=~stays)
    return reduction(sequences, torch.where(stays, rank, rank.gather(1, into)), stays, lengths)


def largest(
    score: Float[Tensor, "g m"], free: Bool[Tensor, "g m"], keep: Int[Tensor, "g 1"]
) -> Bool[Tensor, "g m"]:
    """Marks the slots of the `keep` largest scores among free ones; of equal scores the first."""
    return (ranks(score.masked_fill(~free, -torch.inf)) < keep) & free


def ranks(score: Float[Tensor, "g m"]) -> Int64[Tensor, "g m"]:
    """Rank of each slot by descending score, 0 for the largest."""
    order = score.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)
