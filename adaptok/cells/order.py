"""Orders of the cells of a sample."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from adaptok.cells.cells import Cells
from adaptok.cells.lengths import common


def sorted_rows(
    key: Shaped[Tensor, " n"], cells: Cells, *, descending: bool = False
) -> Int64[Tensor, " n"]:
    """Lists rows sample after sample, in each sorted by a key; equals keep their order."""
    options: Any = {"descending": descending, "stable": True}
    length = common(cells.lengths)
    if length is not None:  # one sort in place of two
        own = key.unflatten(0, (cells.batch_size, length)).argsort(dim=1, **options)
        return (own + cells.cu_seqlens[:-1, None]).flatten()
    order = key.argsort(dim=0, **options)
    return order[cells.sample[order].argsort(stable=True)]


def curve_keys(cells: Cells, *, shifted: bool = False) -> Int64[Tensor, " n"]:
    """Place of each cell on a curve through space and time, along which neighbours lie together.

    Through space it is the Z-curve of the centres, the depth-first order of a tree that halves the
    axes, so that cells of a tree of powers of two stay with their siblings. It runs through one
    frame after the other.

    Args:
        shifted: shift the curve by a third of the domain along every axis, which puts its borders a
            third of a cell from the old ones on all scales (shifted quadtrees: Chan, Discrete &
            Computational Geometry 20, 1998), and let it run through time first, at each place.
    """
    shapes = cells.mixed or (cells.shape,)
    ends = [max(shape[axis] for shape in shapes) for axis in range(cells.ndim + 1)]
    if cells.overhang:
        space = zip(ends[1:], cells.sizes[0][1:], strict=True)
        ends = [ends[0], *(-(-n // size) * size for n, size in space)]
    bits = max((n - 1).bit_length() for n in ends[1:])
    place = (cells.origin + cells.size // 2).long()  # inside the cell
    time = place[:, 0].clamp(0, ends[0] - 1)
    space = place[:, 1:].clamp(0, (1 << bits) - 1)
    if shifted:
        space, bits = space + (1 << bits) // 3, bits + 1
    curve = torch.zeros_like(time)
    for bit in reversed(range(bits)):
        for axis in range(cells.ndim):
            curve = 2 * curve + (space[:, axis] >> bit) % 2
    key = curve * ends[0] + time if shifted else (time << (cells.ndim * bits)) + curve
    return key * len(cells.sizes) + cells.level  # cells that overlap may share a centre
