"""Mean absolute Laplacian, an alternative score of APT."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import Boundary, periodic_axes
from adaptok.patches import pad_end
from adaptok.registry import INDICATORS, choice
from adaptok.tokenizers.indicators.base import (
    Field,
    Intensity,
    Scores,
    points_of_nodes,
)
from adaptok.tokenizers.indicators.gradient import PADDINGS, stencil
from adaptok.tree import Tree, sum_pyramid
from adaptok.utils.arguments import Pair, checked


@INDICATORS.register("laplacian")
class LaplacianIndicator:
    """Statistic over the cell of the absolute Laplacian of the values (APT, App.).

    The stencil sums the 3^D neighbourhood and subtracts 3^D times the centre; values are measured
    in units of their range. Only points inside the domain count, whereas the authors' code dilutes
    cells at the border with zeros. Channels and frames are averaged.

    Args:
        statistic: "mean", "max" or "std" (unbiased) over the points of a cell.
        color: "gray" (needs 1 or 3 channels) or "channels"; default gray if there are 1 or 3.
        value_range: lowest and highest value, or None for the range of each map of each sample.
        padding: "reflect", "replicate" or "circular"; periodic axes are always circular.
    """

    @checked
    def __init__(
        self,
        *,
        statistic: str = "mean",
        color: str | None = None,
        value_range: Pair | None = (0.0, 255.0),
        padding: str = "reflect",
    ):
        self.statistic = choice("statistic", statistic, STATISTICS)
        self.padding = choice("padding", padding, PADDINGS)
        self.intensity = Intensity(color, value_range)
        self.monotone = statistic == "max"

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Averages the statistic of each node over channels and frames."""
        response = self.responses(field, boundary).flatten(1, 2)
        return STATISTICS[self.statistic](response, tree).mean(1)

    def score_map(self, field: Field, *, boundary: Boundary = None) -> Float[Tensor, "b *s"]:
        """Computes the absolute Laplacian of each grid point."""
        return self.responses(field, boundary).flatten(1, 2).mean(1)

    def responses(self, field: Field, boundary: Boundary = None) -> Float[Tensor, "b t m *s"]:
        """Computes the absolute Laplacian of each map, in units of its value range."""
        maps = self.intensity.measured(field)
        axes = range(3, maps.ndim)
        total = maps
        for axis, wrap in zip(axes, periodic_axes(boundary, len(axes), maps), strict=True):
            total = stencil(total, axis, [1.0, 1.0, 1.0], self.padding, wrap)
        return (total - 3 ** len(axes) * maps).abs()


def _mean(points: Float[Tensor, "b m *s"], tree: Tree) -> Float[Tensor, "b m inner"]:
    return sum_pyramid(points, tree) / points_of_nodes(tree, points.device).clamp_min(1)


def _max(points: Float[Tensor, "b m *s"], tree: Tree) -> Float[Tensor, "b m inner"]:
    x, out = pad_end(points, tree.sizes[0]), []  # with zeros: responses are not negative
    for blocks in (*tree.sizes[-2:-1], *reversed(tree.ratios[:-1])):
        for axis, block in enumerate(blocks):
            x = x.unflatten(axis + 2, (-1, block)).amax(axis + 3)
        out.append(x.flatten(2))
    return torch.cat([*out[::-1], points.new_zeros(*points.shape[:2], 0)], -1)


def _std(points: Float[Tensor, "b m *s"], tree: Tree) -> Float[Tensor, "b m inner"]:
    x = points.double()  # the difference of two sums would cancel in single precision
    n = points_of_nodes(tree, points.device)
    centred = sum_pyramid(x * x, tree) - sum_pyramid(x, tree).square() / n.clamp_min(1)
    return (centred / (n - 1).clamp_min(1)).clamp_min(0).sqrt().to(points.dtype)


STATISTICS = {"mean": _mean, "max": _max, "std": _std}
