"""Groups of token rows that attend among themselves."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import annotated_types as at
import torch
from jaxtyping import Int, Int64, Shaped
from torch import Tensor

from adaptok.cells.lengths import Count, Lengths, distinct
from adaptok.utils.arguments import NonNegative, check_value
from adaptok.utils.reading import reads_are_free


class Groups(NamedTuple):
    """A partition of token rows into groups that attend among themselves, in flash-attn's layout.

    Attributes:
        order: row of each packed position, or None if the rows already lie group by group.
        inverse: inverse permutation of `order`, or None.
        cu_seqlens: int32 (groups + 1,); group g owns packed positions cu_seqlens[g]:cu_seqlens[g +
            1].
        max_seqlen: host number, at least the longest group.
        lengths: rows per group if the host knows them without asking the device, else None.
    """

    order: Tensor | None
    inverse: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    lengths: Lengths | None

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int], device: torch.device | str | None = None
    ) -> Groups:
        """Groups rows that lie one group after the other, such as the tokens of a model of one's
        own, or what these attend to.

        Args:
            lengths: rows of each group; 0 is a group without rows.
            device: of the rows; None: torch's default.

        Raises:
            ValueError: no groups, or no list of whole numbers.
        """
        check_value(lengths, Annotated[Sequence[NonNegative], at.Len(1)], "lengths")
        known = tuple(map(int, lengths))
        starts = torch.tensor([0, *itertools.accumulate(known)], dtype=torch.int32, device=device)
        return cls(None, None, starts, max(known), known)

    def gather(self, rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
        """Puts rows group by group."""
        return rows if self.order is None else rows[self.order]

    def scatter(self, packed: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
        """Exact inverse of `gather`."""
        return packed if self.inverse is None else packed[self.inverse]

    def ids(self, rows: Count) -> Int64[Tensor, " n"]:
        """Index of the group that each row belongs to."""
        numbers = torch.arange(self.cu_seqlens.shape[0] - 1, device=self.cu_seqlens.device)
        return self.scatter(
            numbers.repeat_interleave(self.cu_seqlens.diff().long(), output_size=rows)
        )

    def slots(self, rows: Count) -> Int64[Tensor, " n"]:
        """Place of each packed row in a layout that pads every group to `max_seqlen`."""
        group = self.packed.ids(rows)
        rank = torch.arange(rows, device=group.device) - self.cu_seqlens[group]
        return group * self.max_seqlen + rank

    @property
    def nonempty(self) -> Groups:
        """Drops the groups that own no rows, if the host knows them; the rows stay."""
        if not isinstance(self.lengths, tuple) or 0 not in self.lengths:
            return self
        lengths = tuple(length for length in self.lengths if length)
        starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        return self._replace(cu_seqlens=starts.to(self.cu_seqlens.device), lengths=lengths)

    @property
    def packed(self) -> Groups:
        """The same groups for rows that are already gathered."""
        return self._replace(order=None, inverse=None)


@dataclasses.dataclass(frozen=True)
class GridLayout:
    """Layout of cells whose centres form one regular grid, the same in every sample.

    Attributes:
        grid: number of cells along (t, *space).
        pitch: distance of neighbouring centres in grid points.
        offset: first centre minus half a pitch.
    """

    grid: tuple[int, ...]
    pitch: tuple[int, ...]
    offset: tuple[float, ...]


def inverse_permutation(order: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Where each index stands in `order`."""
    return torch.empty_like(order).scatter(
        0, order, torch.arange(order.shape[0], device=order.device)
    )


def product(values: Iterable[int]) -> int:
    """Product of whole numbers; unlike ``math.prod``, torch.compile can trace it over shapes."""
    result = 1
    for value in values:
        result *= value
    return result


def sorted_groups(
    key: Int[Tensor, " n"], count: Count, bound: int, lengths: Lengths | None = None
) -> Groups:
    """Groups rows by a key in 0..count-1; empty groups stay, so that their number is static."""
    order = key.argsort(stable=True)
    inverse = inverse_permutation(order)
    sizes = torch.zeros(count, dtype=torch.int32, device=key.device)
    sizes = sizes.scatter_add(0, key, torch.ones_like(key, dtype=torch.int32))
    cu_seqlens = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
    if lengths is not None:
        return Groups(order, inverse, cu_seqlens, max(distinct(lengths), default=0), lengths)
    if not reads_are_free(key):
        return Groups(order, inverse, cu_seqlens, bound, None)  # asking would sync
    lengths = tuple(sizes.tolist())
    return Groups(order, inverse, cu_seqlens, max(lengths, default=0), lengths)
