"""Patches: the values inside cells, by the grids of levels or, off them, point by point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from adaptok.cells import Cells, GridLayout, box_points, owners, product
from adaptok.cells.lengths import common
from adaptok.utils.constants import cached_constant
from adaptok.utils.reading import reads_are_free

MANY = 4  # times slower than a copy of contiguous memory is a gather of single values


def level_grid(shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
    """Counts the cells of one size along (t, *space)."""
    return tuple(math.ceil(n / p) for n, p in zip(shape, size, strict=True))


def pad_end(x: Tensor, size: Sequence[int], mode: str = "constant") -> Tensor:
    """Pads the ends of the last axes to multiples of `size`, with zeros or by another mode of
    ``torch.nn.functional.pad``.
    """
    missing = [-n % p for n, p in zip(x.shape[-len(size) :], size, strict=True)]
    if not any(missing):
        return x
    return torch.nn.functional.pad(x, [v for m in reversed(missing) for v in (0, m)], mode)


def patchify(x: Float[Tensor, "b t c *s"], size: tuple[int, ...]) -> Float[Tensor, "b g k"]:
    """Cuts a field into patches of one size (t, *space), in raster order, k = c * volume; patches
    that cross the border are zero-padded.
    """
    blocks = blocks_of(x, size)
    a = len(size)
    count, values = product(blocks.shape[1 : 1 + a]), product(blocks.shape[1 + a :])
    return blocks.reshape(x.shape[0], count, values)


def blocks_of(x: Float[Tensor, "b t c *s"], size: tuple[int, ...]) -> Float[Tensor, "b *gcp"]:
    """Views a field as a grid of blocks (b, *g, c, *size); blocks that cross the border are
    zero-padded.
    """
    x = pad_end(x, (size[0], 1, *size[1:]))
    b, t, channels, *space = x.shape
    pairs = [(n // p, p) for n, p in zip(space, size[1:], strict=True)]
    x = x.reshape(b, t // size[0], size[0], channels, *itertools.chain(*pairs))
    last = 4 + 2 * len(pairs)  # (b, gt, pt, c, g1, p1, ...)
    return x.permute(0, 1, *range(4, last, 2), 3, 2, *range(5, last, 2))


def gather_blocks(
    x: Float[Tensor, "b t c *s"], size: tuple[int, ...], places: tuple[Int64[Tensor, " m"], ...]
) -> Float[Tensor, "m k"]:
    """Picks blocks of a field, each laid out as by `patchify`.

    Args:
        places: sample and place in the grid of blocks, one tensor for each axis.
    """
    blocks, rows = blocks_of(x, size), places[0].shape[0]
    grid = blocks.shape[: len(places)]
    known = isinstance(rows, int) and isinstance(grid[0], int)
    if not known or MANY * rows < product(grid):
        return blocks[places].flatten(1)
    index = places[0]  # copying all blocks and picking whole rows is faster for many
    for place, n in zip(places[1:], grid[1:], strict=True):
        index = index * n + place
    values = product(blocks.shape[len(places) :])
    return blocks.reshape(product(grid), values).index_select(0, index)


def places_in_grid(
    cells: Cells, level: int, rows: Int64[Tensor, " m"]
) -> tuple[Int64[Tensor, " m"], ...]:
    """Samples of some cells, and the places of their origins in the grid of one level, one tensor
    for each axis.
    """
    sizes = _sizes(cells.sizes, cells.device)
    places = cells.origin.index_select(0, rows) // sizes[level]
    return cells.sample.index_select(0, rows), *places.long().unbind(1)


@cached_constant()
def _sizes(sizes: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(sizes, dtype=torch.int32, device=device)


def unpatchify(
    patches: Float[Tensor, "b g k"], shape: tuple[int, ...], size: tuple[int, ...]
) -> Float[Tensor, "b t c *s"]:
    """Inverts `patchify` exactly for a field of `shape` (t, *space)."""
    grid, a = level_grid(shape, size), len(size)
    x = patches.unflatten(2, (-1, *size)).unflatten(1, grid)  # (b, *grid, c, *size)
    x = x.permute(0, a + 1, *[i for k in range(a) for i in (1 + k, a + 2 + k)])
    for axis in range(a):
        x = x.flatten(2 + axis, 3 + axis)
    for axis, n in enumerate(shape):
        x = x.narrow(2 + axis, 0, n)
    return x.movedim(1, 2)


def grid_index(cells: Cells, level: int) -> Int64[Tensor, " n"]:
    """Returns the raster index, within a batch of grids of one level, of the grid cell at each
    row's origin.
    """
    size = cells.sizes[level]
    index = cells.sample
    for axis, (g, p) in enumerate(zip(level_grid(cells.reach, size), size, strict=True)):
        index = index * g + cells.origin[:, axis].long() // p
    return index


def rows_of_levels(cells: Cells) -> list[Int64[Tensor, " m"]]:
    """Finds the rows of each level.

    Eagerly on the CPU, exactly those. Elsewhere, or while compiling, as many as the level can have
    at most, filled up with ``n``: static shapes, no synchronisation.
    """
    levels = range(len(cells.sizes))
    if len(cells.sizes) == 1:
        return [torch.arange(cells.count, device=cells.device)]
    if reads_are_free(cells.level):
        return [(cells.level == level).nonzero().squeeze(1) for level in levels]
    return [_bounded_rows(cells, level) for level in levels]


def scatter_to_grid(
    values: Shaped[Tensor, "m k"], cells: Cells, level: int, rows: Int64[Tensor, " m"]
) -> Shaped[Tensor, "b *g k"]:
    """Values of rows of a level on the grid of that level, 0 at grid cells without a row.

    Args:
        values: one per entry of `rows`; those of one grid cell add up.
        rows: as `rows_of_levels` gives them; values of filler rows (number n) are left out.
    """
    grid, n = level_grid(cells.reach, cells.sizes[level]), cells.count
    count = cells.batch_size * product(grid)
    slots = torch.where(rows < n, grid_index(cells, level)[rows.clamp(max=n - 1)], count)
    canvas = values.new_zeros(count + 1, values.shape[1]).index_add(0, slots, values)
    return canvas[:count].unflatten(0, (cells.batch_size, *grid))


def _bounded_rows(cells: Cells, level: int) -> Int64[Tensor, " m"]:
    """Finds the rows of a level, filled up to a bound that host numbers alone decide.

    The finest grid leaves `spare` = its cells minus n places: a cell that covers `merged` finest
    ones uses up merged - 1 of them. One 16x16 sample of cells of 8, 4 and 2 and n = 40 tokens has
    64 - 40 = 24 to spare: at most 24 // 15 = 1 cell of 8, and 24 // 3 = 8 cells of 4.
    """
    n = cells.count
    if not cells.on_grid:  # any number of cells may have one level
        own = cells.level == level
        return torch.where(own, torch.arange(n, device=cells.device), n)
    every = product(level_grid(cells.reach, cells.sizes[level]))
    # Samples of one known length each keep the bound: it is stated for one and repeated.
    length = common(cells.lengths)
    samples, rows = (cells.batch_size, n) if length is None else (1, length)
    bound = min(rows, samples * min(every, cells.max_seqlen))
    size, finest = cells.sizes[level], cells.sizes[-1]
    if cells.tiling and not any(s % p for s, p in zip(cells.reach, size, strict=True)):
        # Holds only if every cell of this level is whole, and every other one covers at least one.
        merged = product(size) // product(finest)
        spare = samples * product(level_grid(cells.reach, finest)) - rows
        bound = min(bound, spare // (merged - 1)) if merged > 1 else bound
    bound = bound if length is None else bound * cells.batch_size
    member = cells.level == level
    slots = torch.where(member, member.cumsum(0) - 1, bound)
    filler = torch.full((bound + 1,), n, dtype=torch.int64, device=cells.device)
    return filler.scatter(0, slots, torch.arange(n, device=cells.device))[:bound]


def owner_grid(cells: Cells) -> Int64[Tensor, "b g"]:
    """Finds the row of the finest cell that covers each cell of the finest grid (raster order), or
    -1; for cells on the grids of their levels.
    """
    b, n = cells.batch_size, cells.count
    rows = torch.arange(n, device=cells.device)
    owner: Tensor | None = None
    for level, size in enumerate(cells.sizes):
        grid = level_grid(cells.reach, size)
        count = b * product(grid)
        slots = torch.where(cells.level == level, grid_index(cells, level), count)
        own = torch.full((count + 1,), -1, dtype=torch.int64, device=cells.device)
        own = own.scatter(0, slots, rows)[:count].view(b, *grid)
        if owner is not None:
            coarser = cells.sizes[level - 1]
            for axis, (c, f, g) in enumerate(zip(coarser, size, grid, strict=True)):
                owner = owner.repeat_interleave(c // f, dim=axis + 1).narrow(axis + 1, 0, g)
            own = torch.where(own >= 0, own, owner)
        owner = own
    assert owner is not None
    return owner.flatten(1)


def gather_boxes(
    x: Float[Tensor, "b t c *s"], cells: Cells, level: int, rows: Int64[Tensor, " m"]
) -> Float[Tensor, "m k"]:
    """Patches of cells that lie anywhere, laid out as by `patchify`: zero outside of the cell and
    of the domain.

    Args:
        rows: of that level, as `rows_of_levels` gives them.
    """
    index, inside = box_points(cells, level, rows)
    values = x.movedim(2, -1).flatten(0, -2)[index] * inside[..., None]  # (m, v, c)
    return values.transpose(1, 2).flatten(1)


def paint_boxes(
    values: Float[Tensor, "m k"], cells: Cells, level: int, rows: Int64[Tensor, " m"]
) -> Float[Tensor, "b t c *s"]:
    """Adds patches of cells that lie anywhere into a field, the transpose of `gather_boxes`."""
    index, inside = box_points(cells, level, rows)
    patches = values.unflatten(1, (-1, index.shape[1])).transpose(1, 2)  # (m, v, c)
    patches = (patches * inside[..., None]).flatten(0, 1)
    field = patches.new_zeros(cells.batch_size * product(cells.shape), patches.shape[1])
    field = field.index_add(0, index.flatten(), patches)
    return field.unflatten(0, (cells.batch_size, *cells.shape)).movedim(-1, 2)


def finest_owner(cells: Cells) -> Int64[Tensor, "b *shape"]:
    """Row of the finest cell over each grid point, -1 for none; of cells on the grids of their
    levels.
    """
    owner, finest = owner_grid(cells), cells.sizes[-1]
    owner = owner.unflatten(1, level_grid(cells.reach, finest))
    for axis, (p, n) in enumerate(zip(finest, cells.shape, strict=True)):
        owner = owner.repeat_interleave(p, dim=axis + 1).narrow(axis + 1, 0, n)
    return owner


def point_owners(cells: Cells) -> Int64[Tensor, "b *shape"]:
    """Row of the smallest cell over each grid point, -1 for none; of cells that overlap in one
    regular grid (a `GridLayout`), that with the nearest centre.
    """
    layout = cells.layout
    whole = cells.bounded and isinstance(layout, GridLayout)
    if whole and cells.count == cells.batch_size * product(layout.grid):
        return _nearest_in_grid(cells, layout)
    return finest_owner(cells) if cells.on_grid else owners(cells, rows_of_levels(cells))


def _nearest_in_grid(cells: Cells, layout: GridLayout) -> Int64[Tensor, "b *shape"]:
    index = torch.arange(cells.batch_size, device=cells.device)
    index = index.view(-1, *[1] * len(cells.shape))
    for axis, n in enumerate(cells.shape):
        count, pitch, offset = layout.grid[axis], layout.pitch[axis], layout.offset[axis]
        point = torch.arange(n, device=cells.device) + 0.5
        band = ((point - offset) / pitch).floor().long().clamp(0, count - 1)
        index = index * count + band.view(-1, *[1] * (len(cells.shape) - axis - 1))
    return index


def check_levels(cells: Cells, sizes: tuple[tuple[int, ...], ...]) -> None:
    """Raises ``ValueError`` for cells of other levels than a part was built for."""
    if cells.sizes != sizes:
        raise ValueError(f"built for cells of sizes {sizes}, these have {cells.sizes}")


def check_on_grid(cells: Cells, part: str) -> None:
    """Raises ``ValueError`` for cells that do not promise to lie on the grids of their levels."""
    if not cells.on_grid:
        raise ValueError(
            f"{part} takes cells on the grids of their levels, and these do not promise to be "
            "(on_grid=True); others go with 'linear' or 'boxes'"
        )
