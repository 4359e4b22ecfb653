"""Cells: the boxes of the field that tokens stand for, packed over a batch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int8, Int32, Int64
from torch import Tensor
from torch.utils import _pytree as pytree

from adaptok.cells.groups import GridLayout, Groups, inverse_permutation, product, sorted_groups
from adaptok.cells.lengths import Count, Equal, Lengths, common, each, repeated
from adaptok.cells.matching import matching_rows
from adaptok.utils.arguments import check_fields, shown
from adaptok.utils.constants import constant
from adaptok.utils.reading import reads_are_free


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Cells:
    """Axis-aligned boxes of grid points, one per token, packed over the samples of a batch.

    Axes are time first, a = 1 + number of space dimensions; all geometry is in grid points of the
    field. Immutable integer geometry without gradients; a pytree whose static part is
    everything but the first four attributes.

    Attributes:
        origin: first grid point; may be negative if supports overlap a padded border.
        size: extent, at least 1; cells at the border of a domain that does not divide are clipped,
            unless they `overhang`.
        level: index into `sizes`, 0 is the coarsest.
        cu_seqlens: sample i owns rows cu_seqlens[i]:cu_seqlens[i + 1].
        max_seqlen: host number, at least the longest sample.
        lengths: rows per sample if the host knows them, else None.
        shape: (t, *space) of the field; if the samples differ in it, reading it is a
            ``ValueError``, and `shapes` has one per sample.
        sizes: cell size of each level, coarse to fine, time first.
        tiling: whether the cells cover (t, *space) of every sample exactly once.
        layout: what a paired decoder needs beyond the boxes (hashable), or None; a `GridLayout`
            also gives `groups` its bands.
        on_grid: whether every cell lies on the grid of its level: the origin a multiple of the
            level's size, the size that of the level but for clipping at the border. Parts that
            index such grids refuse other cells.
        overhang: whether cells at the border keep the size of their level, stick out, and may lie
            beyond it (they fill up a fixed number of tokens). `extended` gives them the domain that
            they tile; values beyond the border are made by the boundary's rule, and cut off again.
        mixed: shapes of the samples if they differ (`shape` is then ignored), else None.
        bounded: whether no two cells are alike, so that geometry bounds how many rows share a
            group; False for rows with filler, which repeats a cell any number of times.
    """

    origin: Int32[Tensor, "n a"]
    size: Int32[Tensor, "n a"]
    level: Int8[Tensor, " n"]
    cu_seqlens: Int32[Tensor, " b1"]
    max_seqlen: int
    lengths: Lengths | None
    shape: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    tiling: bool = True
    layout: Any = None
    on_grid: bool = dataclasses.field(default=False, kw_only=True)
    overhang: bool = dataclasses.field(default=False, kw_only=True)
    mixed: tuple[tuple[int, ...], ...] | None = dataclasses.field(default=None, kw_only=True)
    bounded: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        if not torch.compiler.is_compiling():
            check_fields(self)
        if self.mixed is None:
            return
        if len(self.mixed) != self.batch_size:
            raise ValueError(f"{len(self.mixed)} shapes for {self.batch_size} samples")
        if len({*self.mixed}) == 1:
            object.__setattr__(self, "shape", self.mixed[0])
            object.__setattr__(self, "mixed", None)
        else:
            object.__delattr__(self, "shape")  # so that reading it ends in __getattr__

    def __getattr__(self, name: str) -> Any:
        if name == "shape":
            raise ValueError(f"the samples have shapes {self.mixed}: use `shapes`, one per sample")
        raise AttributeError(f"'Cells' object has no attribute {name!r}")

    def __repr__(self) -> str:
        shape = self.mixed or self.shape
        kind = "tiling" if self.tiling else "no tiling"
        return (
            f"Cells({len(self)} of {self.batch_size} sample(s), shape {shape}, sizes {self.sizes}, "
            f"{kind})"
        )

    def replace(self, **changes: Any) -> Cells:
        """Returns a copy with some attributes changed."""
        kept = {"shape": (), **{name: vars(self)[name] for name in _FIELDS if name in vars(self)}}
        return Cells(**(kept | changes))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """(t, *space) of each sample's field."""
        return self.mixed or (self.shape,) * self.batch_size

    @property
    def extents(self) -> tuple[int, ...] | Int64[Tensor, "n a"]:
        """(t, *space) of the field, or of each row's field if the samples differ."""
        if self.mixed is None:
            return self.shape
        return torch.tensor(self.mixed, device=self.device)[self.sample]

    def _rounded(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self.overhang:
            return shape
        space = zip(shape[1:], self.sizes[0][1:], strict=True)  # no cell ends after the last frame
        return (shape[0], *(-(-n // size) * size for n, size in space))

    @property
    def reach(self) -> tuple[int, ...]:
        """(t, *space) that the cells tile: `shape`, or if they overhang in space the next multiple
        of the coarsest size.
        """
        return self._rounded(self.shape)

    def extended(self) -> Cells:
        """The same cells of a domain in which none sticks out, see `reach`."""
        return self.replace(shape=self.reach, overhang=False) if self.overhang else self

    @property
    def batch_size(self) -> Count:
        """Number of samples."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def ndim(self) -> int:
        """Number of space dimensions."""
        return self.origin.shape[1] - 1

    @property
    def count(self) -> Count:
        """Number of cells: ``len`` of them, which is no whole number but a symbol in a program that
        is exported with a dynamic batch.
        """
        return self.origin.shape[0]

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
        length = common(self.lengths)
        if length is not None:
            return ids[:, None].expand(-1, length).reshape(-1)
        return torch.repeat_interleave(ids, self.cu_seqlens.diff(), output_size=self.count)

    @property
    def center(self) -> Float[Tensor, "n a"]:
        """Centres in grid points: the cell of size 1 at the first grid point has centre 0.5."""
        return self.origin + self.size / 2

    @property
    def volume(self) -> Int64[Tensor, " n"]:
        """Number of grid points in each cell; of cells that overhang, those inside the domain."""
        size = self.size
        if self.overhang:
            ends: Any = self.extents
            ends = constant(ends, self.device) if isinstance(ends, tuple) else ends
            size = torch.minimum(size, ends.to(size.dtype) - self.origin).clamp(min=0)
        return size.prod(1)

    def to(self, *args: Any, **kwargs: Any) -> Cells:
        """Moves the geometry to a device; dtypes stay as they are."""
        device = torch.empty(0, device=self.device).to(*args, **kwargs).device
        return self.replace(**{name: getattr(self, name).to(device) for name in _TENSORS})

    def pin_memory(self) -> Cells:
        """Copies the geometry into page-locked memory, for loaders."""
        return self.replace(**{name: getattr(self, name).pin_memory() for name in _TENSORS})

    @staticmethod
    def cat(parts: Sequence[Cells]) -> Cells:
        """Puts the samples of several batches into one; their shapes may differ.

        The sizes of a part may be the last of those of another one, such as in trees whose root is
        the whole domain.

        Raises:
            ValueError: no parts, parts with other sizes, layout or axes, or some whose cells are
                clipped at the border and others where they are not.
        """
        if not parts:
            raise ValueError("Cells.cat needs at least one part")
        first = max(parts, key=lambda part: len(part.sizes))
        coarser = [len(first.sizes) - len(part.sizes) for part in parts]
        for part, missing in zip(parts, coarser, strict=True):
            sizes = first.sizes[missing:]
            if (part.sizes, part.layout, part.ndim) != (sizes, first.layout, first.ndim):
                raise ValueError(
                    "parts must share sizes and layout, got "
                    f"{first.sizes}, {first.layout} and {part.sizes}, {part.layout}"
                )
        overhang = any(part.overhang for part in parts)
        for part in parts:
            sizes = part.sizes[0][1:]
            ends = {n % size for s in part.shapes for n, size in zip(s[1:], sizes, strict=True)}
            if part.overhang != overhang and ends != {0}:
                raise ValueError("the cells of some parts are clipped at the border, others not")
        known = [part.lengths for part in parts if isinstance(part.lengths, tuple)]
        starts, before = [first.cu_seqlens[:1]], 0
        for part in parts:
            starts.append(part.cu_seqlens[1:] + before)
            before += len(part)
        return Cells(
            torch.cat([part.origin for part in parts]),
            torch.cat([part.size for part in parts]),
            torch.cat([part.level + k for part, k in zip(parts, coarser, strict=True)]),
            torch.cat(starts),
            max(part.max_seqlen for part in parts),
            tuple(itertools.chain(*known)) if len(known) == len(parts) else None,
            (),
            first.sizes,
            all(part.tiling for part in parts),
            first.layout,
            on_grid=all(part.on_grid for part in parts),
            overhang=overhang,
            mixed=tuple(itertools.chain(*(part.shapes for part in parts))),
            bounded=all(part.bounded for part in parts),
        )

    def samples(self, start: int, stop: int) -> Cells:
        """Takes the samples start..stop - 1; without host lengths this reads two offsets.

        Raises:
            ValueError: the batch has no such samples.
        """
        rows = self.rows(start, stop)
        lengths = self.lengths[start:stop] if isinstance(self.lengths, tuple) else None
        offsets = self.cu_seqlens[start : stop + 1]
        return self.replace(
            **{name: getattr(self, name)[rows] for name in _TENSORS[:3]},
            cu_seqlens=offsets - offsets[0],
            lengths=lengths,
            max_seqlen=self.max_seqlen if lengths is None else max(lengths, default=0),
            mixed=self.shapes[start:stop],
        )

    def rows(self, start: int, stop: int) -> slice:
        """Rows of the samples start..stop - 1; without host lengths this reads two offsets.

        Raises:
            ValueError: the batch has no such samples.
        """
        if not 0 <= start < stop <= self.batch_size:
            raise ValueError(
                f"0 <= start < stop <= {self.batch_size}, the samples of the batch, does not hold: "
                f"got {start} and {stop}"
            )
        if not isinstance(self.lengths, tuple):
            return slice(int(self.cu_seqlens[start]), int(self.cu_seqlens[stop]))
        return slice(sum(self.lengths[:start]), sum(self.lengths[:stop]))

    def select(self, rows: Bool[Tensor, " n"] | Int64[Tensor, " m"]) -> Cells:
        """Keeps some rows, so that the result is no tiling.

        Args:
            rows: a mask with one value per row, or indices from 0 that keep the order of the
                samples; one may come several times, so that its row is copied.

        Raises:
            ValueError: neither, indices outside of the rows, or some that mix the order of the
                samples (values are checked on the CPU).
        """
        return self._take(*self._chosen(rows))

    def _chosen(self, rows: Any) -> tuple[Int64[Tensor, " m"], int]:
        """Returns checked indices, and a bound for how many are of one sample."""
        n = self.count
        plain = isinstance(rows, Tensor) and rows.ndim == 1
        if plain and rows.dtype == torch.bool and rows.shape[0] == n:
            rows = rows.nonzero().squeeze(1)  # the sync: how many there are sizes the result
            return rows, min(self.max_seqlen, len(rows))
        if not plain or rows.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"rows are a mask of shape ({n},), or indices (m,) of dtype int64 or int32, got "
                f"{shown(rows)}"
            )
        if reads_are_free(rows) and bool(((rows < 0) | (rows >= n)).any()):
            low, high = int(rows.min()), int(rows.max())
            raise ValueError(f"indices of {n} rows are 0..{n - 1}, got some from {low} to {high}")
        return rows, len(rows)  # all of them may be copies of one

    def _take(self, rows: Int64[Tensor, " m"], longest: int) -> Cells:
        sample = self.sample[rows]
        counts = torch.zeros_like(self.cu_seqlens[1:])
        counts = counts.index_add_(0, sample, torch.ones_like(sample, dtype=counts.dtype))
        lengths = None
        if reads_are_free(sample):
            if bool((sample.diff() < 0).any()):
                raise ValueError("rows must keep the order of the samples")
            lengths = tuple(counts.tolist())
            longest = max(lengths, default=0)
        return self.replace(
            **{name: getattr(self, name)[rows] for name in _TENSORS[:3]},
            cu_seqlens=torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0)),
            lengths=lengths,
            max_seqlen=longest,
            tiling=False,
            bounded=False,  # an index may come twice
        )

    def match(self, previous: Cells) -> Int64[Tensor, " n"]:
        """Finds the row of each cell among those of another call, -1 for a new one, see
        `matching_rows`.
        """
        return matching_rows(self, previous)

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
            pitch: width of a band per fixed axis; default the coarsest cell size.
            offset: first grid point of band 0 per fixed axis; default 0. Without both, a
                `GridLayout` has its own. Cells outside the bands join the nearest one.
            prefix: number of rows without a cell (class and register tokens) that lead each sample.
                `order` then expects the rows ``cat([prefix rows of all samples, token rows])``.
            by_level: whether rows of different levels never share a group.

        Raises:
            ValueError: an axis outside 0..a-1 or given twice, a pitch that is not above 0, or a
                prefix together with fixed axes or levels.
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
        if min(pitch, default=1) <= 0:
            raise ValueError(f"the pitch of bands is above 0, got {tuple(pitch)}")
        center, key, count = self.center, self.sample, self.batch_size
        largest = self._largest()
        for axis, width, start in zip(axes, pitch, offset, strict=True):
            bands = max(1, math.ceil((largest[axis] - start) / width))
            band = ((center[:, axis] - start) / width).floor().long().clamp(0, bands - 1)
            key, count = key * bands + band, count * bands
        if by_level:
            key, count = key * len(self.sizes) + self.level, count * len(self.sizes)
        return sorted_groups(key, count, self._most(axes, pitch, offset, by_level))

    def _most(
        self, axes: Sequence[int], pitch: Sequence[int], offset: Sequence[float], by_level: bool
    ) -> int:
        """Bounds the rows of a group: on level grids no two cells of a tiling, or of a level, have
        their centres in one finest cell; elsewhere there is no bound but the length of a sample.
        """
        # Cells before the offset join band 0.
        if not self.on_grid or not self.bounded or any(offset):
            return self.max_seqlen
        finest = self.sizes[-1]
        counts = [math.ceil(n / p) for n, p in zip(self._largest(), finest, strict=True)]
        for axis, width in zip(axes, pitch, strict=True):
            inside = math.ceil(width / finest[axis]) + (width % finest[axis] != 0)
            counts[axis] = min(counts[axis], inside)
        layers = 1 if self.tiling or by_level else len(self.sizes)
        return min(self.max_seqlen, layers * product(counts))

    def _largest(self) -> tuple[int, ...]:
        """Largest extent of each axis over the samples, up to where cells reach."""
        largest = self.shape if self.mixed is None else tuple(map(max, *self.mixed))
        return self._rounded(largest)

    def _grid_groups(self, axes: Sequence[int], layout: GridLayout) -> Groups:
        """Groups by bands of a regular grid, whose equal lengths are known without asking the
        device.
        """
        center, key, count = self.center, self.sample, self.batch_size
        for axis in axes:
            band = ((center[:, axis] - layout.offset[axis]) / layout.pitch[axis]).floor().long()
            key, count = key * layout.grid[axis] + band, count * layout.grid[axis]
        whole = self.bounded and self.count == self.batch_size * product(layout.grid)
        length = product(n for axis, n in enumerate(layout.grid) if axis not in axes)
        lengths = repeated(length, count) if whole else None
        return sorted_groups(key, count, self.max_seqlen, lengths)

    def _prefixed_groups(self, prefix: int) -> Groups:
        b, n, device = self.batch_size, self.count, self.device
        lengths = self.lengths and each(self.lengths, lambda length: length + prefix)
        shift = prefix * torch.arange(b + 1, device=device, dtype=torch.int32)
        offsets, longest = self.cu_seqlens + shift, self.max_seqlen + prefix
        if isinstance(lengths, tuple) and len(lengths) == 1:  # the rows of one sample lie in order
            return Groups(None, None, offsets, longest, lengths)
        sample = self.sample
        first = self.cu_seqlens[:-1].long() + prefix * torch.arange(b, device=device)
        position_of_prefix = (first[:, None] + torch.arange(prefix, device=device)).flatten()
        position_of_token = torch.arange(n, device=device) + prefix * (sample + 1)
        inverse = torch.cat([position_of_prefix, position_of_token])
        return Groups(inverse_permutation(inverse), inverse, offsets, longest, lengths)

    def validate(self) -> Cells:
        """Checks every invariant, the tiling included (slow; for tests and third-party tokenizers).

        Raises:
            ValueError: an invariant does not hold; the message says which.
        """
        n, a = self.origin.shape
        starts = self.cu_seqlens.tolist()
        true_lengths = tuple(end - start for start, end in itertools.pairwise(starts))
        checks = {
            "shapes and sizes have time and space axes": all(len(s) == a for s in self.shapes)
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
                raise ValueError(f"invalid Cells, this does not hold: {what}")
        if n and self.layout is None:
            self._check_levels()
        if self.tiling and self.mixed is not None:
            for i in range(self.batch_size):
                self.samples(i, i + 1).owner_map()
        elif self.tiling:
            self.owner_map()
        return self

    def _check_levels(self) -> None:
        """Raises ``ValueError`` for a cell that its level contradicts."""
        size = torch.tensor(self.sizes, device=self.device)[self.level.long()]
        fits = self.size <= size
        what = "no cell is larger than the size of its level"
        if self.on_grid and bool(fits.all()):
            extent = torch.as_tensor(self.extents, device=self.device)
            inside = size if self.overhang else torch.minimum(size, extent - self.origin)
            fits = (self.origin % size == 0) & (self.size == inside)
            what = "every cell lies on the grid of its level (on_grid=True)"
        if not bool(fits.all()):
            row = int((~fits).any(1).nonzero()[0])
            raise ValueError(
                f"invalid Cells: {what} does not hold: cell {row} at {self.origin[row].tolist()} "
                f"of size {self.size[row].tolist()} has level {int(self.level[row])} of sizes "
                f"{self.sizes}"
            )

    def owner_map(self) -> Int64[Tensor, "b *shape"]:
        """Finds the row that owns each grid point: the slow, obvious reference.

        Raises:
            ValueError: the cells of a sample overlap, leave a hole or stick out of the domain.
        """
        whole = self.reach
        owner = torch.full((self.batch_size, *whole), -1)
        samples, starts = self.sample.tolist(), self.origin.tolist()
        for row, (sample, start, size) in enumerate(
            zip(samples, starts, self.size.tolist(), strict=True)
        ):
            box = tuple(slice(o, o + s) for o, s in zip(start, size, strict=True))
            if any(s.start < 0 or s.stop > e for s, e in zip(box, whole, strict=True)):
                raise ValueError(f"cell {row} at {start} of size {size} sticks out of {whole}")
            region = owner[(sample, *box)]
            if bool((region != -1).any()):
                raise ValueError(f"cell {row} at {start} of size {size} overlaps another cell")
            region.fill_(row)
        owner = owner[(slice(None), *map(slice, self.shape))]
        if bool((owner == -1).any()):
            raise ValueError("the cells leave a hole: not a tiling")
        return owner.to(self.device)


def nested(sizes: Sequence[Sequence[int]]) -> bool:
    """Whether each size is an integer multiple of the next finer one on every axis, and differs."""
    return all(
        all(c % f == 0 for c, f in zip(coarse, fine, strict=True)) and tuple(coarse) != tuple(fine)
        for coarse, fine in itertools.pairwise(sizes)
    )


def register_pytree(cls: type, leaves: tuple[str, ...], static: tuple[str, ...] = ()) -> None:
    """Makes a frozen dataclass a pytree with some of its fields as leaves."""

    def flatten(value: Any) -> tuple[list[Any], tuple[Any, ...]]:
        # A number of samples that is a symbol has no place in the structure of a result.
        context = (vars(value).get(name) for name in static)
        context = (None if isinstance(known, Equal) else known for known in context)
        return [getattr(value, name) for name in leaves], tuple(context)

    def unflatten(values: Any, context: tuple[Any, ...]) -> Any:
        # Leaves may be anything while a tree is mapped over, so the constructor is bypassed.
        made = object.__new__(cls)
        for name, value in zip(leaves + static, (*values, *context), strict=True):
            if not (name == "shape" and value is None):  # cells of samples that differ in it
                object.__setattr__(made, name, value)
        return made

    name = f"adaptok.{cls.__name__}"
    pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=name)


_TENSORS = ("origin", "size", "level", "cu_seqlens")
_STATIC = (
    *("max_seqlen", "lengths", "shape", "sizes", "tiling", "layout"),
    *("on_grid", "overhang", "mixed", "bounded"),
)
_FIELDS = _TENSORS + _STATIC
register_pytree(Cells, _TENSORS, _STATIC)
