"""Norms of packed rows (over channels, or over the rows of a segment) and of dense fields."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Count, Groups
from adaptok.registry import choice


class Segments(NamedTuple):
    """Segment of each row, over which statistics are taken; compute once per forward."""

    ids: Tensor  # int64 (n,)
    counts: Tensor  # float32 (segments,)

    @classmethod
    def of(cls, groups: Groups, rows: Count) -> Segments:
        """Makes each group a segment."""
        return cls(groups.ids(rows), groups.cu_seqlens.diff().float())

    def mean(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Gives each row the mean over its segment."""
        sums = x.new_zeros(self.counts.shape[0], x.shape[1]).index_add(0, self.ids, x)
        return (sums / self.counts.clamp(min=1)[:, None].to(x.dtype))[self.ids]


class LayerNorm(nn.LayerNorm):
    """Layer norm; ignores the segments."""

    def forward(
        self, x: Float[Tensor, "n d"], segments: Segments | None = None
    ) -> Float[Tensor, "n d"]:
        """Normalises each row."""
        return super().forward(x)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm; ignores the segments."""

    def forward(
        self, x: Float[Tensor, "n d"], segments: Segments | None = None
    ) -> Float[Tensor, "n d"]:
        """Scales each row."""
        return super().forward(x)


class GroupNorm(nn.Module):
    """Normalises each group of channels over the rows of a segment, in at least float32.

    On the tokens of a frame this is the group norm of a dense field (Wu & He, 2018); with one
    channel per group it is an instance norm, as MATEY has between its tokens. The variance is
    biased.
    """

    def __init__(self, groups: int, dim: int, eps: float = 1e-5):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "n d"], segments: Segments) -> Float[Tensor, "n d"]:
        """Normalises each group of channels over each segment."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (self.groups, -1))
        wide = wide - segments.mean(wide.mean(-1))[..., None]  # (n, g, d / g)
        scale = (segments.mean(wide.square().mean(-1)) + self.eps).rsqrt()
        return ((wide * scale[..., None]).flatten(1) * self.weight + self.bias).to(x.dtype)


def create_norm(name: str, dim: int, groups: int | None = None) -> nn.Module:
    """Creates a norm of packed rows, which is called as ``norm(x, segments)``.

    Args:
        name: "layer", "rms", or "group" if `groups` is given, else "instance".
        groups: number of groups of channels.

    Raises:
        ValueError: another name, with the close matches.
    """
    choice("norm", name, ("layer", "rms", "instance" if groups is None else "group"))
    if name in ("group", "instance"):
        return GroupNorm(groups or dim, dim)
    return LayerNorm(dim) if name == "layer" else RMSNorm(dim)


def channel_norm(name: str, channels: int, groups: int) -> nn.Module:
    """Creates a norm of dense ``(b, c, *space)``: "group" over space and the channels of a group,
    "layer" and "rms" over the channels of each point.

    Raises:
        ValueError: an unknown norm, or groups that do not divide the channels.
    """
    choice("norm", name, ("group", "layer", "rms"))
    if name == "group":
        if groups < 1 or channels % groups:
            raise ValueError(f"{groups} groups do not divide {channels} channels")
        return nn.GroupNorm(groups, channels)
    return PointNorm(nn.LayerNorm(channels) if name == "layer" else nn.RMSNorm(channels))


class PointNorm(nn.Module):
    """Applies a norm of the last axis to the channels of each point of ``(b, c, *space)``."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b c *s"]:
        """Normalises each point."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)
