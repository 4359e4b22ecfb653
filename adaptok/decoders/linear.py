"""A linear head per level paints each cell."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import product
from adaptok.layers.mixed import gives_lists
from adaptok.patches import (
    check_levels,
    paint_boxes,
    rows_of_levels,
    scatter_to_grid,
    unpatchify,
)
from adaptok.registry import DECODERS
from adaptok.tokens import TokenizerSpec, TokenSet, check_sizes
from adaptok.utils.arguments import Positive, checked


@DECODERS.register("linear")
class LinearDecoder(nn.Module):
    """Each token paints its own cell through the linear head of its level; overlaps add up.

    On uniform cells this is the head of a plain ViT. Cells may lie off the grids of their levels.

    Args:
        spec: specification of the tokenizer.
        out_channels: channels of the decoded field.

    Raises:
        ValueError: the tokens carry a layout, so boxes do not say where they lie.
    """

    @checked
    def __init__(self, spec: TokenizerSpec, out_channels: Positive):
        super().__init__()
        self.spec = spec
        check_sizes(spec, "decoder 'linear'")
        if spec.layout is not None:
            raise ValueError(
                f"decoder 'linear' paints cells on the grid of their level, but this tokenizer's "
                f"tokens overlap by a {spec.layout.__name__}; use the decoder paired with it"
            )
        self.out_channels, self.sizes = out_channels, spec.sizes
        self.levels = nn.ModuleList(
            nn.Linear(spec.dim, out_channels * product(size)) for size in spec.sizes
        )

    @gives_lists
    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Decodes a field of the shape that the cells were made for."""
        cells, field = tokens.cells, None
        check_levels(cells, self.sizes)
        rows = rows_of_levels(cells)
        for level, (head, own) in enumerate(zip(self.levels, rows, strict=True)):
            patches = head(tokens.features[own.clamp(max=cells.count - 1)])  # (m, c * volume)
            if cells.on_grid:
                canvas = scatter_to_grid(patches, cells, level, own).flatten(1, -2)
                painted = unpatchify(canvas, cells.shape, cells.sizes[level])
            else:
                painted = paint_boxes(patches, cells, level, own)
            field = painted if field is None else field + painted
        assert field is not None
        return field
