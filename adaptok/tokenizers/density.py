"""The density of tokens that DART learns, per cell of a coarse grid."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from adaptok.cells import product
from adaptok.layers.boundary import Boundary, pad_beyond
from adaptok.patches import level_grid, patchify
from adaptok.registry import choice
from adaptok.utils.arguments import Positive, checked
from adaptok.utils.magnitude import moments

VERSIONS = ("points", "channels")
STATISTICS = ("sample", "batch")
FLOOR = 0.1
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
Size = tuple[Annotated[int, Interval(ge=1)], ...]


class PointFeatures(nn.Module):
    """Features of each cell of a grid from its own points: one linear map and a GELU for each
    channel, standardised over its sample, averaged over channels and frames.

    Args:
        size: grid points of a cell per space axis.
        width: number of features.
    """

    def __init__(self, size: Size, width: Positive):
        super().__init__()
        self.size, self.width = size, width
        self.linear = nn.Linear(product(size), width)

    def forward(
        self, field: Float[Tensor, "b t c *s"], boundary: Boundary = None
    ) -> Float[Tensor, "b w *g"]:
        """Computes the features of each cell, beyond the border of the field continued."""
        b, t, channels, *space = field.shape
        grid = level_grid(tuple(space), self.size)
        spread = moments(field, (1, *range(3, field.ndim)))  # with a gradient: tokens follow it
        x = ((field - spread.mean) / spread.unit).to(self.linear.weight.dtype)
        whole = [n * s for n, s in zip(grid, self.size, strict=True)]
        patches = patchify(pad_beyond(x, whole, boundary), (1, *self.size))
        patches = patches.view(b, t, product(grid), channels, product(self.size))
        return gelu(self.linear(patches)).mean((1, 3)).transpose(1, 2).unflatten(2, grid)


class Density(nn.Module):
    """Positive density of tokens: features, a perceptron, standardised, through a sigmoid.

    The score of a cell is that of the perceptron ("points"), or the mean of its features weighted
    by gates that the perceptron computes from their mean over the domain ("channels"). Features on
    another grid are interpolated after the score. With the standardised score z the density is
    sigmoid(z) + 0.1 for "points", sigmoid(2 z) for "channels".

    Args:
        features: called as ``features(field, boundary)``, gives (b, width, *any grid).
        size: grid points of a cell per space axis.
        width: of the features.
        hidden: of the perceptron; None: as the features.
        version: "points" or "channels" (the authors' first and second score network).
        statistics: that standardise scores, of each "sample", or of the whole "batch" as the
            authors', with which the tokens of a sample depend on those beside it.
    """

    @checked
    def __init__(
        self,
        features: nn.Module,
        size: Size,
        width: Positive,
        *,
        hidden: Positive | None = None,
        version: Literal["points", "channels"] = "points",
        statistics: Literal["sample", "batch"] = "sample",
    ):
        super().__init__()
        self.features, self.size = features, size
        self.version = choice("version", version, VERSIONS)
        self.statistics = choice("statistics", statistics, STATISTICS)
        hidden = width if hidden is None else hidden
        out = 1 if version == "points" else width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(
        self, field: Float[Tensor, "b t c *s"], boundary: Boundary = None
    ) -> Float[Tensor, "b *g"]:
        """Computes the density of each cell of the grid of `size`."""
        x = self.features(field, boundary).movedim(1, -1)  # (b, *any, w)
        space = tuple(range(1, x.ndim - 1))
        if self.version == "points":
            score = self.mlp(x)[..., 0]
        else:
            score = (x * self.mlp(x.mean(space, keepdim=True)).sigmoid()).mean(-1)
        score = score.to(torch.promote_types(score.dtype, torch.float32))
        grid = level_grid(tuple(field.shape[3:]), self.size)
        if tuple(score.shape[1:]) != grid:
            score = nn.functional.interpolate(score[:, None], grid, mode=MODES[len(grid)])[:, 0]
        axes = space if self.statistics == "sample" else (0, *space)
        count = product(score.shape[axis] for axis in axes)
        centred = score - score.mean(axes, keepdim=True)
        variance = centred.square().sum(axes, keepdim=True) / max(count - 1, 1)
        z = centred / variance.clamp(min=1e-12).sqrt()  # a constant score has no gradient
        return torch.sigmoid(z) + FLOOR if self.version == "points" else torch.sigmoid(2 * z)
