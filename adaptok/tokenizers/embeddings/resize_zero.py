"""APT's patch embedding for all sizes, with a branch for detail that starts at zero."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.patches import (
    check_on_grid,
    gather_blocks,
    grid_index,
    level_grid,
    pad_end,
    patchify,
    places_in_grid,
    rows_of_levels,
)
from adaptok.registry import EMBEDDINGS, choice
from adaptok.tokenizers.base import per_axis
from adaptok.tokenizers.embeddings.learned_table import LearnedPositions
from adaptok.tokenizers.embeddings.linear import restore_rows
from adaptok.utils.arguments import LevelSizes, PerAxis, Positive, checked
from adaptok.utils.constants import cached_constant
from adaptok.utils.hooks import is_plain
from adaptok.utils.reading import reads_are_free


@EMBEDDINGS.register("resize_zero")
class ResizeZeroEmbedding(nn.Module):
    """Embeds resized cells, plus a zero-initialised branch over their full resolution.

    ``token = zero(merge^i({patch(child)})) + patch(resize(cell))`` (APT, Eq. 2) with one `patch`
    for all sizes, one `merge` (a convolution whose stride is its kernel) applied i times, and one
    linear `zero` that starts at 0: before training, tokens are those of resized cells exactly, and
    `merge` learns from the second step on. Clipped cells are zero-padded.

    With the branch every finest patch of the field is embedded, since each is either a token or the
    child of one; everything else works on the cells that exist. A branch that is exactly zero is
    left out on a CPU, outside of training and if nothing wants its gradients. Any module from
    values ``(m, channels * volume)`` to features may replace `patch`, such as the projection of a
    pretrained ViT.

    Args:
        in_channels: channels of the field.
        dim: width of the features.
        sizes: cell size of each level, time first.
        resize: "central", the mean of the (at most two) central samples per axis, as in the
            authors' code, which ignores the other points of a cell four times the finest; or
            "area", the mean over all points (antialiased).
        branch: False leaves the branch out.
        positions: side of a learned table of positions in finest cells, one number or one per space
            axis; None for none.

    Raises:
        ValueError: an unknown resize, or levels with different ratios and a branch.
    """

    needs_grid = True

    @checked
    def __init__(
        self,
        in_channels: Positive,
        dim: Positive,
        sizes: LevelSizes,
        *,
        resize: str = "central",
        branch: bool = True,
        positions: PerAxis | None = None,
    ):
        super().__init__()
        self.sizes = sizes
        self.resize = choice("resize", resize, ("central", "area"))
        ratios = {
            tuple(c // f for c, f in zip(*pair, strict=True)) for pair in itertools.pairwise(sizes)
        }
        if branch and len(ratios) > 1:
            raise ValueError(
                f"the branch of resize_zero shares its weights between levels, so all neighbouring "
                f"sizes need one ratio, got {sizes}; use branch=False"
            )
        self.values = in_channels * product(sizes[-1])  # of a finest cell
        self.patch = nn.Linear(self.values, dim)
        self.merge = self.zero = self.positions = None
        if branch and ratios:
            self.ratio = next(iter(ratios))
            self.merge = nn.Linear(product(self.ratio) * dim, dim)
            self.zero = nn.Linear(dim, dim)
            nn.init.zeros_(self.zero.weight)
            nn.init.zeros_(self.zero.bias)
        if positions is not None:
            grid = per_axis(positions, len(sizes[0]) - 1, "positions, the side of a table,")
            self.positions = LearnedPositions(dim, grid)

    def forward(self, x: Float[Tensor, "b t c *s"], cells: Cells) -> Float[Tensor, "n d"]:
        """Features of each cell, in the order of the cells."""
        check_on_grid(cells, "embedding 'resize_zero'")
        if cells.sizes != self.sizes[-len(cells.sizes) :]:
            raise ValueError(
                f"built for cells of sizes {self.sizes}, or of the last of them; these have "
                f"{cells.sizes}"
            )
        finest, rows = len(cells.sizes) - 1, rows_of_levels(cells)
        real = [own.clamp(max=cells.count - 1) for own in rows]
        picked = [places_in_grid(cells, level, own) for level, own in enumerate(real)]
        parts = [self._shrunk(x, cells, level, picked[level]) for level in range(finest)]
        if self._silent():
            whole = gather_blocks(x, cells.sizes[finest], picked[finest])
            out = self.patch(torch.cat([*parts, whole]))
        else:
            every = self.patch(patchify(x, cells.sizes[finest]).flatten(0, 1))  # (b * g, d)
            fine = every.index_select(0, grid_index(cells, finest)[real[finest]])
            coarse = [self.patch(torch.cat(parts))] if parts else []
            more = [self._detail(every, cells, level, real[level]) for level in range(finest)]
            out = torch.cat([*coarse, fine])
            if more:
                out = out + torch.cat([*more, torch.zeros_like(fine)])
        if len(rows) > 1:
            out = restore_rows(out, torch.cat(rows), cells.count)
        return out if self.positions is None else out + self.positions(cells)

    def _shrunk(
        self, x: Tensor, cells: Cells, level: int, places: tuple[Tensor, ...]
    ) -> Float[Tensor, "m k"]:
        """Resizes cells of one level above the finest to finest cells."""
        rows = places[0].shape[0]
        source = x if isinstance(rows, torch.SymInt) or rows else x[:0]
        small = resized(source, cells.sizes[level], cells.sizes[-1], self.resize)
        return gather_blocks(small, cells.sizes[-1], places)

    def _silent(self) -> bool:
        """Whether the branch would add exact zeros, and nothing wants its gradients: it is left
        out then. On an accelerator it always runs, since asking would wait for the device.
        """
        if self.merge is None or self.zero is None:
            return True
        plain = is_plain(self.zero, nn.Linear) and is_plain(self.merge, nn.Linear)
        if self.training or not plain:
            return False
        weights = [self.zero.weight, self.zero.bias]
        wanted = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        return not wanted and all(map(_is_zero, weights))

    def _detail(
        self, every: Tensor, cells: Cells, level: int, rows: Tensor
    ) -> Float[Tensor, "m d"]:
        """Runs the branch on rows of one level above the finest."""
        # Without cells of this level the maps still run, on no rows: all ranks use all parameters.
        assert self.merge is not None
        assert self.zero is not None
        children, depth = child_index(cells, level, rows, self.ratio), len(cells.sizes) - 1 - level
        if any(n % p for n, p in zip(cells.shape, cells.sizes[level], strict=True)):
            zeros = every.new_zeros(1, self.values)  # children beyond the border
            every = torch.cat([every, self.patch(zeros)])
        children = children.clamp(max=every.shape[0] - 1)  # filler rows may stand at the border
        detail = every[children]  # (m, product(ratio) ** depth, d), blocks contiguous
        for _ in range(depth):
            detail = self.merge(detail.unflatten(1, (-1, product(self.ratio))).flatten(2))
        return self.zero(detail.squeeze(1))


def _is_zero(weight: Tensor) -> bool:
    """Whether the host can see at once that all values are 0."""
    if not reads_are_free(weight) or bool(weight[:1].any()):  # a trained one is told by its start
        return False
    low, high = torch.aminmax(weight)
    return float(low) == float(high) == 0


def resized(
    x: Float[Tensor, "b t c *s"], size: tuple[int, ...], finest: tuple[int, ...], resize: str
) -> Float[Tensor, "b u c *r"]:
    """Resizes every cell of `size` to the size of the finest ones; what crosses the border stays
    unpadded as far as it can.

    "central" is bilinear sampling without antialiasing at the centres of the new points.
    """
    factors = [s // fine for s, fine in zip(size, finest, strict=True)]
    x = pad_end(x, (factors[0], 1, *factors[1:]))  # channels stand between time and space
    for axis, factor in enumerate(factors):
        dim = axis + 1 + (axis > 0)
        if factor == 1:
            continue
        x = x.unflatten(dim, (-1, factor))
        if resize == "area":
            x = x.mean(dim + 1)
        else:
            middle, left = factor // 2, (factor - 1) // 2
            own = x.select(dim + 1, middle)
            x = own if left == middle else (x.select(dim + 1, left) + own).mul_(0.5)
    return x


def child_index(
    cells: Cells, level: int, rows: Int64[Tensor, " m"], ratio: tuple[int, ...]
) -> Int64[Tensor, "m k"]:
    """Returns raster indices, within a batch of finest grids, of the finest cells inside each cell.

    Depth first, children in raster order, so that the children of every node are contiguous. Those
    beyond the border get the number of all finest cells.
    """
    finest = cells.sizes[-1]
    grid = level_grid(cells.shape, finest)
    steps = _steps(ratio, len(cells.sizes) - 1 - level, cells.device)
    index = cells.sample[rows][:, None]
    inside = torch.ones_like(index, dtype=torch.bool)
    for axis, (g, p) in enumerate(zip(grid, finest, strict=True)):
        at = cells.origin[rows, axis].long()[:, None] // p + steps[:, axis]  # (m, k)
        index, inside = index * g + at, inside & (at < g)
    return torch.where(inside, index, cells.batch_size * product(grid))


@cached_constant(64)
def _steps(ratio: tuple[int, ...], depth: int, device: torch.device) -> Tensor:
    """Lists offsets (k, a), in finest cells and depth first, of the descendants after `depth`
    splits.
    """
    block = torch.tensor(list(itertools.product(*map(range, ratio))))
    steps = torch.zeros(1, len(ratio), dtype=torch.int64)
    for _ in range(depth):
        steps = (steps[:, None] * torch.tensor(ratio) + block).flatten(0, 1)
    return steps.to(device)
