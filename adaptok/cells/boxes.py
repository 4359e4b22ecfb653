"""Cells from any boxes, and the grid points that cells cover."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval, Len
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from adaptok.cells.cells import Cells
from adaptok.cells.groups import product
from adaptok.utils.arguments import LARGEST, NonNegative, Positive, checked, shown

Place = Annotated[int, Interval(ge=-LARGEST, le=LARGEST)]
Boxes = Int[Tensor, "n a"] | Sequence[Sequence[Place]]


@checked
def cells_from_boxes(
    origin: Boxes,
    size: Boxes,
    lengths: Sequence[NonNegative],
    *,
    shape: Sequence[Positive] | Sequence[Sequence[Positive]],
    sizes: Annotated[Sequence[Sequence[Positive]], Len(1)],
    tiling: bool | None = None,
) -> Cells:
    """Makes cells of boxes that lie anywhere, sample after sample.

    A box gets the finest level whose size holds it. Whether the boxes are a tiling, and whether
    they lie on the grids of their levels, is found out (which reads the boxes).

    Args:
        origin: first grid point of each box along (t, *space).
        size: extent of each box in grid points.
        lengths: boxes per sample.
        shape: (t, *space) of the field, or one per sample.
        sizes: cell size of each level, coarse to fine, time first.
        tiling: True: the boxes must cover every sample exactly once. False: they may overlap,
            leave holes and stick out, and are no tiling. None: they may, and are one if they
            cover every sample exactly once.

    Raises:
        ValueError: shapes that do not match, a box of size below 1 or larger than the coarsest
            size, levels that are not nested, or no tiling though there should be one.
    """
    if not len(lengths):
        raise ValueError("lengths has a number per sample, got none")
    origin, size = _rows(origin, "origin"), _rows(size, "size")
    levels = tuple(tuple(map(int, s)) for s in sizes)
    if origin.ndim != 2 or origin.shape != size.shape or sum(lengths) != len(origin):
        raise ValueError(
            f"origin and size are (n, a) with n = sum(lengths) = {sum(lengths)}, got "
            f"{tuple(origin.shape)} and {tuple(size.shape)}"
        )
    if any(len(each) != origin.shape[1] for each in levels):
        raise ValueError(f"sizes {levels} have other than the {origin.shape[1]} axes of the boxes")
    holds = (size[:, None] <= torch.tensor(levels, device=size.device)).all(2)  # (n, levels)
    if not bool(holds.any(1).all()):
        row = int((~holds.any(1)).nonzero()[0])
        raise ValueError(f"box {row} of size {size[row].tolist()} is larger than {levels[0]}")
    level = len(levels) - 1 - holds.flip(1).int().argmax(1)
    each = isinstance(shape[0], Sequence) if len(shape) else False
    shapes = tuple(tuple(map(int, s)) for s in (shape if each else [shape] * len(lengths)))  # type: ignore[arg-type]
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    cells = Cells(
        origin,
        size,
        level.to(torch.int8),
        starts.to(origin.device),
        max(lengths, default=0),
        tuple(map(int, lengths)),
        (),
        levels,
        False,
        mixed=shapes,
        bounded=False,
    ).validate()
    if tiling is not False:
        cells = _as_tiling(cells, tiling)
    return _as_on_grid(cells)


def _rows(boxes: Tensor | Sequence[Sequence[int]], name: str) -> Tensor:
    if isinstance(boxes, Tensor) and boxes.is_meta:
        raise ValueError(f"{name} is on the meta device, where it has no values")
    if not isinstance(boxes, Tensor) and len({len(row) for row in boxes}) > 1:
        raise ValueError(f"{name} has one number per axis in every row, got {shown(boxes)}")
    rows = torch.as_tensor(boxes)
    if rows.numel() and bool((rows.abs() > LARGEST).any()):
        raise ValueError(f"{name} has numbers of at most {LARGEST}, got {shown(boxes)}")
    return rows.to(torch.int32).contiguous()


def _as_tiling(cells: Cells, wanted: bool | None) -> Cells:
    try:
        return cells.replace(tiling=True).validate()
    except ValueError as error:
        if wanted:
            raise ValueError(
                f"the boxes are no tiling: {error}; pass tiling=False if they need not be one"
            ) from error
        return cells


def _as_on_grid(cells: Cells) -> Cells:
    try:
        return cells.replace(on_grid=True, bounded=cells.tiling).validate()
    except ValueError:
        return cells


def box_points(
    cells: Cells, level: int, rows: Int64[Tensor, " m"]
) -> tuple[Int64[Tensor, "m v"], Bool[Tensor, "m v"]]:
    """Grid points inside some cells, of one level, as raster indices into (b, t, *space).

    Points are those of a box of the level's size at the cell's origin, in raster order; the mask
    says which of them lie inside the cell and the domain.

    Args:
        rows: of that level; filler rows (number n) have no points.
    """
    n = cells.count
    real = rows.clamp(max=n - 1)
    index = cells.sample[real][:, None]
    inside = (rows < n)[:, None]
    for axis, (extent, width) in enumerate(zip(cells.shape, cells.sizes[level], strict=True)):
        view = [1, *[width if k == axis else 1 for k in range(len(cells.shape))]]
        step = torch.arange(width, device=rows.device).view(view)
        step = step.expand(1, *cells.sizes[level]).flatten(1)  # (1, v)
        at = cells.origin[real, axis, None].long() + step
        inside = inside & (step < cells.size[real, axis, None]) & (at >= 0) & (at < extent)
        index = index * extent + at.clamp(0, extent - 1)
    return index, inside


def owners(cells: Cells, rows: Sequence[Int64[Tensor, " m"]]) -> Int64[Tensor, "b *shape"]:
    """Row of the smallest cell over each grid point (of equals the first), -1 for none.

    Args:
        rows: those of each level, as `adaptok.patches.rows_of_levels` gives them.
    """
    if getattr(cells.layout, "any_size", False):
        return _owners_one_by_one(cells)
    n, points = cells.count, cells.batch_size * product(cells.shape)
    none = product(cells.sizes[0]) * n + n  # above every key
    best = torch.full((points,), none, dtype=torch.int64, device=cells.device)
    key = cells.volume.long() * n + torch.arange(n, device=cells.device)
    for level, own in enumerate(rows):
        index, inside = box_points(cells, level, own)
        value = torch.where(inside, key[own.clamp(max=n - 1)][:, None], none)
        best = best.scatter_reduce(0, index.flatten(), value.flatten(), "amin")
    return torch.where(best < none, best % n, -1).view(cells.batch_size, *cells.shape)


def _owners_one_by_one(cells: Cells) -> Int64[Tensor, "b *shape"]:
    """Paints the boxes, large ones first; reads them."""
    owner = torch.full((cells.batch_size, *cells.shape), -1)
    volume, sample = cells.volume.tolist(), cells.sample.tolist()
    first, last = cells.origin.clamp(min=0), (cells.origin + cells.size).clamp(min=0)
    first, last = first.tolist(), last.tolist()
    for row in sorted(range(len(cells)), key=lambda row: (-volume[row], -row)):
        box = (slice(*ends) for ends in zip(first[row], last[row], strict=True))
        owner[(sample[row], *box)] = row
    return owner.to(cells.device)
