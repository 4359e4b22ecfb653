"""A decoder of cells that differ in time alone: what a token paints is copied along its run."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.layers.mixed import gives_lists
from adaptok.patches import check_levels, grid_index, level_grid, unpatchify
from adaptok.registry import DECODERS
from adaptok.tokens import TokenizerSpec, TokenSet, check_sizes
from adaptok.utils.arguments import Positive, checked
from adaptok.utils.reading import reads_are_free


@DECODERS.register("runs")
class RunDecoder(nn.Module):
    """Each token paints one tubelet, the finest cell, and copies it along its run in time.

    On cells of one size it is `linear`; points that no cell covers are 0, and of equal cells one
    paints.

    Args:
        spec: of a tokenizer whose cells have one size in space, such as that of `rlt`.
        out_channels: channels of the decoded field.

    Raises:
        ValueError: cells of several sizes in space, or a layout of cells that overlap.
    """

    @checked
    def __init__(self, spec: TokenizerSpec, out_channels: Positive):
        super().__init__()
        check_sizes(spec, "decoder 'runs'")
        if spec.layout is not None or len({size[1:] for size in spec.sizes}) > 1:
            raise ValueError(
                "decoder 'runs' copies what a token paints along its run in time, and needs cells "
                f"of one size in space that do not overlap, as those of 'rlt'; got {spec.sizes}"
            )
        self.spec, self.sizes, self.out_channels = spec, spec.sizes, out_channels
        self.head = nn.Linear(spec.dim, out_channels * product(spec.sizes[-1]))

    @gives_lists
    def forward(self, tokens: TokenSet) -> Float[Tensor, "b t c *s"]:
        """Decodes a field of the shape that the cells were made for.

        Raises:
            ValueError: cells that are not made of whole tubelets (on the CPU, eagerly).
        """
        cells = tokens.cells
        check_levels(cells, self.sizes)
        owner = run_owners(cells)
        patches = self.head(tokens.features)[owner.clamp(min=0)] * (owner >= 0)[..., None]
        return unpatchify(patches.flatten(1, 2), cells.shape, self.sizes[-1])


def run_owners(cells: Cells) -> Int64[Tensor, "b f g"]:
    """Row of the run over each tubelet, by frame and raster of space, -1 for none.

    Raises:
        ValueError: cells that are not made of whole tubelets (on the CPU, eagerly).
    """
    tubelet, n = cells.sizes[-1], cells.count
    if reads_are_free(cells.origin):
        size, end = torch.tensor(tubelet), cells.origin + cells.size
        whole = (end % size == 0) | (end >= torch.as_tensor(cells.extents))  # or clipped
        fits = whole & (cells.origin % size == 0)
        if not bool(fits.all()) or bool((cells.size[:, 1:] > size[1:]).any()):
            raise ValueError(f"these cells are not runs of tubelets of size {tubelet}")
    grid = level_grid(cells.reach, tubelet)
    first = torch.full((cells.batch_size * product(grid),), -1, device=cells.device)
    rows = torch.arange(n, device=cells.device)
    first = first.scatter(0, grid_index(cells, len(cells.sizes) - 1), rows)
    first = first.view(cells.batch_size, grid[0], -1)
    frame = torch.arange(grid[0], device=cells.device)[:, None]
    start = torch.where(first >= 0, frame, -1).cummax(1).values  # of the last run that began
    row = first.gather(1, start.clamp(min=0))
    run = -(-cells.size[:, 0] // tubelet[0])
    covered = (start >= 0) & (frame - start < run[row.clamp(min=0)])
    return torch.where(covered, row, -1)
