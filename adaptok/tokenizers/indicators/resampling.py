"""Error of resampling a cell down and up again, an alternative score of APT."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from adaptok.layers.boundary import Boundary
from adaptok.patches import pad_end
from adaptok.registry import INDICATORS
from adaptok.tokenizers.indicators.base import (
    Field,
    Intensity,
    Scores,
    areas_of_nodes,
    points_of_nodes,
)
from adaptok.tree import Tree, sum_pyramid
from adaptok.utils.arguments import Pair, checked

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@INDICATORS.register("resampling")
class ResamplingIndicator:
    """Mean squared error over the cell of the field resampled to the resolution that the cell
    would have as one token, and back (APT, App.).

    A cell that is f times as large as the finest one is resampled by 1/f and f, linearly and
    without antialiasing; values are measured in units of their range. Only points inside the domain
    count. Channels and frames are averaged; edges are repeated, whatever the boundary.

    Args:
        value_range: lowest and highest value, or None for the range of each channel of each sample.
        by_area: multiply by the cell's area in finest cells: what a merge loses in total, so that
            one threshold serves cells of all sizes.
    """

    monotone = False

    @checked
    def __init__(self, *, value_range: Pair | None = (0.0, 255.0), by_area: bool = False):
        self.intensity, self.by_area = Intensity("channels", value_range), by_area

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Computes the mean squared error of each node."""
        maps = self.intensity.measured(field).flatten(0, 1)  # (b * t, c, *space)
        scores = [maps.new_zeros(field.shape[0], 0)]
        for level, size in enumerate(tree.sizes[:-1]):
            factors = tuple(s // f for s, f in zip(size, tree.sizes[-1], strict=True))
            error = (down_up(maps, factors) - maps).square()
            error = error.unflatten(0, field.shape[:2]).mean((1, 2))  # (b, *space)
            sums = tree.per_level(sum_pyramid(error[:, None], tree)[:, 0])[level]
            points = tree.per_level(points_of_nodes(tree, field.device))[level]
            scores.append(sums / points.clamp_min(1))
        out = torch.cat(scores, 1)
        return out * areas_of_nodes(tree, out.device) if self.by_area else out


def down_up(x: Float[Tensor, "b c *s"], factors: tuple[int, ...]) -> Float[Tensor, "b c *s"]:
    """Resamples linearly by 1/f and back by f, without antialiasing."""
    space, mode = x.shape[2:], MODES[len(factors)]
    x = pad_end(x, factors, "replicate")
    whole = x.shape[2:]
    small = [n // f for n, f in zip(whole, factors, strict=True)]
    x = interpolate(x, size=small, mode=mode, align_corners=False)
    x = interpolate(x, size=list(whole), mode=mode, align_corners=False)
    return x[(..., *map(slice, space))]
