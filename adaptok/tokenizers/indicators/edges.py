"""The number of edge points in a cell, the score of APF."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.layers.boundary import Boundary, periodic_axes
from adaptok.patches import pad_end
from adaptok.registry import INDICATORS, choice
from adaptok.tokenizers.indicators.base import Field, Intensity, Scores
from adaptok.tokenizers.indicators.gradient import stencil
from adaptok.tree import Sizes, Tree, sum_pyramid
from adaptok.utils.arguments import NonNegative, NonNegativeFloat, Pair, checked
from adaptok.utils.constants import cached_constant
from adaptok.utils.reading import reads_are_free

BYTES = 255.0  # thresholds are those of images of bytes
BLURS = {  # OpenCV's Gaussians of these widths
    1: [1.0],
    3: [0.25, 0.5, 0.25],
    5: [0.0625, 0.25, 0.375, 0.25, 0.0625],
    7: [0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125],
}
SECTOR = math.tan(math.pi / 8)  # half the angle between neighbouring directions


@INDICATORS.register("edges")
class EdgesIndicator:
    """Number of edge points in the cell, over all maps and frames (Canny's detector, as APF counts
    them).

    Each map is brought to 0..255, blurred and turned into edges, see `canny`; frames are images of
    their own. A map that varies by rounding alone has no edge.

    Args:
        low: threshold of edge points beside stronger ones, in units of the Sobel gradient of bytes
            (a step of 255 has 1020); APF draws it from 50 to 100.
        high: threshold of edge points by themselves (APF: low + 50).
        blur: width of the Gaussian, 1 (none), 3, 5 or 7 points.
        reach: grid points along which an edge is followed from a strong point over weak ones;
            OpenCV's has no end.
        color: "channels" (each alone) or "gray" (needs 1 or 3 channels).
        value_range: lowest and highest value, such as (0, 255) of bytes; None: those of each map of
            each sample.
        ties: which of nodes with as many points comes first: "level" (the coarser, then the first
            in raster order) or "list" (the first in the list of the authors' loop, where children
            replace their parent: their scores are less by under 1).
        above_finest: score how far a node is above the finest cell that comes first: nodes above 0
            are those that the authors' code reaches before it ends. Needs ties="list".

    Raises:
        ValueError: thresholds in the wrong order, or `above_finest` with other ties.
    """

    monotone = True

    @checked
    def __init__(
        self,
        *,
        low: NonNegativeFloat = 75.0,
        high: NonNegativeFloat = 125.0,
        blur: Literal[1, 3, 5, 7] = 3,
        reach: NonNegative = 16,
        color: str | None = "channels",
        value_range: Pair | None = None,
        ties: Literal["level", "list"] = "level",
        above_finest: bool = False,
    ):
        if high < low:
            raise ValueError(f"high is at least low, got low {low} and high {high}")
        if above_finest and ties != "list":
            raise ValueError(f"above_finest=True needs ties='list', got {ties!r}")
        self.low, self.high, self.reach = float(low), float(high), reach
        self.blur, self.ties, self.above_finest = choice("blur", blur, BLURS), ties, above_finest
        self.intensity = Intensity(color, value_range)

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Counts the edge points of each inner node."""
        points = self.score_map(field, boundary=boundary)[:, None]
        if self.ties == "level":
            return sum_pyramid(points, tree)[:, 0]
        counts = _of_all_nodes(points, tree)[:, 0] - _listed(tree.shape, tree.sizes, points.device)
        scores = counts[:, : tree.inner]
        if not self.above_finest:
            return scores
        return scores - counts[:, tree.inner :].amax(1, keepdim=True)

    def score_map(self, field: Field, *, boundary: Boundary = None) -> Float[Tensor, "b *s"]:
        """Counts the maps and frames that have an edge at each grid point."""
        edges = self.edges(field, boundary)
        return edges.flatten(1, 2).sum(1, dtype=torch.float32)

    def edges(self, field: Field, boundary: Boundary = None) -> Bool[Tensor, "b t m *s"]:
        """Finds the edge points of each map and frame."""
        maps, low, width = self.intensity.limits(self.intensity.maps(field))
        if isinstance(width, Tensor) and isinstance(low, Tensor):
            size = torch.maximum(low.abs(), (low + width).abs())
            noise = width <= 4 * torch.finfo(maps.dtype).eps * size
            width = width.masked_fill(noise, torch.inf)
        x = (maps - low) / width * BYTES
        axes = range(3, x.ndim)
        if self.blur > 1:
            for axis, wrap in zip(axes, periodic_axes(boundary, len(axes), x), strict=True):
                x = stencil(x, axis, BLURS[self.blur], "reflect", wrap)
        return canny(x, self.low, self.high, reach=self.reach, boundary=boundary)


