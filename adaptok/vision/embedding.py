"""A model's own patch embedding and position table, for cells."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.tokenizers.embeddings import ResizeZeroEmbedding
from adaptok.tokenizers.embeddings.learned_table import position_rows, resample_positions
from adaptok.tokens import TokenizerSpec


class PatchProjection:
    """timm's ``PatchEmbed`` on flattened patches.

    No module: the parameters belong to the model and stay under its names.
    """

    def __init__(self, embed: Any):
        self.embed = embed

    def __call__(self, patches: Float[Tensor, "m k"]) -> Float[Tensor, "m d"]:
        """Features of patches; the convolution sees each once, so it is a linear map."""
        proj = self.embed.proj
        return self.embed.norm(F.linear(patches, proj.weight.flatten(1), proj.bias))


def cell_embedding(
    embed: nn.Module, spec: TokenizerSpec, resize: str, branch: bool
) -> ResizeZeroEmbedding:
    """APT's embedding (Eq. 2) around a trained patch embedding; only the branch is new."""
    out = ResizeZeroEmbedding(spec.in_channels, spec.dim, spec.sizes, resize=resize, branch=branch)
    del out.patch
    out.patch = PatchProjection(embed)  # pyright: ignore[reportAttributeAccessIssue]
    return out


class CellPositions:
    """Learned positions of cells, resampled from a model's table (APT, Sec. 3.2).

    Bicubic with antialiasing, as timm resamples between image sizes and APT between levels. The
    tables are kept between calls while there is nothing to differentiate.
    """

    def __init__(self):
        self._kept: tuple[tuple, Tensor] | None = None

    def __call__(
        self, table: Float[Tensor, "1 g d"], grid: tuple[int, int], cells: Cells, training: bool
    ) -> Float[Tensor, "n d"]:
        """Position of each cell.

        Args:
            table: of patches only, without rows for special tokens.
            grid: patches per axis that the table is for.
        """
        return self._tables(table, grid, cells, training).index_select(0, position_rows(cells))

    def _tables(self, table: Tensor, grid: tuple[int, int], cells: Cells, training: bool) -> Tensor:
        fixed = not (training or (torch.is_grad_enabled() and table.requires_grad))
        if torch.compiler.is_compiling() or table.is_inference():
            return self._make(table, grid, cells)
        if not fixed:
            self._kept = None  # some optimisers write where `_version` does not count it
            return self._make(table, grid, cells)
        where = table.data_ptr(), table.dtype, table._version, table.shape
        key = (cells.shape[1:], cells.sizes, grid, *where)
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # may serve autograd later
                self._kept = key, self._make(table, grid, cells)
        return self._kept[1]

    @staticmethod
    def _make(table: Tensor, grid: tuple[int, int], cells: Cells) -> Tensor:
        with torch.autocast(table.device.type, enabled=False):
            return resample_positions(table[0].unflatten(0, grid), cells.shape[1:], cells.sizes)
