"""The plain vision transformer on packed tokens."""

from __future__ import annotations

from torch import nn

from adaptok.layers import Block
from adaptok.positions import pairs_per_axis, rotary
from adaptok.registry import PROCESSORS
from adaptok.tokens import TokenizerSpec, TokenSet


@PROCESSORS.register("vit")
class ViT(nn.Module):
    """Pre-norm self-attention over all tokens of a sample, rotary positions at the cell centres.

    The encoder of IAP (App. E, Tables 4 and 5) with ``mlp_ratio=2``.

    Args:
        spec: of the tokenizer.
        depth: number of blocks.
        heads: attention heads, a divisor of ``spec.dim``.
        mlp_ratio: hidden width of the MLP over dim.
        qk_norm: layer norm on queries and keys.
        drop_path: stochastic depth rate of the last block, growing linearly from 0; per sample.
        rope_base: base of the rotary frequencies, positions in grid points.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        depth: int = 8,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        drop_path: float = 0.0,
        rope_base: float = 10000.0,
    ):
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth}")
        self.head_dim, self.rope_base = spec.dim // max(heads, 1), rope_base
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(spec.dim, heads, mlp_ratio, qk_norm=qk_norm, drop_path=rate) for rate in rates
        )
        pairs_per_axis(spec.ndim, self.head_dim)  # raises here, not in the first forward
        self.norm = nn.LayerNorm(spec.dim)

    def forward(self, tokens: TokenSet) -> TokenSet:
        """Same cells, new features."""
        cells, x = tokens.cells, tokens.features
        groups, sample = cells.groups(), cells.sample
        rotate = rotary(cells.center, cells.shape, self.head_dim, self.rope_base)
        for block in self.blocks:
            x = block(x, groups, rotate, sample, cells.batch_size)
        return tokens.replace(features=self.norm(x))
