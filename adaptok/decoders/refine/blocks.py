"""Blocks of grid points: gathered with what lies around them, computed on, and put back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from adaptok.cells import product
from adaptok.patches import level_grid
from adaptok.tree import Tree
from adaptok.utils.constants import cached_constant
from adaptok.utils.reading import reads_are_free


def block_tree(space: Sequence[int], block: int) -> Tree:
    """The tree whose inner nodes are the blocks, so that any indicator scores and any marking
    chooses them.
    """
    part = block // 2 if block % 2 == 0 else 1
    return Tree(tuple(space), ((block,) * len(space), (part,) * len(space)), border="clip")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Some of the blocks of a batch of frames; those at the border may stick out of the domain.

    Attributes:
        index: of each block, in raster order over (frames of all samples, *blocks).
        space: grid points of the domain.
        block: grid points of a block per axis.
    """

    index: Int64[Tensor, " m"]
    space: tuple[int, ...]
    block: int

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of blocks per axis."""
        return level_grid(self.space, (self.block,) * len(self.space))

    @property
    def points(self) -> int:
        """Number of grid points of a block."""
        return self.block ** len(self.space)

    @property
    def places(self) -> list[Int64[Tensor, " m"]]:
        """Frame of each block, and its place in the grid of blocks along each axis."""
        rest, found = self.index, []
        for n in reversed(self.grid):
            found.append(rest % n)
            rest = rest // n
        return [rest, *reversed(found)]

    def split(self, most: int) -> list[Blocks]:
        """Parts of at most so many blocks in eager calls on the CPU; elsewhere one part, because
        more would be as many kernels, or as much code.
        """
        if not reads_are_free(self.index):
            return [self]
        return [dataclasses.replace(self, index=part) for part in self.index.split(max(most, 1))]

    def taps(self, x: Float[Tensor, "f *r c"], margin: int, spacing: int) -> Float[Tensor, "q k"]:
        """Values around each point, three per axis, as rows in the order of `scatter`.

        Args:
            x: channels last; has at least `margin` points before and after the blocks.
            spacing: between the taps, at most `margin`.

        Returns:
            One row per point, k = 3^d * c.
        """
        extents = tuple(x.shape[1:-1])
        first, *places = self.places
        for place, n in zip(places, extents, strict=True):
            first = first * n + place * self.block
        around = _offsets(extents, self.block, margin, spacing, x.device)
        index = first[:, None] + around
        # A lookup of rows; with other ways to say so torch takes twice the time on a CPU.
        values = F.embedding(index, x.flatten(0, -2))  # (m, points * taps, c)
        return values.view(index.shape[0] * self.points, 3 ** len(extents) * x.shape[-1])

    def scatter(self, rows: Float[Tensor, "q c"], frames: int) -> Float[Tensor, "f c *s"]:
        """Field of values at the points of the blocks, block by block, and zeros elsewhere."""
        whole = tuple(n * self.block for n in self.grid)
        channels, points = rows.shape[1], product(whole)
        first, *places = self.places
        first = first * channels
        for place, n in zip(places, whole, strict=True):
            first = first * n + place * self.block
        index = first[:, None] + _offsets(whole, self.block, 0, 0, rows.device)
        index = index.flatten()[:, None] + torch.arange(channels, device=rows.device) * points
        field = rows.new_zeros(frames * channels * points)
        field = field.scatter(0, index.flatten(), rows.flatten())
        field = field.unflatten(0, (frames, channels, *whole))
        return field[(..., *map(slice, self.space))]

    def at_points(
        self, values: Shaped[Tensor, "f *s"], *, first: bool = False
    ) -> Shaped[Tensor, "m p"]:
        """Values at the points of each block, or at its first point alone (p = 1); beyond the
        border those at the border.
        """
        step = _points(1 if first else self.block, len(self.space), values.device)
        index, *places = (place[:, None] for place in self.places)
        for axis, (place, n) in enumerate(zip(places, self.space, strict=True)):
            index = index * n + (place * self.block + step[:, axis]).clamp(max=n - 1)
        return values.flatten()[index]


@cached_constant()
def _points(block: int, ndim: int, device: torch.device) -> Int64[Tensor, "p d"]:
    """The points of a block, in raster order."""
    points = list(itertools.product(range(block), repeat=ndim))
    return torch.tensor(points, device=device)


@cached_constant()
def _offsets(
    extents: tuple[int, ...], block: int, margin: int, spacing: int, device: torch.device
) -> Int64[Tensor, " k"]:
    """Raster offsets of the points of a block, and of the taps of each (spacing 0: of the points
    alone), from the first point of the block; the field has a margin before it.
    """
    axes: list[list[int]] = []
    for axis in range(len(extents)):
        stride = product(extents[axis + 1 :])
        axes.append([(margin + point) * stride for point in range(block)])
    for axis in range(len(extents) if spacing else 0):
        stride = product(extents[axis + 1 :])
        axes.append([tap * spacing * stride for tap in (-1, 0, 1)])
    return torch.tensor([sum(each) for each in itertools.product(*axes)], device=device)
