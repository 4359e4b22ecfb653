"""Transolver: attention among learned slices of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from adaptok.cells import Cells, Groups
from adaptok.layers.blocks import Block
from adaptok.layers.positions import RotaryPositions
from adaptok.layers.slices import SliceAttention
from adaptok.processors.transformer import Transformer
from adaptok.registry import PROCESSORS, Part
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import Depth, Positive, Rate, Ratio, Scale, Weighted, checked


@PROCESSORS.register("transolver")
class Transolver(Transformer):
    """Blocks whose tokens meet in a few learned slices, so that the cost is linear in the tokens.

    Physics-attention (Wu et al., "Transolver", ICML 2024, Sec. 3.1), see `SliceAttention`. Every
    token counts in the average of a slice by the volume of its cell, so that the averages do not
    depend on where the tiling is fine; the authors' code counts tokens (``weighted=False``).

    Args:
        spec: specification of the tokenizer.
        slices: per head and sample.
        depth: number of blocks.
        heads: attention heads, a divisor of ``spec.dim``.
        mlp_ratio: hidden width of the MLP over dim (authors' code: 1).
        drop_path: stochastic depth rate of the last block, growing linearly from 0; per sample.
        positions: "fourier" or "none", or a mapping of name and knobs; slices have no place, so
            that nothing can be rotated by it.
        norm: "layer", "rms" or "instance" (over the tokens of a sample).
        layer_scale: initial factor per channel on the output of a branch.
        weighted: let a token count for what it stands for, its area in finest cells (or
            ``payload["weight"]``); a number is a power of it.

    Raises:
        ValueError: rotary positions, or what `Transformer` refuses.
    """

    stacks: ClassVar = {"blocks": Block}
    reducible: ClassVar = False
    blocks: nn.ModuleList

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        slices: Positive = 64,
        depth: Depth = 8,
        heads: Positive = 6,
        mlp_ratio: Ratio = 4.0,
        drop_path: Rate = 0.0,
        positions: Part = "fourier",
        norm: str = "layer",
        layer_scale: Scale | None = None,
        weighted: Weighted = True,
    ):
        shared = {"positions": positions, "norm": norm, "layer_scale": layer_scale}
        shared |= {"mlp_ratio": mlp_ratio, "drop_path": drop_path, "weighted": weighted}
        super().__init__(spec, depth=depth, heads=heads, **shared)
        if isinstance(self.positions, RotaryPositions):
            raise ValueError(
                "rotary positions turn queries and keys of tokens, and the slices of 'transolver' "
                'have no place: use positions="fourier" or "none"'
            )
        for block in self.blocks:
            block.attention = SliceAttention(spec.dim, heads, slices)

    def groups(self, cells: Cells) -> tuple[Groups]:
        """The tokens of a sample."""
        return (cells.groups(),)

    def norm_groups(self, cells: Cells, groups: Sequence[Any]) -> Sequence[Groups]:
        """The tokens of a sample."""
        return groups
