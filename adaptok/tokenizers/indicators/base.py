"""What an indicator is, and what several of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from adaptok.tree import Tree
from adaptok.utils.boundary import PERIODIC


class Indicator(Protocol):
    """Scores of all inner nodes from a field.

    `monotone` states that no child ever outscores its parent, which allows faster marking.
    """

    monotone: bool

    def __call__(
        self,
        field: Float[Tensor, "b t c *s"],
        tree: Tree,
        *,
        boundary: Int[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "b inner"]:
        """One score per sample and inner node, over all frames given."""
        ...


def periodic_axes(boundary: Tensor | None, ndim: int, like: Tensor) -> list[Tensor | None]:
    """Per axis a bool tensor that broadcasts against `like` (no host read of the codes)."""
    if boundary is None:
        return [None] * ndim
    batch = like.shape[0]
    samples = boundary.shape[0] if boundary.ndim == 3 else 1
    if boundary.shape[-2:] != (ndim, 2) or boundary.ndim > 3 or samples not in (1, batch):
        raise ValueError(
            f"boundary codes are ({ndim}, 2) or (b, {ndim}, 2), got shape {tuple(boundary.shape)} "
            f"for b = {batch}"
        )
    periodic = (boundary.to(like.device) == PERIODIC).all(-1)
    periodic = periodic.expand(batch, ndim)
    return [periodic[:, axis].view(-1, *[1] * (like.ndim - 1)) for axis in range(ndim)]


def points_of_nodes(tree: Tree, device: torch.device) -> Int64[Tensor, " inner"]:
    """Grid points inside the domain of every inner node, 0 for nodes outside."""
    nodes = tree.nodes(device)
    points = nodes.size.long().clamp_min(0).prod(1)
    by_number = torch.empty_like(points).scatter_(0, nodes.order, points)
    return by_number[: tree.inner]


def channel_weights(
    weights: Sequence[float] | None, ignore: Sequence[int], channels: int, like: Tensor
) -> Float[Tensor, " c"]:
    """Weight of each channel, 0 for the ignored ones.

    Raises:
        ValueError: another number of weights, an ignored channel that does not exist, or no channel
            left.
    """
    values = list(weights or [1.0] * channels)
    if len(values) != channels:
        raise ValueError(f"{len(values)} channel weights for a field of {channels} channels")
    for channel in ignore:
        if not -channels <= channel < channels:
            raise ValueError(f"ignored channel {channel}: the field has {channels} channels")
        values[channel] = 0.0
    if sum(values) == 0:
        raise ValueError("every channel is ignored or has weight 0")
    return like.new_tensor(values)
