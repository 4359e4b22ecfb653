"""Tokens along a strip: bands of a domain, one after another, divided at quantiles of a density.

DART (Yin et al., "Differentiable Dynamic Adaptive Region Tokenizer"): the rows of an image get
heights by quantiles of the density's marginal; the density, averaged over each row, is laid out
row after row, and divided at quantiles again. In one dimension there is one band, in three the
bands are the rows of each slab. All of it is differentiable in the density.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from adaptok.cells import Cells, Count, product, register_pytree, repeated
from adaptok.cells.lengths import offsets_of
from adaptok.layers.boundary import Boundary, pad_around

TENSORS = ("origin", "size", "level", "cu_seqlens")
STATIC = tuple(f.name for f in dataclasses.fields(Cells) if f.name not in TENSORS)
EPS = 1e-8  # beside densities in denominators, as in the authors' code


class Strip(NamedTuple):
    """Where bands and tokens end, in cells of the density.

    Attributes:
        bands: ends of the bands along each axis but the last, (b, outer bands, bands + 1).
        edges: ends of the tokens along the strip, (b, n + 1); band after band, each as long as the
            last axis.
    """

    bands: tuple[Tensor, ...]
    edges: Tensor

    @property
    def rows(self) -> int:
        """Number of bands on the strip."""
        return product(ends.shape[2] - 1 for ends in self.bands)


@dataclasses.dataclass(frozen=True)
class StripLayout:
    """Layout of tokens along a strip, whose real ends `StripCells` hold.

    Attributes:
        size: grid points of a cell of the density, per space axis.
    """

    any_size = True  # boxes may be larger than the size of their level
    size: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StripCells(Cells):
    """Cells in whole grid points, with the strip that they are rounded from.

    A token that crosses the end of a band is given the box of its longer part, and its neighbours
    take the other. The strip has a graph if the density has one.

    Attributes:
        strip: of each sample; what joins or drops rows of cells loses it.
    """

    strip: Strip | None = dataclasses.field(default=None, kw_only=True)

    def _with(self, cells: Cells, strip: Strip | None) -> StripCells:
        return StripCells(**{name: getattr(cells, name) for name in TENSORS + STATIC}, strip=strip)

    def samples(self, start: int, stop: int) -> Cells:
        """Takes the samples start..stop - 1."""
        own = None if self.strip is None else _map(self.strip, lambda x: x[start:stop])
        return self._with(super().samples(start, stop), own)

    def pin_memory(self) -> Cells:
        """Copies the geometry into page-locked memory, for loaders."""
        own = None if self.strip is None else _map(self.strip, lambda x: x.pin_memory())
        return self._with(super().pin_memory(), own)

    def to(self, *args: Any, **kwargs: Any) -> Cells:
        """Moves the geometry to a device; dtypes stay as they are."""
        cells = super().to(*args, **kwargs)
        own = None if self.strip is None else _map(self.strip, lambda x: x.to(cells.device))
        return self._with(cells, own)


register_pytree(StripCells, (*TENSORS, "strip"), STATIC)


def _map(strip: Strip, change: Any) -> Strip:
    return Strip(tuple(map(change, strip.bands)), change(strip.edges))


def quantiles(density: Float[Tensor, "m g"], count: int) -> Float[Tensor, "m k"]:
    """Divides rows of cells, each of constant density with the sum 1, into parts of equal mass.

    Returns:
        Their k = count + 1 ends in cells, from 0 to g.
    """
    wanted = torch.linspace(0, 1, count + 1, dtype=density.dtype, device=density.device)[1:-1]
    before = torch.nn.functional.pad(density.cumsum(1), (1, 0))
    wanted = wanted.expand(density.shape[0], -1).contiguous()
    cell = torch.searchsorted(before.detach(), wanted) - 1
    cell = cell.clamp(0, density.shape[1] - 1)
    ends = cell + (wanted - before.gather(1, cell)) / (density.gather(1, cell) + EPS)
    low = torch.zeros_like(density[:, :1])
    return torch.cat([low, ends, low + density.shape[1]], 1)


def averages(ends: Float[Tensor, "m k"], cells: int) -> Float[Tensor, "m parts g"]:
    """Weights of the mean over each part of a row of cells: the share of each cell in it."""
    start = torch.arange(cells, dtype=ends.dtype, device=ends.device)
    low, high = ends[:, :-1, None], ends[:, 1:, None]
    overlap = (torch.minimum(high, start + 1) - torch.maximum(low, start)).clamp(min=0)
    return overlap / (overlap.sum(2, keepdim=True) + EPS)


def make_strip(density: Float[Tensor, "b *g"], bands: Sequence[int], count: int) -> Strip:
    """Lays out bands and tokens of equal mass.

    Args:
        density: positive, per cell.
        bands: number of bands along each axis but the last.
        count: tokens.
    """
    b, *grid = density.shape
    x, found = density / density.flatten(1).sum(1).view(-1, *[1] * len(grid)), []
    for cells, parts in zip(grid, bands, strict=False):  # the last axis is that of the strip
        marginal = x.flatten(2).sum(2)
        ends = quantiles(marginal / marginal.sum(1, keepdim=True), parts)
        rest = x.shape[2:]
        x = (averages(ends, cells) @ x.flatten(2)).unflatten(2, rest).flatten(0, 1)
        found.append(ends.unflatten(0, (b, -1)))
    row = x.reshape(b, -1)
    return Strip(tuple(found), quantiles(row / row.sum(1, keepdim=True), count))


def average_table(
    table: Float[Tensor, "*e d"], strip: Strip, grid: Sequence[int]
) -> Float[Tensor, "b n d"]:
    """Averages a table, stretched over the domain, over each token, bands first.

    Args:
        grid: cells of the density per axis.
    """
    b = strip.edges.shape[0]
    x = table.expand(b, *table.shape)
    for cells, entries, ends in zip(grid, table.shape, strip.bands, strict=False):
        rest = x.shape[2:]
        weights = averages(ends.flatten(0, 1) * (entries / cells), entries)
        x = (weights @ x.flatten(2)).unflatten(2, rest).flatten(0, 1)
    x = x.reshape(b, -1, table.shape[-1])
    return averages(strip.edges * (table.shape[-2] / grid[-1]), x.shape[1]) @ x


def to_points(at: Float[Tensor, "..."], size: int, points: int) -> Float[Tensor, "..."]:
    """Turns places in cells of the density into grid points; the last cell may be shorter."""
    whole = -(-points // size) - 1
    last = points - whole * size
    return at.clamp(max=whole) * size + (at - whole).clamp(min=0) * last


def parts_of(ends: Float[Tensor, "m k"], points: int) -> Float[Tensor, "m parts p"]:
    """Where the equal parts of each interval begin."""
    step = torch.arange(points, dtype=ends.dtype, device=ends.device) / points
    return ends[:, :-1, None] + ends.diff(dim=1)[..., None] * step


def interpolate(x: Float[Tensor, "m c *s"], at: Float[Tensor, "m k"]) -> Float[Tensor, "m c *r"]:
    """Interpolates along the last axis, linearly between neighbouring points.

    Args:
        at: 0 is the first point; the last point is only a neighbour.
    """
    low = at.floor().clamp(0, x.shape[-1] - 2)
    share = (at - low).to(x.dtype)
    view = (at.shape[0], *[1] * (x.ndim - 2), at.shape[1])
    index = low.long().view(view).expand(*x.shape[:-1], -1)
    return x.gather(-1, index) * (1 - share.view(view)) + x.gather(-1, index + 1) * share.view(view)


def sample_strip(
    x: Float[Tensor, "b f c *s"],
    strip: Strip,
    size: Sequence[int],
    points: int,
    boundary: Boundary,
    *,
    zeros: bool = False,
) -> Float[Tensor, "b f n k"]:
    """Samples `points` values per axis inside each token, where its equal parts begin; k = c *
    points^D.

    At the end of a band the next one follows, so that a token may cross it, and samples do not jump
    where the end of a token does.

    Args:
        size: grid points of a cell of the density, per space axis.
        boundary: what follows the end of an axis, see `adaptok.layers.boundary.pad_around`.
        zeros: 0 follows instead, as in the authors' code.
    """
    b, frames, _, *space = x.shape
    margins = [(0, 1)] * len(space)
    if zeros:
        x = torch.nn.functional.pad(x, [n for pair in margins for n in pair])
    else:
        x = pad_around(x, margins, boundary)
    x = x.flatten(0, 1)  # (m, c, *s) with m = b * frames * bands
    for axis, ends in enumerate(strip.bands):
        ends = ends.repeat_interleave(frames, 0).flatten(0, 1)
        at = to_points(parts_of(ends, points), size[axis], space[axis])  # (m, bands, points)
        x = interpolate(x.movedim(2 + axis, -1), at.flatten(1))
        # (m, c, p..., rest..., bands * points) -> (m * bands, c, p..., points, rest...)
        x = x.unflatten(-1, at.shape[1:]).movedim(-2, 1).flatten(0, 1).movedim(-1, 2 + axis)
    n, cells = space[-1], -(-space[-1] // size[-1])
    x = x.unflatten(0, (b * frames, -1)).movedim(1, -2)  # (b * frames, c, p..., bands, n + 1)
    x = torch.cat([x[..., :n].flatten(-2), x[..., -1, n:]], -1)
    at = parts_of(strip.edges, points).flatten(1).repeat_interleave(frames, 0)
    row = (at / cells).floor().clamp(max=strip.rows - 1)
    at = to_points(at - row * cells, size[-1], n) + row * n
    x = interpolate(x, at).unflatten(-1, (-1, points)).movedim(-2, 1)  # (m, n, c, p..., p)
    return x.flatten(2).unflatten(0, (b, frames))


def strip_cells(
    strip: Strip,
    layout: StripLayout,
    shape: tuple[int, ...],
    sizes: tuple[tuple[int, ...], ...],
    batch: Count,
) -> StripCells:
    """Rounds the tokens of a strip to boxes of whole grid points, the same in every frame.

    Args:
        shape: (t, *space) of the field.
        sizes: of the one level, time first.
        batch: samples.
    """
    frame_size, device = sizes[0][0], strip.edges.device
    frames, n = shape[0] // frame_size, strip.edges.shape[1] - 1
    origin, size = boxes_of_strip(strip, layout.size, shape[1:])
    time = torch.arange(frames, device=device) * frame_size
    time = time.view(1, -1, 1, 1).expand(origin.shape[0], -1, n, 1)
    origin, size = (rows[:, None].expand(-1, frames, -1, -1) for rows in (origin, size))
    lengths = repeated(frames * n, batch)
    return StripCells(
        torch.cat([time, origin], 3).flatten(0, 2).int(),
        torch.cat([torch.full_like(time, frame_size), size], 3).flatten(0, 2).int(),
        torch.zeros(origin[..., 0].numel(), dtype=torch.int8, device=device),
        offsets_of(lengths, device),
        frames * n,
        lengths,
        shape,
        sizes,
        False,
        layout,
        bounded=False,
        strip=strip,
    )


@torch.no_grad()
def boxes_of_strip(
    strip: Strip, size: Sequence[int], space: Sequence[int]
) -> tuple[Int[Tensor, "b n d"], Int[Tensor, "b n d"]]:
    """Origin and size of the box of each token, in whole grid points, of at least one.

    The boxes of neighbours meet. Of a token that crosses the end of a band they take the part
    around its middle; what is left of the bands goes to the first and the last box in them.
    """
    cells = -(-space[-1] // size[-1])
    low, high = strip.edges[:, :-1], strip.edges[:, 1:]
    row = ((low + high) / 2 / cells).floor().clamp(0, strip.rows - 1).long()
    changes = row.diff(dim=1) != 0
    first = torch.nn.functional.pad(changes, (1, 0), value=True)
    last = torch.nn.functional.pad(changes, (0, 1), value=True)
    low = torch.where(first, 0.0, (low - row * cells).clamp(0, cells))
    high = torch.where(last, float(cells), (high - row * cells).clamp(0, cells))
    pairs, outer = [], row
    for ends in reversed(strip.bands):
        parts = ends.shape[2] - 1
        outer, band = outer // parts, outer % parts
        own = ends.flatten(1)
        place = outer * (parts + 1) + band
        pairs.append((own.gather(1, place), own.gather(1, place + 1)))
    begins, extents = [], []
    for own, n, pair in zip(size, space, [*reversed(pairs), (low, high)], strict=True):
        start, end = (to_points(at, own, n).round().long() for at in pair)
        begins.append(start.clamp(max=n - 1))
        extents.append((end - begins[-1]).clamp(min=1))
    return torch.stack(begins, 2), torch.stack(extents, 2)
