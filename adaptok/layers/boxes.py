"""Values inside any boxes of a field, resampled to a fixed number of points, and back.

A field is piecewise constant on grid points, and 0 outside the domain. `crop` divides each box
into equal parts and takes the mean over each; `paint` is its transpose. Both go through sums over
rectangles anchored at the corner of the field, interpolated at the corners of the parts, so that
their cost follows the number of parts and not the size of the boxes, and shapes are static. The
sums are in float64: a float32 field loses nothing.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from adaptok.cells import product


def crop(
    x: Float[Tensor, "b t c *s"],
    sample: Int64[Tensor, " n"],
    origin: Int[Tensor, "n a"],
    size: Int[Tensor, "n a"],
    points: tuple[int, ...],
) -> Float[Tensor, "n c *p"]:
    """Means over the parts of each box.

    Args:
        x: the field.
        sample: of each box.
        origin: first grid point along (t, *space); boxes may stick out of the domain.
        size: extent in grid points, at least 1.
        points: parts of every box along (t, *space).
    """
    dtype = torch.promote_types(x.dtype, torch.float64)
    sums = x.movedim(2, -1).to(dtype)  # (b, t, *s, c)
    shape = tuple(sums.shape[1:-1])
    for axis in range(len(shape)):
        ends = sums.cumsum(axis + 1)
        sums = torch.cat([torch.zeros_like(ends.narrow(axis + 1, 0, 1)), ends], axis + 1)
    index, weight = _corners(shape, sample, origin, size, points, dtype)
    flat = sums.flatten(0, -2)
    values = sum(flat[i] * w[..., None] for i, w in zip(index, weight, strict=True))
    assert isinstance(values, Tensor)  # (n, corners, c)
    values = values.unflatten(1, [p + 1 for p in points])
    for axis in range(len(points)):
        values = values.diff(dim=axis + 1)
    volume = size.to(dtype).prod(1) / product(points)
    values = values / volume.view(-1, *[1] * (values.ndim - 1))
    return values.movedim(-1, 1).to(x.dtype)


def paint(
    values: Float[Tensor, "n c *p"],
    sample: Int64[Tensor, " n"],
    origin: Int[Tensor, "n a"],
    size: Int[Tensor, "n a"],
    batch_size: int,
    shape: tuple[int, ...],
) -> Float[Tensor, "b t c *s"]:
    """Adds every part's value to the grid points of its box, by the share of the point that the
    part covers; what sticks out of the domain is lost.

    Args:
        values: of the parts of each box.
        batch_size: samples of the result.
        shape: (t, *space) of the result.
    """
    dtype = torch.promote_types(values.dtype, torch.float64)
    points = tuple(values.shape[2:])
    x = values.to(dtype).movedim(1, -1)  # (n, *p, c)
    for axis in range(len(points)):  # transpose of `diff`
        zero = torch.zeros_like(x.narrow(axis + 1, 0, 1))
        x = torch.cat([zero, x], axis + 1) - torch.cat([x, zero], axis + 1)
    x = x.flatten(1, -2)  # (n, corners, c)
    index, weight = _corners(shape, sample, origin, size, points, dtype)
    ends = [s + 1 for s in shape]
    canvas = x.new_zeros(batch_size * product(ends), x.shape[-1])
    for i, w in zip(index, weight, strict=True):
        canvas = canvas.index_add(0, i.flatten(), (x * w[..., None]).flatten(0, 1))
    canvas = canvas.unflatten(0, (batch_size, *ends))
    for axis, n in enumerate(shape):  # transpose of `cumsum` and of the zero before it
        canvas = canvas.narrow(axis + 1, 1, n).flip(axis + 1).cumsum(axis + 1).flip(axis + 1)
    return canvas.movedim(-1, 2).to(values.dtype)


def coverage(
    sample: Int64[Tensor, " n"],
    origin: Int[Tensor, "n a"],
    size: Int[Tensor, "n a"],
    batch_size: int,
    shape: tuple[int, ...],
) -> Int64[Tensor, "b *shape"]:
    """Number of boxes over each grid point."""
    limit = torch.tensor(shape, device=origin.device)
    ends = [s + 1 for s in shape]
    first, last = (x.long().clamp(min=0).minimum(limit) for x in (origin, origin + size))
    canvas = torch.zeros(batch_size * product(ends), dtype=torch.int64, device=origin.device)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        index, sign = sample, (-1) ** sum(corner)
        for axis, far in enumerate(corner):
            index = index * ends[axis] + (last if far else first)[:, axis]
        canvas = canvas.index_add(0, index, torch.full_like(index, sign))
    canvas = canvas.unflatten(0, (batch_size, *ends))
    for axis, n in enumerate(shape):
        canvas = canvas.cumsum(axis + 1).narrow(axis + 1, 0, n)
    return canvas


def _corners(
    shape: tuple[int, ...],
    sample: Tensor,
    origin: Tensor,
    size: Tensor,
    points: tuple[int, ...],
    dtype: torch.dtype,
) -> tuple[list[Int64[Tensor, "n k"]], list[Float[Tensor, "n k"]]]:
    """Linear interpolation at the corners of all parts, in a grid of sums one larger than `shape`:
    per neighbour its index and weight.
    """
    n = origin.shape[0]
    steps = [torch.arange(p + 1, device=origin.device, dtype=dtype) / p for p in points]
    neighbours = []  # per axis the two neighbours, (n, p + 1)
    for axis, (extent, step) in enumerate(zip(shape, steps, strict=True)):
        at = origin[:, axis, None] + size[:, axis, None] * step
        at = at.clamp(0, extent)
        low = at.floor().clamp(max=extent - 1)
        share = at - low
        neighbours.append(((low.long(), 1 - share), (low.long() + 1, share)))
    index, weight = [], []
    for chosen in itertools.product((0, 1), repeat=len(shape)):
        i, w = sample.view(n, *[1] * len(shape)), at.new_ones(())
        for axis, side in enumerate(chosen):
            view = [n, *[points[axis] + 1 if k == axis else 1 for k in range(len(shape))]]
            position, share = neighbours[axis][side]
            i, w = i * (shape[axis] + 1) + position.view(view), w * share.view(view)
        index.append(i.flatten(1))
        weight.append(w.expand(i.shape).flatten(1))
    return index, weight
