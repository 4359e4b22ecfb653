"""Every token gives a small patch, which is resized into its cell."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.layers.mixed import gives_lists
from adaptok.patches import point_owners
from adaptok.registry import DECODERS, choice
from adaptok.tokenizers.embeddings.boxes import parts_of_box
from adaptok.tokens import TokenizerSpec, TokenSet
from adaptok.utils.arguments import PerAxis, Positive, checked

RESIZES = ("linear", "nearest")


@DECODERS.register("paste")
class PasteDecoder(nn.Module):
    """Each token gives a patch of the same size, pasted into its cell, resized (APF's SAP).

    One linear map serves cells of all sizes. Where cells overlap the smallest one shows (of cells
    in one regular grid that with the nearest centre), and holes are 0.

    Args:
        spec: of the tokenizer.
        out_channels: channels of the decoded field.
        points: values of each patch, one number or one per space axis.
        frames: values of each patch along time; None: one per frame of a cell.
        resize: "linear" between the centres of the values, or "nearest".

    Raises:
        ValueError: cells of any size, as those of `dart`.
    """

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        out_channels: Positive,
        *,
        points: PerAxis = 4,
        frames: Positive | None = None,
        resize: str = "linear",
    ):
        super().__init__()
        if getattr(spec.layout, "any_size", False):
            raise ValueError(
                "decoder 'paste' looks up the cell over each point on the grids of the levels, and "
                "these cells have any size: use decoder 'boxes'"
            )
        self.spec, self.resize = spec, choice("resize", resize, RESIZES)
        frames = spec.sizes[-1][0] if frames is None else frames
        self.points = parts_of_box(points, frames, spec.ndim)
        self.out_channels = out_channels
        self.head = nn.Linear(spec.dim, out_channels * product(self.points))

    @gives_lists
    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Field of the shape that the cells were made for."""
        patches = self.head(tokens.features).unflatten(1, (-1, self.out_channels))
        values = patches.flatten(0, 1)  # (n * product(points), c)
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        owner = point_owners(tokens.cells)
        row = owner.clamp(min=0)
        axes = [self._neighbours(tokens.cells, row, axis) for axis in range(len(self.points))]
        field: Tensor | None = None
        for chosen in itertools.product(*axes):
            index, weight = row, (owner >= 0).to(wide.dtype)
            for (place, share), count in zip(chosen, self.points, strict=True):
                index = index * count + place
                weight = weight * share
            part = F.embedding(index, wide) * weight[..., None]
            field = part if field is None else field + part
        assert field is not None
        return field.movedim(-1, 2).to(values.dtype)

    def _neighbours(
        self, cells: Cells, row: Int64[Tensor, "b t *s"], axis: int
    ) -> list[tuple[Int64[Tensor, "b t *s"], Tensor | float]]:
        """Values of a patch that each grid point is made of along one axis, and their shares."""
        count, n = self.points[axis], cells.shape[axis]
        if count == 1:
            return [(torch.zeros_like(row), 1.0)]
        point = torch.arange(n, device=row.device).view(-1, *[1] * (len(cells.shape) - axis - 1))
        inside = point + 0.5 - cells.origin[:, axis][row]  # from the start of the cell
        place = inside * (count / cells.size[:, axis])[row]
        if self.resize == "nearest":
            return [(place.floor().long().clamp(0, count - 1), 1.0)]
        place = (place - 0.5).clamp(0, count - 1)
        low = place.floor().clamp(max=count - 2)
        share = place - low
        return [(low.long(), 1 - share), (low.long() + 1, share)]