def _of_all_nodes(points: Float[Tensor, "b 1 *s"], tree: Tree) -> Float[Tensor, "b 1 nodes"]:
    """Sums over each node, finest cells included."""
    finest, one = tree.sizes[-1], (1,) * len(tree.shape)
    if finest != one:
        return sum_pyramid(points, Tree(tree.shape, (*tree.sizes, one)))
    inner, ends = sum_pyramid(points, tree), pad_end(points, tree.grids[-1])
    return torch.cat([inner, ends.flatten(2)], 2)


@cached_constant(64)  # takes plain values: a Tree made inside a graph has no identity yet
def _listed(shape: tuple[int, ...], sizes: Sizes, device: torch.device) -> Float[Tensor, " nodes"]:
    """Place of each node in the list of the authors' loop, 0 to below 1.

    Each node comes before its children, and these in raster order, in 2D the higher rows first.
    """
    tree = Tree(shape, sizes)
    order = tree.nodes(torch.device("cpu")).order
    place = torch.empty(len(order), dtype=torch.float64)
    place[order] = torch.arange(len(order), dtype=torch.float64) / len(order)
    if len(shape) == 2:
        levels = zip(tree.per_level(place), tree.grids, strict=True)
        place = torch.cat([level.unflatten(0, grid).flip(0).flatten() for level, grid in levels])
    return place.to(device)


def canny(
    x: Float[Tensor, "b t m *s"],
    low: float,
    high: float,
    *,
    reach: int,
    boundary: Boundary = None,
) -> Bool[Tensor, "b t m *s"]:
    """Finds edges (Canny, "A computational approach to edge detection", IEEE PAMI 8, 1986).

    In 2D and with enough reach these are OpenCV's: Sobel derivatives with replicated borders, the
    sum of their absolute values as the magnitude, maxima along the nearest of 8 directions, and
    hysteresis between two thresholds, of which the lower one counts for points that strong ones
    lead to. In 1D and 3D likewise, with 2 and 26 directions and derivatives in the units of 2D.
    """
    ndim = x.ndim - 3
    axes, wraps = range(3, x.ndim), periodic_axes(boundary, ndim, x)
    slopes = []
    for along in axes:
        slope = x
        for axis, wrap in zip(axes, wraps, strict=True):
            taps = [-1.0, 0.0, 1.0] if axis == along else [1.0, 2.0, 1.0]
            slope = stencil(slope, axis, taps, "replicate", wrap)
        slopes.append(slope * 4.0 ** (2 - ndim))
    size = torch.stack([slope.abs() for slope in slopes])
    magnitude, steep = size.sum(0), size.amax(0) * SECTOR
    direction = torch.zeros_like(magnitude)  # steps of -1, 0, 1 per axis, as digits
    for axis, slope in enumerate(slopes):
        direction += torch.where(slope.abs() >= steep, slope.sign(), 0) * 3**axis
    direction = direction.abs()
    around, peak = _surrounded(magnitude, wraps), torch.zeros_like(magnitude, dtype=torch.bool)
    for step in itertools.product((-1, 0, 1), repeat=ndim):
        code = sum(s * 3**axis for axis, s in enumerate(step))
        if code <= 0:  # the other way round, or none
            continue
        before = magnitude > _neighbour(around, step, -1, magnitude.shape)
        after = _neighbour(around, step, 1, magnitude.shape)
        straight = sum(map(abs, step)) == 1  # of two equal ones the first counts, as in OpenCV
        after = magnitude >= after if straight else magnitude > after
        peak |= (direction == code) & before & after
    weak = peak & (magnitude > low)
    return _connected(weak & (magnitude > high), weak, reach, wraps)


def _connected(
    strong: Bool[Tensor, "b t m *s"],
    weak: Bool[Tensor, "b t m *s"],
    reach: int,
    wraps: list[Tensor | None],
) -> Bool[Tensor, "b t m *s"]:
    """The weak points that are at most `reach` steps over weak points from a strong one."""
    for _ in range(reach):
        grown = strong
        for axis, wrap in enumerate(wraps, start=3):
            padded, n = _with_ends(grown, axis, wrap), grown.shape[axis]
            grown = padded.narrow(axis, 0, n) | grown | padded.narrow(axis, 2, n)
        grown &= weak
        if reads_are_free(grown) and torch.equal(grown, strong):
            break  # on other devices the rest of the steps changes nothing
        strong = grown
    return strong


def _with_ends(x: Tensor, axis: int, wrap: Tensor | None) -> Tensor:
    """One more value at both ends of an axis: 0, or of a periodic one that of the other end."""
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
    zero = torch.zeros_like(first)
    if wrap is None:
        return torch.cat([zero, x, zero], axis)
    return torch.cat([torch.where(wrap, last, zero), x, torch.where(wrap, first, zero)], axis)


def _surrounded(x: Tensor, wraps: list[Tensor | None]) -> Tensor:
    for axis, wrap in enumerate(wraps, start=3):
        x = _with_ends(x, axis, wrap)
    return x


def _neighbour(around: Tensor, step: tuple[int, ...], sign: int, shape: torch.Size) -> Tensor:
    for axis, s in enumerate(step, start=3):
        around = around.narrow(axis, 1 + sign * s, shape[axis])
    return around
