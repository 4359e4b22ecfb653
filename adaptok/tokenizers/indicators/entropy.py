"""Shannon entropy of the values inside a cell, the score of APT."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from adaptok.cells import product
from adaptok.layers.boundary import Boundary
from adaptok.registry import INDICATORS
from adaptok.tokenizers.indicators.base import Field, Intensity, Scores, points_of_nodes
from adaptok.tree import Tree
from adaptok.utils.arguments import Bins, Pair, checked
from adaptok.utils.constants import cached_constant
from adaptok.utils.reading import reads_are_free


@INDICATORS.register("entropy")
class EntropyIndicator:
    """Entropy in bits of the histogram of a cell's values (APT, Eq. 1); low means compressible.

    Values are counted once, in the finest cells that can split; coarser cells add up the counts of
    their children. Channels and frames are scored one by one and averaged. A cell of n points
    scores at most ``log2(min(n, bins))``: thresholds mean different things on different levels.

    Args:
        color: "gray" (needs 1 or 3 channels) or "channels"; default gray if there are 1 or 3.
        bins: number of bins that divide the value range.
        value_range: lowest and highest value; what lies outside counts for the outermost bins.
            None: the range of each map of each sample.
    """

    monotone = False
    in_bits = True

    @checked
    def __init__(
        self,
        *,
        color: str | None = None,
        bins: Bins = 512,
        value_range: Pair | None = (0.0, 255.0),
    ):
        self.intensity, self.bins = Intensity(color, value_range), bins

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Mean over channels and frames of the entropy of each node's points inside the domain."""
        maps, low, width = self.intensity.limits(self.intensity.maps(field))
        # In this order, which decides the bin of values on an edge: (v - low) * bins / width.
        scaled = (
            maps * self.bins
            if isinstance(low, float) and low == 0
            else (maps - low).mul_(self.bins)
        )
        # NaN, which accelerators do not check for, must not become an index out of range.
        index = scaled.div_(width).clamp_(0, self.bins - 1).nan_to_num_().int()
        maps_of_sample = index.flatten(1, 2).unbind(1)  # each (b, *space)
        total = field.new_zeros((), dtype=torch.float32)
        for bin_of_point in maps_of_sample:  # one map at a time: counts are the largest tensor
            total = total + entropies(bin_of_point, tree, self.bins)
        return total / len(maps_of_sample)


def entropies(bin_of_point: Int[Tensor, "b *s"], tree: Tree, bins: int) -> Float[Tensor, "b inner"]:
    """Computes the entropy in bits of every inner node from the bin of each point."""
    b, device = bin_of_point.shape[0], bin_of_point.device
    if tree.n_levels == 1:
        return torch.zeros(b, 0, device=device)
    counts, scores = histograms(bin_of_point, tree, bins), []
    points = tree.per_level(points_of_nodes(tree, device)) if not tree.divides else None
    for level in reversed(range(tree.n_levels - 1)):
        if level < tree.n_levels - 2:
            for axis, ratio in enumerate(tree.ratios[level]):  # adds up the children
                counts = counts.unflatten(axis + 1, (-1, ratio)).sum(axis + 2, dtype=torch.int32)
        volume = product(tree.sizes[level])
        terms = _terms(volume, device).index_select(0, counts.flatten())
        score = terms.view(counts.shape).sum(-1).flatten(1)
        scores.append(score if points is None else _inside(score, points[level], volume))
    return torch.cat(scores[::-1], 1)


def histograms(
    bin_of_point: Int[Tensor, "b *s"], tree: Tree, bins: int
) -> Int32[Tensor, "b *g bins"]:
    """Counts the points of each bin in the finest nodes that can split.

    The memory is 4 bytes per node and bin, not per point and bin.
    """
    size, grid = tree.sizes[-2], tree.grids[-2]
    b, device = bin_of_point.shape[0], bin_of_point.device
    total = product(grid) * bins  # of a sample
    counting = reads_are_free(bin_of_point) and b * total < 2**31
    kind = torch.int32 if counting else torch.int64
    slot = bin_of_point.to(kind)
    for axis in range(len(grid)):
        slot = slot + _slots(tree.shape, size, grid, axis, bins, kind, device)
    if counting:  # as fast as a pass over the points, and twice as fast as what follows
        slot = slot + torch.arange(b, dtype=kind).mul_(total).view(-1, *[1] * len(grid))
        return torch.bincount(slot.flatten(), minlength=b * total).int().view(b, *grid, bins)
    slot = slot.flatten(1)
    ones = torch.ones((), dtype=torch.int32, device=device).expand_as(slot)
    # made of `slot`, so that counts under a transform such as vmap have its hidden axes
    counts = slot.new_zeros(b, total, dtype=torch.int32)
    return counts.scatter_add_(1, slot, ones).view(b, *grid, bins)


@cached_constant(64)
def _slots(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    grid: tuple[int, ...],
    axis: int,
    bins: int,
    kind: torch.dtype,
    device: torch.device,
) -> Tensor:
    """What each coordinate along an axis adds to the number of a point's counter."""
    stride = product(grid[axis + 1 :]) * bins
    slot = torch.arange(shape[axis], device=device) // size[axis] * stride
    return slot.to(kind).view(-1, *[1] * (len(grid) - axis - 1))


def _inside(
    score: Float[Tensor, "b k"], points: Int64[Tensor, " k"], volume: int
) -> Float[Tensor, "b k"]:
    """Corrects nodes that cross the border, whose counts were taken over the whole volume V.

    With n points inside, ``sum c/n log2(n/c) = V/n sum c/V log2(V/c) + log2(n/V)``.
    """
    part = points.clamp_min(1) / volume  # a node outside has no counts and scores 0
    return (score / part + part.log2()).clamp_min(0)


@cached_constant(64)
def _terms(volume: int, device: torch.device) -> Tensor:
    """Tabulates ``-c/V log2(c/V)`` for c = 0..V."""
    p = torch.arange(volume + 1, dtype=torch.float64) / volume
    return (-p * p.clamp_min(1 / volume).log2()).float().to(device)
