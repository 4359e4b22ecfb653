"""Distance from a point, a score that does not see the field."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptok.layers.boundary import Boundary, periodic_axes
from adaptok.registry import INDICATORS
from adaptok.tokenizers.indicators.base import Field, Scores
from adaptok.tree import Tree
from adaptok.utils.arguments import Share, checked


@INDICATORS.register("radial")
class RadialIndicator:
    """``1 / (1 + d)`` with d the distance of the node from a point, in units of the node's size.

    So cells grow in proportion to their distance. The field is not looked at: the control
    experiment of any indicator if the content is known to lie there. Along periodic axes the
    shorter way counts.

    Args:
        center: the point, as a share of the domain along each axis; None: the middle.
    """

    monotone = True

    @checked
    def __init__(self, *, center: Sequence[Share] | None = None):
        self.center = None if center is None else tuple(map(float, center))

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Scores every inner node; raises ``ValueError`` for a center of another dimension."""
        ndim = len(tree.shape)
        center = (0.5,) * ndim if self.center is None else self.center
        if len(center) != ndim:
            raise ValueError(f"center is one share per space axis, {ndim}, got {list(center)}")
        return closeness(center, center, field, tree, boundary)


def closeness(
    low: Sequence[float], high: Sequence[float], field: Field, tree: Tree, boundary: Boundary
) -> Scores:
    """``1 / (1 + d)`` with d the distance of every inner node from a box, in units of the node's
    size.

    Args:
        low: first corner of the box, as a share of the domain along each axis.
        high: last corner.
    """
    ndim = len(tree.shape)
    periodic = periodic_axes(boundary, ndim, field)
    scores = [torch.zeros(field.shape[0], 0, device=field.device)]
    for size, grid in zip(tree.sizes[:-1], tree.grids[:-1], strict=True):
        square = torch.zeros((), device=field.device)
        for axis, (n, *ends) in enumerate(zip(tree.shape, low, high, strict=True)):
            nodes = torch.arange(grid[axis], device=field.device) * size[axis]
            first, last = (share * n for share in ends)
            away = _gap(first, last, size[axis], nodes)
            wrap = periodic[axis]
            if wrap is not None:
                images = [_gap(first + turn, last + turn, size[axis], nodes) for turn in (-n, n)]
                near = torch.stack([away, *images]).amin(0)
                away = torch.where(wrap.flatten()[:, None], near, away)
            behind = [1] * (ndim - 1 - axis)
            square = square + away.square().view(-1, *[1] * axis, grid[axis], *behind)
        score = 1 / (1 + square.sqrt())
        scores.append(score.flatten(1).expand(field.shape[0], -1))
    return torch.cat(scores, 1)


def _gap(first: float, last: float, size: int, start: Tensor) -> Tensor:
    """Distance of the nodes along an axis from an interval, in node sizes; 0 where they meet."""
    return torch.maximum(start - last, first - start - size).clamp(min=0) / size
