"""Transformer parts on packed tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.attention import attend
from adaptok.cells import Groups
from adaptok.positions import Rotary


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, ratio: float = 4.0):
        super().__init__()
        self.up = nn.Linear(dim, int(dim * ratio))
        self.down = nn.Linear(int(dim * ratio), dim)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Acts on each row."""
        return self.down(nn.functional.gelu(self.up(x)))


class Attention(nn.Module):
    """Multi-head attention inside groups; self-attention, or cross-attention where a context is
    given.

    Args:
        dim: width, divisible by `heads`.
        heads: number of heads.
        qk_norm: layer norm on the queries and keys of each head.
    """

    def __init__(self, dim: int, heads: int, qk_norm: bool = False):
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"dim {dim} is not divisible by {heads} heads")
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.norm_q = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.norm_k = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        groups: Groups,
        rotate: Rotary | None = None,
        *,
        context: Float[Tensor, "m d"] | None = None,
        context_groups: Groups | None = None,
        context_rotate: Rotary | None = None,
    ) -> Float[Tensor, "n d"]:
        """Rows of x attend to the rows of their group in x, or in the context."""
        source = x if context is None else context
        source_rotate = rotate if context is None else context_rotate
        q = self.norm_q(self.q(x).unflatten(-1, (self.heads, -1)))
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).unbind(1)
        k = self.norm_k(k)
        q = q if rotate is None else rotate(q)
        k = k if source_rotate is None else source_rotate(k)
        q, k = q.to(v.dtype), k.to(v.dtype)  # under CUDA autocast a layer norm returns float32
        return self.out(attend(q, k, v, groups, context_groups).flatten(1))


class DropPath(nn.Module):
    """Drops a residual branch per sample while training (stochastic depth)."""

    def __init__(self, rate: float):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"the drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(
        self, x: Float[Tensor, "n d"], sample: Int64[Tensor, " n"], samples: int
    ) -> Float[Tensor, "n d"]:
        """Scales the rows of each sample by 0 or by ``1 / (1 - rate)``."""
        if self.rate == 0 or not self.training:
            return x
        keep = torch.rand(samples, device=x.device) >= self.rate
        return x * (keep.to(x.dtype) / (1 - self.rate))[sample, None]


class Block(nn.Module):
    """Pre-norm transformer block on packed tokens."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        qk_norm: bool = False,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, qk_norm)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        groups: Groups,
        rotate: Rotary,
        sample: Int64[Tensor, " n"],
        samples: int,
    ) -> Float[Tensor, "n d"]:
        """Attention inside the groups, then the MLP, each added to the rows."""
        attended = self.attention(self.norm_attention(x), groups, rotate)
        x = x + self.drop_path(attended, sample, samples)
        return x + self.drop_path(self.mlp(self.norm_mlp(x)), sample, samples)
