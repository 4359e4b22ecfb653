"""APT's token embedding on top of a model's own patch embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.embeddings import restore_rows
from adaptok.patches import level_grid, rows_of_levels

Project = Callable[[Tensor], Tensor]  # images (b, c, H, W) to patch features (b, H / p, W / p, d)


class CellEmbedding(nn.Module):
    """Features of cells from a patch embedding E that is trained already (APT, Eq. 2).

    A finest cell takes E of its patch. A cell 2^i times as large takes E of its pixels shrunk to
    one patch, plus ``zero(conv^i(E of its patches))``: a 2 x 2 convolution of stride 2 applied i times
    and a linear layer that starts at zero, both shared by all levels. So at first the model sees
    shrunk patches only, and training lets the detail in.

    Args:
        dim: width of the features.
        resize: "central", the authors' bilinear sampling without antialiasing, which averages the
            central 2 x 2 points of each 2^i x 2^i block; or "area", the mean of all of them.
        branch: leave False to train without the convolution (the baseline "resize").
    """

    def __init__(self, dim: int, *, resize: str = "central", branch: bool = True):
        super().__init__()
        if resize not in RESIZES:
            raise ValueError(f"resize is one of {', '.join(RESIZES)}, got {resize!r}")
        self.resize = resize
        self.conv = nn.Conv2d(dim, dim, kernel_size=2, stride=2) if branch else None
        self.zero = nn.Linear(dim, dim) if branch else None
        if self.zero is not None:
            nn.init.zeros_(self.zero.weight)
            nn.init.zeros_(self.zero.bias)

    def forward(
        self, x: Float[Tensor, "b c h w"], cells: Cells, project: Project
    ) -> Float[Tensor, "n d"]:
        """Features in the order of the cells, without positions.

        Patches that overhang the image are zero-padded.
        """
        _, *patch = cells.sizes[-1]
        grid = level_grid(tuple(x.shape[2:]), tuple(patch))
        x = F.pad(x, (0, grid[1] * patch[1] - x.shape[3], 0, grid[0] * patch[0] - x.shape[2]))
        patches = project(x)  # (b, gh, gw, d)
        rows = rows_of_levels(cells)
        parts = []
        for size, own in zip(cells.sizes, rows, strict=True):
            if not len(own) and not self.training:
                continue  # in training an empty level still gives its parameters a gradient (DDP)
            corner = self._corners(cells, own)
            factor = size[1] // patch[0]
            parts.append((own, self._level(x, patches, corner, factor, project)))
        features = torch.cat([part for _, part in parts])
        return restore_rows(features, torch.cat([own for own, _ in parts]), len(cells))

    def _corners(self, cells: Cells, own: Tensor) -> Int64[Tensor, "m 3"]:
        """Image, row and column of the first patch of each cell."""
        own = own.clamp(max=len(cells) - 1)  # filler rows embed some cell and are dropped later
        patch = torch.tensor(cells.sizes[-1][1:], device=cells.device)
        return torch.cat([cells.sample[own, None], cells.origin[own, 1:].long() // patch], 1)

    def _level(
        self, x: Tensor, patches: Tensor, corner: Tensor, factor: int, project: Project
    ) -> Float[Tensor, "m d"]:
        image, row, column = corner.unbind(1)
        if factor == 1:
            return patches[image, row, column]
        shrunk = project(self._shrink(x, factor, patches.shape[1:3]))
        features = shrunk[image, row // factor, column // factor]
        if self.conv is None or self.zero is None:
            return features
        steps = torch.arange(factor, device=x.device)
        row, column = row[:, None] + steps, column[:, None] + steps
        children = patches[image[:, None, None], row[:, :, None], column[:, None, :]]
        return features + self.zero(self._merge(children, factor))

    def _merge(self, children: Float[Tensor, "m f f d"], factor: int) -> Float[Tensor, "m d"]:
        assert self.conv is not None
        kernel = self.conv.weight.permute(0, 2, 3, 1).flatten(1)  # (d, 2 * 2 * d)
        for _ in range(factor.bit_length() - 1):  # as a linear map: no change of memory layout
            blocks = children.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
            children = F.linear(blocks.flatten(3), kernel, self.conv.bias)
        return children[:, 0, 0]

    def _shrink(self, x: Tensor, factor: int, grid: torch.Size) -> Tensor:
        """The image at 1 / factor, of the whole cells only."""
        height, width = (
            n // g * (g // factor) * factor for n, g in zip(x.shape[2:], grid, strict=True)
        )
        x = x[:, :, :height, :width]
        if self.resize == "area":
            return F.avg_pool2d(x, factor)
        first = factor // 2 - 1
        taps = (first, first + 1)
        return _mean([x[:, :, i::factor, j::factor] for i in taps for j in taps])


def _mean(parts: list[Tensor]) -> Tensor:
    """Mean of equally shaped tensors."""
    return sum(parts[1:], parts[0]) / len(parts)


RESIZES = ("central", "area")


def position_table(
    table: Float[Tensor, "1 n d"], old: tuple[int, int], grid: tuple[int, int], factor: int
) -> Float[Tensor, "g d"]:
    """A learned table of positions at the centres of cells of `factor` patches, raster order.

    Bicubic with antialiasing, as timm resamples between image sizes and APT between levels (APT,
    Sec. 3). Where the grid does not divide, the points are those of the whole cells.

    Args:
        table: of the `old` grid of patches, without rows for special tokens.
        grid: patches per axis of the image.
    """
    size, divides = tuple(n // factor for n in grid), not any(n % factor for n in grid)
    if divides and size == old:
        return table[0]
    points = table.float().unflatten(1, old).permute(0, 3, 1, 2)
    if divides:
        out = F.interpolate(points, size=size, mode="bicubic", antialias=True)
    else:  # the scale counts, not the size: the last points would drift towards the border
        scale = [n / factor / o * (1 + 1e-9) for n, o in zip(grid, old, strict=True)]
        out = F.interpolate(
            points,
            scale_factor=scale,
            mode="bicubic",
            antialias=True,
            recompute_scale_factor=False,
        )
    return out.flatten(2)[0].T.to(table.dtype)


def cell_positions(
    tables: list[Float[Tensor, "g d"]], cells: Cells, grid: tuple[int, int]
) -> Float[Tensor, "n d"]:
    """The row of its level's table for each cell."""
    _, *patch = cells.sizes[-1]
    factors = [size[1] // patch[0] for size in cells.sizes]
    counts = [product(n // f for n in grid) for f in factors]
    starts = [sum(counts[:level]) for level in range(len(counts))]
    device, level = cells.device, cells.level.long()
    factor = torch.tensor(factors, device=device)[level]
    width = torch.tensor([grid[1] // f for f in factors], device=device)[level]
    start = torch.tensor(starts, device=device)[level]
    row = cells.origin[:, 1].long() // patch[0] // factor
    column = cells.origin[:, 2].long() // patch[1] // factor
    return torch.cat(tables)[start + row * width + column]
