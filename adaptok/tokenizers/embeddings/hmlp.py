"""The hierarchical convolutional stem of MATEY."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.layers.convolution import conv_class
from adaptok.patches import (
    check_levels,
    check_on_grid,
    grid_index,
    pad_end,
    patchify,
    rows_of_levels,
)
from adaptok.registry import EMBEDDINGS, choice
from adaptok.tokenizers.embeddings.linear import restore_rows
from adaptok.utils.arguments import LevelSizes, Positive, checked
from adaptok.utils.magnitude import wide

VERSIONS = ("current", "paper")


@EMBEDDINGS.register("hmlp")
class HmlpEmbedding(nn.Module):
    """A linear map of the channels at each point, then per level three convolutions whose strides
    are their kernels, each with a norm and GELU (hMLP: Touvron et al., "Three things everyone
    should know about vision transformers", Sec. 5; as in MATEY's code).

    The norms take statistics over an image per sample and frame, so a token depends on points
    outside its cell. "current": every level convolves the whole domain and normalises over it.
    "paper": levels below the coarsest convolve and normalise each refined cell alone (their number
    costs one host synchronisation), by the standard deviation alone, and the first convolutions
    have the larger kernels.

    Args:
        in_channels: channels of the field.
        dim: width of the features, divisible by 4.
        sizes: cell size of each level, time first.
        version: of MATEY's code, "current" or "paper".

    Raises:
        ValueError: a width that is not divisible by 4, or an unknown version.
    """

    needs_grid = True

    @checked
    def __init__(
        self,
        in_channels: Positive,
        dim: Positive,
        sizes: LevelSizes,
        *,
        version: str = "current",
    ):
        super().__init__()
        check_hmlp(dim, version)
        self.sizes = sizes
        self.crops = version == "paper"
        self.lift = nn.Linear(in_channels * sizes[0][0], dim // 4)
        self.levels = nn.ModuleList(_stem(dim, size[1:], version) for size in sizes)

    def forward(self, x: Float[Tensor, "b t c *s"], cells: Cells) -> Float[Tensor, "n d"]:
        """Features of each cell, in the order of the cells."""
        check_on_grid(cells, "embedding 'hmlp'")
        check_levels(cells, self.sizes)
        frame_size = cells.sizes[0][0]
        image = x.unflatten(1, (-1, frame_size)).flatten(2, 3)  # (b, frames, fs * c, *space)
        image = self.lift(image.movedim(2, -1)).movedim(-1, 2)
        rows = rows_of_levels(cells)
        parts = []
        for level, (stem, own) in enumerate(zip(self.levels, rows, strict=True)):
            real = own.clamp(max=cells.count - 1)
            if self.crops and level:
                crops = patchify(image, (1, *cells.sizes[level - 1][1:]))
                crops = crops.unflatten(2, (image.shape[2], *cells.sizes[level - 1][1:]))
                parent = grid_index(cells, level - 1)[real]
                which, crop = parent.unique(return_inverse=True)
                features = stem(crops.flatten(0, 1)[which])  # (crops, d, *places)
                place = place_in_parent(cells, level)[real]
                parts.append(features.movedim(1, -1).flatten(1, -2)[crop, place])
            else:
                frames = pad_end(image.flatten(0, 1), cells.sizes[level][1:])
                features = stem(frames).movedim(1, -1)  # (b * frames, *grid, d)
                parts.append(features.flatten(0, -2)[grid_index(cells, level)[real]])
        return restore_rows(torch.cat(parts), torch.cat(rows), cells.count)


def place_in_parent(cells: Cells, level: int) -> Int64[Tensor, " n"]:
    """Finds the raster place of each row's origin, in cells of a level, inside the next coarser
    cell.
    """
    place = torch.zeros(cells.count, dtype=torch.int64, device=cells.device)
    pairs = zip(cells.sizes[level - 1], cells.sizes[level], strict=True)
    for axis, (coarse, fine) in list(enumerate(pairs))[1:]:
        place = place * (coarse // fine) + cells.origin[:, axis].long() % coarse // fine
    return place


def check_hmlp(dim: int, version: str) -> None:
    """Raises ``ValueError`` for a width that is not divisible by 4 or an unknown version."""
    if dim % 4:
        raise ValueError(f"hmlp needs a dim that is divisible by 4, got {dim}")
    choice("version", version, VERSIONS)


def kernels(size: Sequence[int], version: str) -> list[tuple[int, ...]]:
    """Picks kernels for the three convolutions that together shrink a patch to one point."""
    return list(zip(*(_factors(n, version) for n in size), strict=True))


def _factors(n: int, version: str) -> tuple[int, int, int]:
    """Splits n into three factors: alike and ascending, or ("paper") the last two at most 2."""
    if version == "paper":
        return (n // 4, 2, 2) if n % 8 == 0 else (n, 1, 1)
    factors = [1, 1, 1]
    for p in range(n, 1, -1):
        while n % p == 0 and all(p % q for q in range(2, p)):  # largest prime factors first
            factors[0] *= p
            factors.sort()
            n //= p
    return factors[0], factors[1], factors[2]


class ImageNorm(nn.Module):
    """Normalises each channel over the points of each image.

    "current": mean and biased variance (instance norm). "paper": the unbiased standard deviation
    alone, ``x / (std + 1e-8)``, no bias. There a standard deviation is at least 1e-4 of the root
    mean square, and a constant image is divided by that: the authors' code gives up to 1e8 times
    the values, and NaN for images of one point. Statistics are in at least float32.
    """

    def __init__(self, channels: int, version: str):
        super().__init__()
        self.center = version == "current"
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if self.center else None

    def forward(self, x: Float[Tensor, "m c *s"]) -> Float[Tensor, "m c *s"]:
        """Normalises; an image of one point has variance 0."""
        dtype, x, axes = x.dtype, wide(x), tuple(range(2, x.ndim))
        view = (-1, *[1] * len(axes))
        points = product(x.shape[2:])
        away = x - x.mean(axes, keepdim=True)
        squares = away.square().sum(axes, keepdim=True)
        if self.bias is None:
            info, size = torch.finfo(x.dtype), x.square().mean(axes, keepdim=True)
            variance = squares / max(points - 1, 1)
            constant = variance <= (2 * info.eps) ** 2 * size
            variance = torch.where(constant, size, variance.maximum(1e-8 * size))
            std = variance.clamp(min=info.tiny).sqrt()
            return (x / (std + 1e-8) * self.weight.view(view)).to(dtype)
        scale = (squares / points + 1e-5).rsqrt()
        return (away * scale * self.weight.view(view) + self.bias.view(view)).to(dtype)


def _stem(dim: int, size: Sequence[int], version: str) -> nn.Sequential:
    conv: Any = conv_class(len(size))
    widths = itertools.pairwise((dim // 4, dim // 4, dim // 4, dim))
    layers: list[nn.Module] = []
    for kernel, (c_in, c_out) in zip(kernels(size, version), widths, strict=True):
        layers += [conv(c_in, c_out, kernel, kernel, bias=False), ImageNorm(c_out, version)]
        layers += [nn.GELU()]
    return nn.Sequential(*layers)
