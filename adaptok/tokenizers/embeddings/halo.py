"""What lies around a cell, added to the token of any embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.layers.boundary import Boundary, periodic_axes
from adaptok.patches import rows_of_levels
from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.base import CellTokenizer
from adaptok.tokenizers.embeddings.linear import restore_rows
from adaptok.utils.arguments import NonNegative, Positive
from adaptok.utils.constants import cached_constant


@TOKENIZERS.finish
def with_halo(tokenizer: Any, *, halo: NonNegative = 0) -> Any:
    """Lets the cells of a tokenizer see the grid points around them; returns the tokenizer.

    Args:
        halo: width in grid points of the margin around each cell that its token sees as well,
            continued at the border by the boundary's rule; 0 for none.

    Raises:
        ValueError: a tokenizer that does not derive from `CellTokenizer`, or has its own `embed`.
    """
    if halo == 0:
        return tokenizer
    if not isinstance(tokenizer, CellTokenizer):
        raise ValueError(
            f"halo={halo}: {type(tokenizer).__name__} does not derive from CellTokenizer, which "
            "adds what lies around a cell"
        )
    if type(tokenizer).embed is not CellTokenizer.embed:
        raise ValueError(
            f"halo={halo}: {type(tokenizer).__name__} has its own `embed`, which adds no halo; let "
            "it write `features` instead"
        )
    spec = tokenizer.spec
    tokenizer.halo = CellHalo(spec.in_channels, spec.dim, tokenizer.extents, halo)
    return tokenizer


class CellHalo(nn.Module):
    """One linear map per cell size of the grid points in a margin around the cell.

    The margin is in space alone and lies around the cell's box as it is, clipped or sticking out.
    A periodic axis wraps around; beyond a wall or an open end the last value is repeated (as
    `adaptok.layers.boundary.pad_beyond` continues a field). With a linear embedding the sum of
    both is one linear map of cell and margin.

    Args:
        in_channels: channels of the field.
        dim: width of the features.
        extents: grid points (t, *space) that a whole cell covers, by the size of its level.
        halo: width of the margin in grid points.
    """

    def __init__(
        self,
        in_channels: Positive,
        dim: Positive,
        extents: Mapping[tuple[int, ...], tuple[int, ...]],
        halo: Positive,
    ):
        super().__init__()
        self.extents, self.width = dict(extents), halo
        self.levels = nn.ModuleList(
            nn.Linear(in_channels * points_around(extent, halo), dim, bias=False)
            for extent in self.extents.values()
        )

    def forward(
        self, x: Float[Tensor, "b t c *s"], cells: Cells, boundary: Boundary = None
    ) -> Float[Tensor, "n d"]:
        """What the margin adds to the features of each cell.

        Raises:
            ValueError: a margin wider than an axis of the domain, or cells of a size that was not
                built.
        """
        self._check(cells)
        values = x.movedim(2, -1).flatten(0, -2)  # (b * t * points, c)
        wraps = periodic_axes(boundary, cells.ndim, x)
        wraps = [None if wrap is None else wrap.flatten() for wrap in wraps]  # (b,) per axis
        rows = dict(zip(cells.sizes, rows_of_levels(cells), strict=True))
        parts, order = [], []
        for (size, extent), linear in zip(self.extents.items(), self.levels, strict=True):
            own = rows.get(size)
            if own is None:  # maps without a cell run on no rows: all ranks use all parameters
                own = torch.arange(0, device=cells.device)
            real = own.clamp(max=cells.count - 1)
            index, seen = around(cells, real, extent, self.width, wraps)
            ring = values[index] if seen is None else values[index] * seen[..., None]  # (m, r, c)
            parts.append(linear(ring.flatten(1)))
            order.append(own)
        return restore_rows(torch.cat(parts), torch.cat(order), cells.count)

    def _check(self, cells: Cells) -> None:
        for axis, n in enumerate(cells.shape[1:]):
            if self.width > n:
                raise ValueError(
                    f"a halo of {self.width} grid points is wider than space axis {axis} of the "
                    f"field, which has {n}"
                )
        if unknown := [size for size in cells.sizes if size not in self.extents]:
            built = ", ".join(str(size[1:]) for size in self.extents)
            raise ValueError(
                f"a halo has weights for cells of sizes {built}, these are of {unknown[0][1:]}; "
                "a tokenizer with patch_sizes has weights for those"
            )


def points_around(extent: Sequence[int], halo: int) -> int:
    """Counts the points in the margin around a cell."""
    frames, *space = extent
    return frames * (product(n + 2 * halo for n in space) - product(space))


@cached_constant(64)
def ring_of(extent: tuple[int, ...], halo: int, device: torch.device) -> Int64[Tensor, " r"]:
    """Lists the points of the margin as raster indices into the window of cell and margin."""
    window = torch.ones(extent[0], *(n + 2 * halo for n in extent[1:]), dtype=torch.bool)
    window[(slice(None), *(slice(halo, halo + n) for n in extent[1:]))] = False
    return window.flatten().nonzero().squeeze(1).to(device)


def around(
    cells: Cells,
    rows: Int64[Tensor, " m"],
    extent: tuple[int, ...],
    halo: int,
    wraps: Sequence[Bool[Tensor, " b"] | None],
) -> tuple[Int64[Tensor, "m r"], Bool[Tensor, "m r"] | None]:
    """Grid points in the margins of some cells, as raster indices into (b, t, *space).

    A cell may be smaller than `extent`: its margin begins where it ends, and of the points beside
    it those exist that lie beside the cell; the mask says which, None if all cells are whole.

    Args:
        wraps: per space axis, whether it is periodic in each sample, or None for nowhere.
    """
    sample = cells.sample[rows]
    whole = cells.on_grid and (
        cells.overhang or not any(n % k for n, k in zip(cells.shape, extent, strict=True))
    )
    index, seen = sample[:, None], torch.ones_like(sample, dtype=torch.bool)[:, None]
    for axis, (n, width) in enumerate(zip(cells.shape, extent, strict=True)):
        margin = halo if axis else 0  # none in time
        step = torch.arange(-margin, width + margin, device=rows.device)
        size, after = cells.size[rows, axis, None].long(), step >= width
        at = cells.origin[rows, axis, None].long() + torch.where(after, step - width + size, step)
        own = (step < size) | after
        inside = at.clamp(0, n - 1)
        wrap = wraps[axis - 1] if axis else None
        if axis == 0:
            own = own & (at == inside)
        elif wrap is not None:
            inside = torch.where(wrap[sample, None], at % n, inside)
        # One axis at a time broadcasts to the whole window.
        index = (index[..., None] * n + inside[:, None]).flatten(1)
        if not whole:
            seen = (seen[..., None] & own[:, None]).flatten(1)
    ring = ring_of(extent, halo, rows.device)
    return index.index_select(1, ring), None if whole else seen.index_select(1, ring)
