"""What lies around a cell, added to the token of any embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.layers.boundary import Boundary, periodic_axes
from adaptok.patches import rows_of_levels
from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.base import CellTokenizer
from adaptok.tokenizers.embeddings.linear import restore_rows
from adaptok.tokens import check_sizes
from adaptok.utils.arguments import NonNegative, Positive
from adaptok.utils.constants import cached_constant


@TOKENIZERS.finish
def with_halo(tokenizer: Any, *, halo: NonNegative = 0, halo_pooled: bool = False) -> Any:
    """Lets the cells of a tokenizer see the grid points around them; returns the tokenizer.

    Args:
        halo: width in grid points of the margin around each cell that its token sees as well,
            continued at the border by the boundary's rule; 0 for none.
        halo_pooled: show coarser cells the means of blocks of the finest cell's size in their
            margin, which becomes whole blocks wide: fewer weights and less time, most in 3D.

    Raises:
        ValueError: a tokenizer that does not derive from `CellTokenizer`, has its own `embed`, or
            has cells of any size; a pooled margin of cells that need not lie on the grids of their
            levels.
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
    check_sizes(spec, f"halo={halo}")
    if getattr(spec.layout, "any_size", False):
        raise ValueError(
            f"halo={halo}: the cells of {type(tokenizer).__name__} have any size, and a halo has "
            "weights for each"
        )
    if halo_pooled and not spec.on_grid:
        raise ValueError(
            f"halo_pooled=True: the cells of {type(tokenizer).__name__} need not lie on the grids "
            "of their levels, which the blocks of the margin are aligned with"
        )
    extents = tokenizer.extents
    tokenizer.halo = CellHalo(spec.in_channels, spec.dim, extents, halo, pooled=halo_pooled)
    return tokenizer


class Margin(NamedTuple):
    """The margin around cells of one size, in blocks of points that it sees the means of.

    Attributes:
        extent: blocks (t, *space) of a whole cell.
        width: blocks per space axis.
        pitch: points (t, *space) of a block.
    """

    extent: tuple[int, ...]
    width: tuple[int, ...]
    pitch: tuple[int, ...]

    @classmethod
    def of(cls, extent: Sequence[int], halo: int, pitch: Sequence[int]) -> Margin:
        """Counts the blocks of a cell of so many points, and of at least `halo` points."""
        blocks = tuple(n // p for n, p in zip(extent, pitch, strict=True))
        return cls(blocks, tuple(-(-halo // p) for p in pitch[1:]), tuple(pitch))

    @property
    def window(self) -> tuple[int, ...]:
        """Blocks of cell and margin along time and each space axis."""
        frames, *space = self.extent
        return (frames, *(n + 2 * k for n, k in zip(space, self.width, strict=True)))

    @property
    def blocks(self) -> int:
        """Number of blocks in the margin."""
        return product(self.window) - product(self.extent)


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
        pooled: see means over blocks of the finest extent around larger ones that it divides.
    """

    def __init__(
        self,
        in_channels: Positive,
        dim: Positive,
        extents: Mapping[tuple[int, ...], tuple[int, ...]],
        halo: Positive,
        *,
        pooled: bool = False,
    ):
        super().__init__()
        self.extents, self.width = dict(extents), halo
        block = (1, *min(self.extents.values(), key=product)[1:])
        self.margins = []
        for extent in self.extents.values():
            coarse = extent[1:] != block[1:] and not any(
                n % p for n, p in zip(extent, block, strict=True)
            )
            pitch = block if pooled and coarse else (1,) * len(extent)
            self.margins.append(Margin.of(extent, halo, pitch))
        self.levels = nn.ModuleList(
            nn.Linear(in_channels * margin.blocks, dim, bias=False) for margin in self.margins
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
        values: dict[tuple[int, ...], Tensor] = {}  # (b * t * blocks, c) by their pitch
        wraps = periodic_axes(boundary, cells.ndim, x)
        wraps = [None if wrap is None else wrap.flatten() for wrap in wraps]  # (b,) per axis
        rows = dict(zip(cells.sizes, rows_of_levels(cells), strict=True))
        parts, order = [], []
        levels = zip(self.extents, self.margins, self.levels, strict=True)
        for size, margin, linear in levels:
            own = rows.get(size)
            if own is None:  # maps without a cell run on no rows: all ranks use all parameters
                own = torch.arange(0, device=cells.device)
            real = own.clamp(max=cells.count - 1)
            if margin.pitch not in values:
                values[margin.pitch] = means(x, margin.pitch[1:]).movedim(2, -1).flatten(0, -2)
            index, seen = around(cells, real, margin, wraps)
            ring = values[margin.pitch][index]  # (m, r, c)
            ring = ring if seen is None else ring * seen[..., None]
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


def means(x: Float[Tensor, "b t c *s"], block: Sequence[int]) -> Float[Tensor, "b t c *r"]:
    """Means over blocks of points, at the end of an axis over those that there are."""
    if product(block) == 1:
        return x
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(block) - 1]
    rest = {"ceil_mode": True, "count_include_pad": False}
    return pool(x.flatten(0, 1), tuple(block), **rest).unflatten(0, x.shape[:2])


@cached_constant(64)
def ring_of(margin: Margin, device: torch.device) -> Int64[Tensor, " r"]:
    """Lists the blocks of the margin as raster indices into the window of cell and margin."""
    window = torch.ones(margin.window, dtype=torch.bool)
    spans = zip(margin.extent[1:], margin.width, strict=True)
    window[(slice(None), *(slice(k, k + n) for n, k in spans))] = False
    return window.flatten().nonzero().squeeze(1).to(device)


def around(
    cells: Cells,
    rows: Int64[Tensor, " m"],
    margin: Margin,
    wraps: Sequence[Bool[Tensor, " b"] | None],
) -> tuple[Int64[Tensor, "m r"], Bool[Tensor, "m r"] | None]:
    """Blocks in the margins of some cells, as raster indices into (b, t, *blocks of space).

    A cell may be smaller than ``margin.extent``: its margin begins where it ends, and of the blocks
    beside it those exist that lie beside the cell; the mask says which, None if all cells are
    whole.

    Args:
        wraps: per space axis, whether it is periodic in each sample, or None for nowhere.
    """
    sample = cells.sample[rows]
    points = [n * p for n, p in zip(margin.extent, margin.pitch, strict=True)]
    whole = cells.on_grid and (
        cells.overhang or not any(n % k for n, k in zip(cells.shape, points, strict=True))
    )
    index, seen = sample[:, None], torch.ones_like(sample, dtype=torch.bool)[:, None]
    for axis, (width, pitch) in enumerate(zip(margin.extent, margin.pitch, strict=True)):
        n = -(-cells.shape[axis] // pitch)
        beside = margin.width[axis - 1] if axis else 0  # none in time
        step = torch.arange(-beside, width + beside, device=rows.device)
        size, origin = (x[rows, axis, None].long() for x in (cells.size, cells.origin))
        if pitch > 1:  # whole blocks, also of a cell that the border cuts off
            size, origin = (size + pitch - 1) // pitch, origin // pitch
        after = step >= width
        at = origin + torch.where(after, step - width + size, step)
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
    ring = ring_of(margin, rows.device)
    return index.index_select(1, ring), None if whole else seen.index_select(1, ring)
