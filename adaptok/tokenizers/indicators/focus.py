"""Distance from points and boxes, a score that does not see the field."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from adaptok.layers.boundary import Boundary
from adaptok.registry import INDICATORS
from adaptok.tokenizers.indicators.base import Field, Scores
from adaptok.tokenizers.indicators.radial import closeness
from adaptok.tree import Tree
from adaptok.utils.arguments import Share, checked

Point = Sequence[Share]  # shares of the domain along each axis


@INDICATORS.register("focus")
class FocusIndicator:
    """``1 / (1 + d)`` with d the distance of the node from the nearest focus, in units of the
    node's size; 1 inside.

    So every focus is resolved finely, and cells grow in proportion to their distance from it. The
    field is not looked at. Along periodic axes the shorter way counts.

    Args:
        points: foci, each a share of the domain along each axis.
        boxes: foci that extend, each its first and its last corner. Without points and boxes the
            middle of the domain is the focus.
    """

    monotone = True

    @checked
    def __init__(
        self,
        *,
        points: Sequence[Point] | None = None,
        boxes: Sequence[Sequence[Point]] | None = None,
    ):
        corners = [(point, point) for point in points or ()]
        for box in boxes or ():
            if len(box) != 2 or any(low > high for low, high in zip(*box, strict=False)):
                raise ValueError(
                    "boxes are given by their first and their last corner, as shares of the "
                    f"domain, got {[list(corner) for corner in box]}"
                )
            corners.append((box[0], box[1]))
        self.foci = [(tuple(low), tuple(high)) for low, high in corners]

    def check(self, ndim: int) -> None:
        """Raises ``ValueError`` for foci of another dimension."""
        for corners in self.foci:
            if any(len(corner) != ndim for corner in corners):
                given = [list(corner) for corner in dict.fromkeys(corners)]
                raise ValueError(
                    f"points and boxes have one share per space axis, {ndim}, got {given}"
                )

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Scores every inner node; raises ``ValueError`` for foci of another dimension."""
        ndim = len(tree.shape)
        self.check(ndim)
        foci = self.foci or [((0.5,) * ndim,) * 2]
        scores = [closeness(low, high, field, tree, boundary) for low, high in foci]
        return torch.stack(scores).amax(0)
