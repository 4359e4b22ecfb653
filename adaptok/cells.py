"""Cells: the boxes of the field that tokens stand for, packed over a batch; and groups of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int8, Int32, Int64, Shaped
from torch import Tensor
from torch.utils import _pytree as pytree


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
    lengths: tuple[int, ...] | None

    def gather(self, rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
        """Puts rows group by group."""
        return rows if self.order is None else rows[self.order]

    def scatter(self, packed: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
        """Exact inverse of `gather`."""
        return packed if self.inverse is None else packed[self.inverse]

    def ids(self, rows: int) -> Int64[Tensor, " n"]:
        """Index of the group that each row belongs to."""
        numbers = torch.arange(len(self.cu_seqlens) - 1, device=self.cu_seqlens.device)
        return self.scatter(
            numbers.repeat_interleave(self.cu_seqlens.diff().long(), output_size=rows)
        )

    @property
    def nonempty(self) -> Groups:
        """Drops the groups that own no rows, if the host knows them; the rows stay."""
        if self.lengths is None or 0 not in self.lengths:
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


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """Axis-aligned boxes of grid points, one per token, packed over the samples of a batch.

    Axes are time first, a = 1 + number of space dimensions; all geometry is in grid points of the
    field. Immutable integer geometry without gradients; a pytree whose static part is
    `max_seqlen`, `lengths`, `shape`, `sizes`, `tiling`, `layout` and `bounded`.

    Attributes:
        origin: first grid point; may be negative if supports overlap a padded border.
        size: extent, at least 1 (cells at the border of a domain that does not divide are clipped).
        level: index into `sizes`, 0 is the coarsest.
        cu_seqlens: sample i owns rows cu_seqlens[i]:cu_seqlens[i + 1].
        max_seqlen: host number, at least the longest sample.
        lengths: rows per sample if the host knows them, else None.
        shape: (t, *space) of the field.
        sizes: cell size of each level, coarse to fine, time first.
        tiling: whether the cells cover (t, *space) of every sample exactly once.
        layout: what a paired decoder needs beyond the boxes (hashable), or None; a `GridLayout`
            also gives `groups` its bands.
        bounded: whether no two cells are alike, so that geometry bounds how many rows share a
            group; False for rows with filler, which repeats a cell any number of times.
    """

    origin: Int32[Tensor, "n a"]
    size: Int32[Tensor, "n a"]
    level: Int8[Tensor, " n"]
    cu_seqlens: Int32[Tensor, " b1"]
    max_seqlen: int
    lengths: tuple[int, ...] | None
    shape: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    tiling: bool = True
    layout: Any = None
    bounded: bool = dataclasses.field(default=True, kw_only=True)

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def ndim(self) -> int:
        """Number of space dimensions."""
        return self.origin.shape[1] - 1

    def __len__(self) -> int:
        return self.origin.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the geometry."""
        return self.origin.device

    @property
    def sample(self) -> Int64[Tensor, " n"]:
        """Sample that each row belongs to."""
        ids = torch.arange(self.batch_size, device=self.device)
        return torch.repeat_interleave(ids, self.cu_seqlens.diff(), output_size=len(self))

    @property
    def center(self) -> Float[Tensor, "n a"]:
        """Centres in grid points: the cell of size 1 at the first grid point has centre 0.5."""
        return self.origin + self.size / 2

    @property
    def volume(self) -> Int64[Tensor, " n"]:
        """Number of grid points in each cell."""
        return self.size.prod(1)

    def to(self, *args: Any, **kwargs: Any) -> Cells:
        """Moves the geometry to a device; dtypes stay as they are."""
        device = torch.empty(0, device=self.device).to(*args, **kwargs).device
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return dataclasses.replace(self, **moved)

    def groups(
        self,
        fixed: Sequence[int] = (),
        *,
        pitch: Sequence[int] | None = None,
        offset: Sequence[float] | None = None,
        prefix: int = 0,
        by_level: bool = False,
    ) -> Groups:
        """Groups rows that share a sample and, along every fixed axis, the band ``(center - offset)
        // pitch``.

        Args:
            fixed: axes (0 is time) along which a group does not extend; with none, each sample is
                a group.
            pitch: width of a band per fixed axis; default the coarsest cell size, or that of a
                `GridLayout`.
            offset: first grid point of band 0 per fixed axis; default 0, or that of a `GridLayout`.
                Cells outside the bands join the nearest one.
            prefix: number of rows without a cell (class and register tokens) that lead each sample.
                `order` then expects the rows ``cat([prefix rows of all samples, token rows])``.
            by_level: whether rows of different levels never share a group.

        Raises:
            ValueError: an axis outside 0..a-1 or given twice, or a prefix together with fixed axes
                or levels.
        """
        axes = tuple(fixed)
        if len(set(axes)) != len(axes) or any(not 0 <= axis <= self.ndim for axis in axes):
            raise ValueError(f"fixed axes must be different numbers in 0..{self.ndim}, got {axes}")
        if prefix and (axes or by_level):
            raise ValueError("prefix rows have no cell, so they go with fixed=() only")
        if prefix:
            return self._prefixed_groups(prefix)
        if not axes and not by_level:
            return Groups(None, None, self.cu_seqlens, self.max_seqlen, self.lengths)
        if pitch is None and offset is None and isinstance(self.layout, GridLayout):
            return self._grid_groups(axes, self.layout)
        pitch = pitch or [self.sizes[0][axis] for axis in axes]
        offset = offset or [0] * len(axes)
        if len(pitch) != len(axes) or len(offset) != len(axes):
            raise ValueError(f"one pitch and offset per fixed axis {axes}, got {pitch}, {offset}")
        center, key, count = self.center, self.sample, self.batch_size
        for axis, width, start in zip(axes, pitch, offset, strict=True):
            bands = max(1, math.ceil((self.shape[axis] - start) / width))
            band = ((center[:, axis] - start) / width).floor().long().clamp(0, bands - 1)
            key, count = key * bands + band, count * bands
        if by_level:
            key, count = key * len(self.sizes) + self.level, count * len(self.sizes)
        return _sorted_groups(key, count, self._most(axes, pitch, offset, by_level))

    def _most(
        self, axes: Sequence[int], pitch: Sequence[int], offset: Sequence[float], by_level: bool
    ) -> int:
        """Bounds the rows of a group: on level grids no two cells of a tiling, or of a level, have
        their centres in one finest cell.
        """
        # Cells before the offset join band 0.
        if self.layout is not None or not self.bounded or any(offset):
            return self.max_seqlen
        finest = self.sizes[-1]
        counts = [math.ceil(n / p) for n, p in zip(self.shape, finest, strict=True)]
        for axis, width in zip(axes, pitch, strict=True):
            inside = math.ceil(width / finest[axis]) + (width % finest[axis] != 0)
            counts[axis] = min(counts[axis], inside)
        layers = 1 if self.tiling or by_level else len(self.sizes)
        return min(self.max_seqlen, layers * product(counts))

    def _grid_groups(self, axes: Sequence[int], layout: GridLayout) -> Groups:
        """Groups by bands of a regular grid, whose equal lengths are known without asking the
        device.
        """
        center, key, count = self.center, self.sample, self.batch_size
        for axis in axes:
            band = ((center[:, axis] - layout.offset[axis]) / layout.pitch[axis]).floor().long()
            key, count = key * layout.grid[axis] + band, count * layout.grid[axis]
        n = len(self)
        whole = n == self.batch_size * product(layout.grid)
        return _sorted_groups(key, count, self.max_seqlen, (n // count,) * count if whole else None)

    def _prefixed_groups(self, prefix: int) -> Groups:
        b, n, device = self.batch_size, len(self), self.device
        sample = self.sample
        rows_of_prefix = torch.arange(b * prefix, device=device)
        first = self.cu_seqlens[:-1].long() + prefix * torch.arange(b, device=device)
        position_of_prefix = first.repeat_interleave(prefix, output_size=b * prefix)
        position_of_prefix = position_of_prefix + rows_of_prefix % prefix
        position_of_token = torch.arange(n, device=device) + prefix * (sample + 1)
        inverse = torch.cat([position_of_prefix, position_of_token])
        order = inverse_permutation(inverse)
        shift = prefix * torch.arange(b + 1, device=device, dtype=torch.int32)
        lengths = self.lengths and tuple(length + prefix for length in self.lengths)
        return Groups(order, inverse, self.cu_seqlens + shift, self.max_seqlen + prefix, lengths)

    def validate(self) -> Cells:
        """Checks every invariant, the tiling included (slow; for tests and third-party tokenizers).

        Raises:
            ValueError: an invariant does not hold; the message says which.
        """
        n, a = self.origin.shape
        starts = self.cu_seqlens.tolist()
        true_lengths = tuple(end - start for start, end in itertools.pairwise(starts))
        checks = {
            "shape and sizes have time and space axes": len(self.shape) == a
            and all(len(size) == a for size in self.sizes),
            "origin, size and level have one row per token": self.size.shape == (n, a)
            and self.level.shape == (n,),
            "geometry is int32 and level int8": self.origin.dtype == self.size.dtype == torch.int32
            and self.level.dtype == torch.int8,
            "cu_seqlens is int32, starts at 0 and ends at n": self.cu_seqlens.dtype == torch.int32
            and starts[0] == 0
            and starts[-1] == n,
            "samples have no negative length": min(true_lengths, default=0) >= 0,
            "max_seqlen bounds every sample": self.max_seqlen >= max(true_lengths, default=0),
            "lengths are the true ones": self.lengths is None or self.lengths == true_lengths,
            "sizes are at least 1": n == 0 or int(self.size.min()) >= 1,
            "levels index sizes": n == 0
            or (int(self.level.min()) >= 0 and int(self.level.max()) < len(self.sizes)),
            "neighbouring sizes differ by integer ratios": nested(self.sizes),
        }
        for what, holds in checks.items():
            if not holds:
                raise ValueError(f"invalid Cells: {what} does not hold")
        if self.tiling:
            self.owner_map()
        return self

    def owner_map(self) -> Int64[Tensor, "b *shape"]:
        """Finds the row that owns each grid point: the slow, obvious reference.

        Raises:
            ValueError: the cells of a sample overlap, leave a hole or stick out of the domain.
        """
        owner = torch.full((self.batch_size, *self.shape), -1)
        samples, starts = self.sample.tolist(), self.origin.tolist()
        for row, (sample, start, size) in enumerate(
            zip(samples, starts, self.size.tolist(), strict=True)
        ):
            box = tuple(slice(o, o + s) for o, s in zip(start, size, strict=True))
            if any(s.start < 0 or s.stop > e for s, e in zip(box, self.shape, strict=True)):
                raise ValueError(f"cell {row} at {start} of size {size} sticks out of {self.shape}")
            region = owner[(sample, *box)]
            if bool((region != -1).any()):
                raise ValueError(f"cell {row} at {start} of size {size} overlaps another cell")
            region.fill_(row)
        if bool((owner == -1).any()):
            raise ValueError("the cells leave a hole: not a tiling")
        return owner.to(self.device)


def inverse_permutation(order: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Where each index stands in `order`."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def product(values: Iterable[int]) -> int:
    """Product of whole numbers; unlike ``math.prod``, torch.compile can trace it over shapes."""
    result = 1
    for value in values:
        result *= value
    return result


def nested(sizes: Sequence[Sequence[int]]) -> bool:
    """Whether each size is an integer multiple of the next finer one on every axis, and differs."""
    return all(
        all(c % f == 0 for c, f in zip(coarse, fine, strict=True)) and tuple(coarse) != tuple(fine)
        for coarse, fine in itertools.pairwise(sizes)
    )


def _sorted_groups(
    key: Int[Tensor, " n"], count: int, bound: int, lengths: tuple[int, ...] | None = None
) -> Groups:
    """Groups rows by a key in 0..count-1; empty groups stay, so that their number is static."""
    order = key.argsort(stable=True)
    inverse = inverse_permutation(order)
    sizes = torch.zeros(count, dtype=torch.int32, device=key.device)
    sizes = sizes.scatter_add_(0, key, torch.ones_like(key, dtype=torch.int32))
    cu_seqlens = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
    if lengths is not None:
        return Groups(order, inverse, cu_seqlens, max(lengths, default=0), lengths)
    if key.device.type != "cpu" or torch.compiler.is_compiling():
        return Groups(order, inverse, cu_seqlens, bound, None)  # asking would sync
    lengths = tuple(sizes.tolist())
    return Groups(order, inverse, cu_seqlens, max(lengths, default=0), lengths)


def register_pytree(cls: type, leaves: tuple[str, ...], static: tuple[str, ...] = ()) -> None:
    """Makes a frozen dataclass a pytree with some of its fields as leaves."""

    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(value, name) for name in leaves], tuple(getattr(value, s) for s in static)

    def unflatten(values: Any, context: tuple[Any, ...]) -> Any:
        # Leaves may be anything while a tree is mapped over, so the constructor is bypassed.
        made = object.__new__(cls)
        for name, value in zip(leaves + static, (*values, *context), strict=True):
            object.__setattr__(made, name, value)
        return made

    name = f"adaptok.{cls.__name__}"
    pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=name)


_TENSORS = ("origin", "size", "level", "cu_seqlens")
_STATIC = ("max_seqlen", "lengths", "shape", "sizes", "tiling", "layout", "bounded")
register_pytree(Cells, _TENSORS, _STATIC)
