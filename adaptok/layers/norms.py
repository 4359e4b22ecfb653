"""Norms of packed rows: over the channels of a row, or over the rows of a segment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Groups
from adaptok.registry import close_matches


class Segments(NamedTuple):
    """Rows whose statistics are taken together; compute once per forward."""

    ids: Tensor  # int64 (n,)
    counts: Tensor  # float32 (segments,)

    @classmethod
    def of(cls, groups: Groups, rows: int) -> Segments:
        """One segment per group."""
        return cls(groups.ids(rows), groups.cu_seqlens.diff().float())

    def mean(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Mean over its segment, for each row."""
        sums = x.new_zeros(len(self.counts), x.shape[1]).index_add(0, self.ids, x)
        return (sums / self.counts.clamp(min=1)[:, None].to(x.dtype))[self.ids]


class LayerNorm(nn.LayerNorm):
    """Layer norm; the segments do not matter."""

    def forward(
        self, x: Float[Tensor, "n d"], segments: Segments | None = None
    ) -> Float[Tensor, "n d"]:
        """Normalises each row."""
        return super().forward(x)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm; the segments do not matter."""

    def forward(
        self, x: Float[Tensor, "n d"], segments: Segments | None = None
    ) -> Float[Tensor, "n d"]:
        """Scales each row."""
        return super().forward(x)


class GroupNorm(nn.Module):
    """Mean and variance of each group of channels over the rows of a segment, in float32 at least.

    On the tokens of a frame this is the group norm of a dense field (Wu & He, 2018); with as many
    groups as channels it is an instance norm, which MATEY has between its tokens. The variance is
    the biased one.
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


NORMS = ("layer", "rms", "group", "instance")


def create_norm(name: str, dim: int, groups: int = 1) -> nn.Module:
    """A norm that is called as ``norm(x, segments)``.

    Args:
        groups: of channels, for "group".

    Raises:
        ValueError: an unknown name, with the close matches.
    """
    if name not in NORMS:
        raise ValueError(
            f"norm must be one of {', '.join(NORMS)}, got {name!r}{close_matches(name, NORMS)}"
        )
    if name in ("group", "instance"):
        return GroupNorm(dim if name == "instance" else groups, dim)
    return LayerNorm(dim) if name == "layer" else RMSNorm(dim)
