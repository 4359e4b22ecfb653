"""Geometry of two convolutions in a row whose kernels or strides change from call to call."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from adaptok.cells import Cells, GridLayout, product, repeated
from adaptok.cells.lengths import offsets_of
from adaptok.utils.boundary import PERIODIC

# Patch size along an axis -> kernel sizes of the two stages, the one at the grid points first.
KERNELS = {1: (1, 1), 4: (2, 2), 8: (4, 2), 12: (6, 2), 16: (4, 4), 32: (8, 4)}
Pairs = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class ConvLayout(GridLayout):
    """Geometry of two convolutions in a row, from grid points to cells; one pair per space axis.

    Attributes:
        kernels: kernel sizes of the first and the second stage.
        strides: strides of the first and the second stage; their product is the pitch.
        padding: grid points added before and after the axis.
    """

    kernels: Pairs
    strides: Pairs
    padding: Pairs

    @property
    def reach(self) -> tuple[int, ...]:
        """Grid points (t, *space) that a cell sees."""
        stages = zip(self.kernels, self.strides, strict=True)
        return (1, *(k1 + (k2 - 1) * s1 for (k1, k2), (s1, _) in stages))


def make_layout(
    shape: tuple[int, ...], kernels: Pairs, strides: Pairs, *, centered: bool
) -> ConvLayout:
    """Covers each axis with the fewest cells, padded so that both stages fit exactly.

    Worked example: 16 points, kernels (4, 2), strides (4, 2). A cell sees 4 + (2 - 1) * 4 = 8
    points, and cells start 4 * 2 = 8 points apart: 2 cells, no padding. With strides (2, 1) a cell
    sees 4 + 2 = 6 points and the pitch is 2: 6 cells fill 6 + 5 * 2 = 16 points. With 15 points
    the same 6 cells need one padded point, at the end.

    Args:
        shape: (t, *space) of the field.
        centered: pad both sides alike (an odd sum puts one more point at the end); otherwise pad
            at the end only.
    """
    grid, padding, offset = [shape[0]], [], [0.0]
    for n, (k1, k2), (s1, s2) in zip(shape[1:], kernels, strides, strict=True):
        reach, pitch = k1 + (k2 - 1) * s1, s1 * s2
        count = max(1, math.ceil((n - reach) / pitch) + 1)
        extra = reach + (count - 1) * pitch - n
        before = extra // 2 if centered else 0
        grid.append(count)
        padding.append((before, extra - before))
        # A cell may reach further than its pitch. Its centre is the middle of its reach: the band
        # of one pitch around that centre begins here.
        offset.append((reach - pitch) / 2 - before)
    pitches = (1, *(s1 * s2 for s1, s2 in strides))
    return ConvLayout(tuple(grid), pitches, tuple(offset), kernels, strides, tuple(padding))


@torch.no_grad()
def cells_of_layout(
    field: Float[Tensor, "b t c *s"],
    layout: ConvLayout,
    sizes: tuple[tuple[int, ...], ...],
    level: int,
    *,
    tiling: bool,
) -> Cells:
    """Makes each token's field of view a cell, frames first, then raster order.

    A tiling is clipped to the domain; other cells may reach into the padding.
    """
    b, device = field.shape[0], field.device
    shape = (field.shape[1], *field.shape[3:])
    before = [0, *(lead for lead, _ in layout.padding)]
    starts = [
        torch.arange(g, device=device, dtype=torch.int32) * p - lead
        for g, p, lead in zip(layout.grid, layout.pitch, before, strict=True)
    ]
    origin = torch.cartesian_prod(*starts)
    size = torch.tensor(layout.reach, dtype=torch.int32).to(device).expand_as(origin)
    if tiling:
        end = torch.tensor(shape, dtype=torch.int32).to(device)
        size = torch.minimum(size, end - origin)
    n = product(layout.grid)
    lengths = repeated(n, b)
    return Cells(
        origin.repeat(b, 1),
        size.repeat(b, 1),
        torch.full((b * n,), level, dtype=torch.int8, device=device),
        offsets_of(lengths, device),
        n,
        lengths,
        shape,
        sizes,
        tiling,
        layout,
    )


def pad_and_mark(
    x: Float[Tensor, "b t c *s"],
    padding: Pairs,
    codes: Int[Tensor, "#b d 2"],
    *,
    whole_field: bool = False,
) -> Float[Tensor, "b t c3 *p"]:
    """Pads a field, and appends three channels that describe the padding.

    Periodic axes wrap around; beyond other ends the field is 0. The channels are: 1 inside the
    field, 0 outside; the number of walls that a point lies beyond; and the number of open ends. A
    linear map of all channels then equals a linear map of the field, padded with a learned token
    per boundary type (CSM, Sec. 3), in one batch for samples of different boundary types.

    Worked example: 3 points, one more at each end, a wall before and an open end after::

        field   0 a b c 0
        inside  0 1 1 1 0
        walls   1 0 0 0 0
        open    0 0 0 0 1

    On a periodic axis the field is ``c a b c a``, inside is 1 everywhere and the others are 0.

    Args:
        whole_field: mark all points as beyond the far end of each axis without padding there, as
            the authors' code does.
    """
    ndim, space = codes.shape[1], x.shape[3:]
    inside = x.new_ones(codes.shape[0], 1, *(1,) * ndim)
    marks = x.new_zeros(codes.shape[0], 2, *(1,) * ndim)
    for axis, (n, (before, after)) in enumerate(zip(space, padding, strict=True)):
        point = torch.arange(-before, n + after, device=x.device)
        wraps = (codes[:, axis] == PERIODIC).all(-1, keepdim=True)  # (b, 1)
        kept = wraps | ((point >= 0) & (point < n))  # (b, n + padding)
        beyond = torch.stack([point < 0, point >= n])  # (ends, n + padding)
        if whole_field and after == 0:
            beyond = torch.stack([beyond[0], torch.ones_like(beyond[1])])
        kind = codes[:, axis, :, None] == torch.arange(2, device=x.device)  # (b, ends, wall | open)
        mark = (kind[..., None] & beyond[:, None] & ~wraps[..., None, None]).sum(1)  # (b, 2, n + p)
        # Products and sums of one axis at a time broadcast to the whole grid.
        view = (*(1,) * axis, -1, *(1,) * (ndim - axis - 1))
        inside = inside * kept.unsqueeze(1).unflatten(-1, view)
        marks = marks + mark.unflatten(-1, view)
        if before or after:
            x = x.index_select(axis + 3, point % n)
    shape = (x.shape[0], x.shape[1], -1, *x.shape[3:])
    marks = torch.cat([inside, marks.expand(-1, -1, *inside.shape[2:])], 1)[:, None].expand(shape)
    return torch.cat([x * inside[:, None], marks.to(x.dtype)], 2)
