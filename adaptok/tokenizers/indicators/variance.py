"""The variance indicator of MATEY."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import Boundary
from adaptok.patches import pad_end, patchify
from adaptok.registry import INDICATORS
from adaptok.tokenizers.indicators.base import Field, Scores, channel_weights, check_weights
from adaptok.tree import Tree
from adaptok.utils.arguments import Weights, checked
from adaptok.utils.magnitude import squarable


@INDICATORS.register("variance")
class VarianceIndicator:
    """Unbiased variance of each channel, jointly over all frames and points of the cell; the
    mean over channels (MATEY, "Adaptive tokenization" and Fig. 1).

    The score has the units of the field: if channels differ in scale, the largest decides,
    unless `normalise` is set or the field is normalised beforehand. Clipped cells
    count the points inside the domain; a single value has variance 0.

    A sample (with `normalise`, a channel of it) whose squares would overflow or vanish is scored as
    if scaled by the power of two that just prevents this: its own order of scores stays.

    Args:
        normalise: divide the variance of each channel by that of its whole sample.
        weights: non-negative weight per channel, default 1 each.
        ignore: channels left out; negative ones count from the end.
    """

    monotone = False  # a child may vary more than its parent

    @checked
    def __init__(
        self,
        *,
        normalise: bool = False,
        weights: Weights | None = None,
        ignore: Sequence[int] = (),
    ):
        self.normalise = normalise
        self.weights = check_weights(weights)
        self.ignore = tuple(ignore)

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Averages the variances over channels, weighted."""
        points = (1, *range(3, field.ndim))
        field = squarable(field.detach(), points if self.normalise else (*points, 2))
        variance = channel_variances(field, tree)  # (b, inner, c)
        if self.normalise:
            whole = field.var(points)[:, None]  # of a constant, nodes have none
            variance = variance / whole.clamp(min=torch.finfo(variance.dtype).tiny)
        weights = channel_weights(self.weights, self.ignore, field.shape[2])
        return (variance * variance.new_tensor(weights)).sum(-1) / sum(weights)


def channel_variances(field: Field, tree: Tree) -> Float[Tensor, "b inner c"]:
    """Unbiased variance of each channel over every inner node, fine to coarse by merging.

    Each node keeps its count, mean and sum of squared deviations; neighbours merge as in Chan,
    Golub & LeVeque (1983). All is relative to the first point of the sample, and inside a node to
    its first part, so nothing cancels where the mean is large, and a constant has variance 0
    exactly.
    """
    if tree.n_levels == 1:
        return field.new_zeros(field.shape[0], 0, field.shape[2])
    field = field.to(torch.promote_types(field.dtype, torch.float32))
    b, t, channels, *space = field.shape
    field = field - field[(slice(None), slice(1), slice(None), *[slice(1)] * len(space))]
    count, mean, square = _points(field, tree, t)
    out = [square / (count - 1).clamp(min=1)]
    for level in range(tree.n_levels - 3, -1, -1):
        ratio, grid = tree.ratios[level], tree.grids[level + 1]
        stats = torch.cat([mean, square, count.expand(b, -1, 1)], -1)  # (b, nodes, 2 c + 1)
        stats = stats.unflatten(1, grid).movedim(-1, 1).unsqueeze(1)
        stats = patchify(stats, (1, *ratio)).unflatten(2, (2 * channels + 1, -1)).movedim(-1, 2)
        mean, square, count = stats.split([channels, channels, 1], -1)
        count, mean, square = _merge(count[:1], mean, square, alike=tree.divides)
        out.append(square / (count - 1).clamp(min=1))
    return torch.cat(out[::-1], 1)


def _points(field: Tensor, tree: Tree, t: int) -> tuple[Tensor, Tensor, Tensor]:
    """Computes count (1, nodes, 1), mean and squared deviations (b, nodes, c) of the finest inner
    nodes.
    """
    size, channels = (t, *tree.sizes[-2]), field.shape[2]
    field = pad_end(field, tree.sizes[0])
    values = patchify(field, size).unflatten(2, (channels, -1)).movedim(2, -1)  # (b, nodes, k, c)
    if tree.divides:
        inside = values.new_ones(1, 1, values.shape[2], 1)
    else:
        mask = pad_end(field.new_ones(1, t, 1, *tree.shape), tree.sizes[0])
        inside = patchify(mask, size).unsqueeze(-1)  # (1, nodes, k, 1)
    count = inside.expand(1, values.shape[1], -1, 1)
    return _merge(count, values, None, alike=tree.divides)


def _merge(
    count: Tensor, mean: Tensor, square: Tensor | None, *, alike: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges parts along the axis before the last; parts outside the domain have count 0.

    If all parts count `alike`, sums are multiplied in place of parts: two passes less.
    """
    total = count.sum(2)
    first = mean[:, :, :1]  # of a node that meets the domain, the first part does too
    away = mean - first
    if alike:
        shift = away.sum(2) / away.shape[2]
        spread = away.sub_(shift.unsqueeze(2)).square().sum(2) * count[:, :, 0]
    else:
        shift = (away * count).sum(2) / total.clamp(min=1)
        spread = ((away - shift.unsqueeze(2)).square() * count).sum(2)
    return total, first.squeeze(2) + shift, spread if square is None else spread + square.sum(2)
