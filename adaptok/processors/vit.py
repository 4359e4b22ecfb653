"""The plain vision transformer on packed tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from adaptok.cells import Cells, Groups
from adaptok.layers.blocks import Block, conditioned
from adaptok.layers.norms import Segments, create_norm
from adaptok.registry import POSITIONS, PROCESSORS, Part, close_matches
from adaptok.tokens import TokenizerSpec, TokenSet

ATTENTION = ("global", "local")


@PROCESSORS.register("vit")
class ViT(nn.Module):
    """Pre-norm self-attention over all tokens of a sample, rotary positions at the cell centres.

    The encoder of IAP (App. E, Tables 4 and 5) with ``mlp_ratio=2``; MATEY's ViT (Sec. 3) with
    ``positions="fourier"``.

    Args:
        spec: of the tokenizer.
        depth: number of blocks.
        heads: attention heads, a divisor of ``spec.dim``.
        mlp_ratio: hidden width of the MLP over dim.
        qk_norm: layer norm on queries and keys.
        drop_path: stochastic depth rate of the last block, growing linearly from 0; per sample.
        attention: "global": over all tokens of a sample. "local": each coarsest cell is a sequence
            of its own, over all frames; tokens of different coarsest cells never meet.
        positions: "rotary", "fourier" or "none", or a mapping of name and knobs.
        rope_base: base of the rotary frequencies, positions in grid points.
        norm: "layer", "rms" or "instance" (over the tokens of a sample, as MATEY).
        recipe: "pre", or "matey" (its places of the norms, and none after the last block).
        layer_scale: initial factor per channel of what a branch adds (MATEY: 1e-6).
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
        attention: str = "global",
        positions: Part = "rotary",
        rope_base: float = 10000.0,
        norm: str = "layer",
        recipe: str = "pre",
        layer_scale: float | None = None,
    ):
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth must not be negative, got {depth}")
        if attention not in ATTENTION:
            near = close_matches(attention, ATTENTION)
            raise ValueError(
                f"attention must be one of {', '.join(ATTENTION)}, got {attention!r}{near}"
            )
        self.spec, self.attention, self.by_segment = spec, attention, norm == "instance"
        head_dim = spec.dim // max(heads, 1)
        self.positions = POSITIONS.build(
            positions, spec=spec, head_dim=head_dim, rope_base=rope_base
        )
        options: dict[str, Any] = {"qk_norm": qk_norm, "norm": norm, "recipe": recipe}
        options["layer_scale"] = layer_scale
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(spec.dim, heads, mlp_ratio, drop_path=rate, **options) for rate in rates
        )
        self.norm = create_norm(norm, spec.dim) if recipe == "pre" else None

    def forward(self, tokens: TokenSet) -> TokenSet:
        """Same cells, new features."""
        cells, sample = tokens.cells, tokens.cells.sample
        x, rotate = self.positions(conditioned(tokens), cells, self.spec.position_center(cells))
        groups = self._groups(cells)
        segments = Segments.of(cells.groups(), len(cells)) if self.by_segment else None
        for block in self.blocks:
            x = block(x, groups, rotate, sample, cells.batch_size, segments)
        return tokens.replace(features=x if self.norm is None else self.norm(x, segments))

    def _groups(self, cells: Cells) -> Groups:
        if self.attention == "global":
            return cells.groups()
        return cells.groups(fixed=range(1, cells.ndim + 1)).nonempty
