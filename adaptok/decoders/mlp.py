"""Heads per level paint a narrow canvas, which a pointwise network maps to the field (MeshTok)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import product
from adaptok.decoders.linear import LinearDecoder
from adaptok.layers.mixed import gives_lists
from adaptok.registry import DECODERS
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.utils.arguments import Positive, checked


@DECODERS.register("mlp")
class MlpDecoder(nn.Module):
    """Each token paints its own cell, `width` channels per point, through the linear head of its
    level; two pointwise layers behind GELUs make the field of what is painted (MeshTok).

    Overlaps add up before the pointwise layers, which act where nothing is painted, too.

    Args:
        spec: specification of the tokenizer.
        out_channels: channels of the decoded field.
        width: channels per point between the heads and the last layer.

    Raises:
        ValueError: the tokens carry a layout, so boxes do not say where they lie.
    """

    @checked
    def __init__(self, spec: TokenizerSpec, out_channels: Positive, *, width: Positive = 32):
        super().__init__()
        self.spec = spec
        self.paint = LinearDecoder(spec, width)
        self.paint.levels = nn.ModuleList(
            nn.Linear(spec.dim, width * product(size), bias=False) for size in spec.sizes
        )
        layers: list[Any] = [nn.GELU(), nn.Linear(width, width), nn.GELU()]
        self.points = nn.Sequential(*layers, nn.Linear(width, out_channels))

    @gives_lists
    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Decodes a field of the shape that the cells were made for."""
        return self.points(self.paint(tokens).movedim(2, -1)).movedim(-1, 2)
