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


class InstanceNorm(nn.Module):
    """Mean and variance of each channel over the rows of a segment, in float32 at least.

    MATEY's norm between its tokens. The variance is the biased one; a segment of one row gives
    the bias alone.
    """

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Float[Tensor, "n d"], segments: Segments) -> Float[Tensor, "n d"]:
        """Normalises each channel over each segment."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide - segments.mean(wide)
        scale = (segments.mean(wide.square()) + self.eps).rsqrt()
        return (wide * scale * self.weight + self.bias).to(x.dtype)


NORMS: dict[str, type[nn.Module]] = {"layer": LayerNorm, "rms": RMSNorm, "instance": InstanceNorm}


def create_norm(name: str, dim: int) -> nn.Module:
    """A norm that is called as ``norm(x, segments)``.

    Raises:
        ValueError: an unknown name, with the close matches.
    """
    if name not in NORMS:
        raise ValueError(
            f"norm must be one of {', '.join(NORMS)}, got {name!r}{close_matches(name, NORMS)}"
        )
    return NORMS[name](dim)
