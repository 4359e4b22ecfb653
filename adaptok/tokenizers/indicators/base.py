"""The protocol of indicators, and what several of them share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from adaptok.cells import product
from adaptok.layers.boundary import Boundary
from adaptok.registry import choice
from adaptok.tree import Tree
from adaptok.utils.magnitude import squarable, wide

LUMA = (0.2989, 0.5870, 0.1140)  # the sum of 0.9999 is the reference's
COLORS = ("gray", "channels")
# What every indicator takes and gives.
Field = Float[Tensor, "b t c *s"]
Scores = Float[Tensor, "b inner"]


@runtime_checkable
class Indicator(Protocol):
    """Scores all inner nodes of a tree from a field.

    An attribute ``monotone = True`` states that no child ever outscores its parent, which allows
    faster marking (without it: False). An indicator with parameters that require gradients (or
    ``learned = True``) is called with a graph, see `TreeTokenizer`. One that says
    ``sees_all = True`` gets ignored channels as well, and ``seen=``, the others by number.
    """

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Returns one score per sample and inner node, over all frames given."""
        ...


def points_of_nodes(tree: Tree, device: torch.device) -> Int64[Tensor, " inner"]:
    """Counts the grid points of every inner node that lie inside the domain."""
    return tree.nodes(device).points[: tree.inner]


def areas_of_nodes(tree: Tree, device: torch.device) -> Float[Tensor, " inner"]:
    """Measures every inner node inside the domain in finest cells."""
    return points_of_nodes(tree, device) / product(tree.sizes[-1])


def check_weights(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """Returns weights of channels as numbers; raises ``ValueError`` for one that is negative or not
    finite in single precision.
    """
    if weights is None:
        return None
    values = tuple(map(float, weights))
    if not all(0 <= value <= torch.finfo(torch.float32).max for value in values):
        raise ValueError(f"channel weights must not be negative or infinite, got {list(weights)}")
    return values


def channel_weights(
    weights: Sequence[float] | None, ignore: Sequence[int], channels: int
) -> list[float]:
    """Returns the weight of each channel, 0 for the ignored ones.

    Raises:
        ValueError: another number of weights, an ignored channel that does not exist, or no channel
            left.
    """
    values = list(weights or [1.0] * channels)
    if len(values) != channels:
        raise ValueError(
            f"{len(values)} channel weights for a field of {channels} channels (those that the "
            "tokenizer does not ignore)"
        )
    for channel in ignore:
        if not -channels <= channel < channels:
            raise ValueError(f"ignored channel {channel}: the field has {channels} channels")
        values[channel] = 0.0
    if not any(values):
        raise ValueError("every channel is ignored or has weight 0")
    return [float(value) for value in values]


class Intensity:
    """The maps of a field that an image indicator scores, and the range of their values.

    Args:
        color: "gray" (0.2989 R + 0.5870 G + 0.1140 B; one channel is gray already), "channels"
            (each channel alone), or None: gray of 1 or 3 channels, else each channel.
        value_range: lowest and highest value, or None for the range of each map of each sample.
    """

    def __init__(self, color: str | None, value_range: Sequence[float] | None):
        self.color = choice("color", color, (*COLORS, None))
        if value_range is not None and (
            len(value_range) != 2 or not -math.inf < value_range[0] < value_range[1] < math.inf
        ):
            raise ValueError(
                f"value_range is (lowest, highest) or None, both finite, got {value_range!r}"
            )
        self.value_range = None if value_range is None else (*map(float, value_range),)

    def maps(self, field: Field) -> Float[Tensor, "b t m *s"]:
        """Returns one map (gray) or one per channel, at least float32.

        Raises:
            ValueError: gray of a number of channels other than 1 or 3.
        """
        x = wide(field.detach())
        channels = x.shape[2]
        if self.color == "channels" or channels == 1 or (self.color is None and channels != 3):
            return x
        if channels != 3:
            raise ValueError(
                f"color 'gray' needs 1 or 3 channels, the field has {channels}; "
                "use color='channels'"
            )
        gray = x[:, :, 0] * LUMA[0]  # left to right in this order: bins depend on the last bit
        gray += x[:, :, 1] * LUMA[1]
        gray += x[:, :, 2] * LUMA[2]
        return gray.unsqueeze(2)

    def measured(self, field: Field) -> Float[Tensor, "b t m *s"]:
        """Returns the maps in units of their range, from its lowest value; squares neither overflow
        nor vanish.
        """
        maps = self.maps(field)
        if self.value_range is not None:  # else their range does the same for each map
            maps = squarable(maps, tuple(range(1, maps.ndim)))
        maps, low, width = self.limits(maps)
        return (maps - low) / width

    def limits(
        self, maps: Float[Tensor, "b t m *s"]
    ) -> tuple[Float[Tensor, "b t m *s"], float | Tensor, float | Tensor]:
        """Returns the maps, the lowest value and the width of their range, which is never 0, both
        broadcastable. Without a given range, maps of extreme magnitude come scaled by a power of
        two.
        """
        if self.value_range is not None:
            low, high = self.value_range
            return maps, low, high - low
        axes = (1, *range(3, maps.ndim))  # the frames of a sample share their range
        maps = squarable(maps, axes)
        low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
        return maps, low, (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
