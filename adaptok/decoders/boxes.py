"""One linear head for boxes of any size, painted over their grid points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import product
from adaptok.layers.boxes import coverage, paint
from adaptok.layers.mixed import gives_lists
from adaptok.registry import DECODERS
from adaptok.tokenizers.embeddings.boxes import log_extent, parts_of_box
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.utils.arguments import PerAxis, Positive, checked


@DECODERS.register("boxes")
class BoxDecoder(nn.Module):
    """Each token gives the values of the equal parts of its box, and paints them there.

    Boxes may have any place and size. Where they overlap, a grid point is the mean of theirs
    weighted by 1 / volume, so that small boxes decide the detail; in holes it is 0.

    Args:
        spec: of the tokenizer.
        out_channels: channels of the decoded field.
        points: parts of each box, one number or one per space axis.
        frames: parts of each box along time.
    """

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        out_channels: Positive,
        *,
        points: PerAxis = 4,
        frames: Positive = 1,
    ):
        super().__init__()
        self.spec = spec
        self.points = parts_of_box(points, frames, spec.ndim)
        self.out_channels = out_channels
        self.head = nn.Linear(spec.dim + spec.ndim + 1, out_channels * product(self.points))

    @gives_lists
    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Field of the shape that the cells were made for."""
        cells, x = tokens.cells, tokens.features
        values = self.head(torch.cat([x, log_extent(cells, x.dtype)], 1))
        values = values.unflatten(1, (self.out_channels, *self.points))
        box = (cells.sample, cells.origin, cells.size, cells.batch_size, cells.shape)
        weight = (1 / cells.volume.to(torch.float64)).view(-1, *[1] * (values.ndim - 1))
        painted = paint(values * weight, *box)
        total = paint(weight.expand(-1, 1, *self.points), *box)
        covered = (coverage(*box) > 0).unsqueeze(2)
        return torch.where(covered, painted / total.where(covered, 1), 0).to(x.dtype)
