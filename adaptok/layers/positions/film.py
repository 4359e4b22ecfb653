"""Positions that scale and shift the tokens before every block (MeshTok)."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import gelu

from adaptok.cells import Cells
from adaptok.layers.positions.rotary import Rotary
from adaptok.registry import POSITIONS
from adaptok.tokens import TokenizerSpec, check_sizes
from adaptok.utils.arguments import Depth, Positive, checked


@POSITIONS.register("film")
class FilmPositions(nn.Module):
    """Scales and shifts the tokens before each block by what a network makes of centre and level;
    a learned table of frames is added once, before the first (MeshTok).

    ``x <- gamma x + beta`` with ``[gamma, beta] = W_2 gelu(W_1 [gelu(W_c c), gelu(e)])``, where c
    is the centre as a share of the domain, last axis first, and e a learned vector of the level.
    Each block has weights of its own; gamma starts around 1, beta around 0.

    Args:
        spec: specification of the tokenizer; its dim is at least 2.
        depth: number of blocks.
        frames: longest history, in frames of tokens.

    Raises:
        ValueError: a dim of 1, or sizes that follow the domain.
    """

    @checked
    def __init__(self, spec: TokenizerSpec, depth: Depth, *, frames: Positive = 20):
        super().__init__()
        check_sizes(spec, "positions 'film'")
        if spec.dim < 2:
            raise ValueError(f"film positions need a dim of at least 2, got {spec.dim}")
        self.frames = nn.Embedding(frames, spec.dim)
        nn.init.normal_(self.frames.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Film(spec.ndim, len(spec.sizes), spec.dim) for _ in range(depth)
        )

    def forward(
        self, x: Float[Tensor, "n d"], cells: Cells, center: Float[Tensor, "n a"]
    ) -> tuple[Float[Tensor, "n d"], Rotary | None]:
        """Features plus those of their frame, and None (no rotation).

        Raises:
            ValueError: more frames than the table has.
        """
        size = cells.sizes[-1][0]  # cells of several lengths begin anywhere on the shortest
        longest = max(-(-shape[0] // size) for shape in cells.mixed or (cells.shape,))
        if longest > self.frames.num_embeddings:
            raise ValueError(
                f"film positions have {self.frames.num_embeddings} frames, the tokens {longest}: "
                f'set positions={{"name": "film", "frames": {longest}}}'
            )
        return x + self.frames(cells.origin[:, 0].long().clamp(min=0) // size), None

    def in_block(
        self, number: int, x: Float[Tensor, "n d"], cells: Cells, center: Float[Tensor, "n a"]
    ) -> Float[Tensor, "n d"]:
        """Scales and shifts the features in front of a block."""
        extents = cells.extents
        space: Any = extents[1:] if isinstance(extents, tuple) else extents[:, 1:].unbind(1)
        shares = [center[:, axis] / n for axis, n in enumerate(space, start=1)]
        share = torch.stack(shares[::-1], 1)
        return self.blocks[number](x, share.to(x.dtype), cells.level.long())


class Film(nn.Module):
    """The scale and shift of one block."""

    def __init__(self, ndim: int, levels: int, dim: int):
        super().__init__()
        self.center = nn.Linear(ndim, dim // 2)
        self.level = nn.Embedding(levels, dim - dim // 2)
        self.mix, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        with torch.no_grad():
            self.out.bias[:dim] = 1
            self.out.bias[dim:] = 0

    def forward(
        self, x: Float[Tensor, "n d"], share: Float[Tensor, "n s"], level: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """Returns ``gamma x + beta``."""
        place = torch.cat([gelu(self.center(share)), gelu(self.level(level))], 1)
        gamma, beta = self.out(gelu(self.mix(place))).chunk(2, 1)
        return gamma * x + beta
