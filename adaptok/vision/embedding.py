"""A model's own patch embedding and position table, for cells."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.tokenizers.embeddings import ResizeZeroEmbedding
from adaptok.tokenizers.embeddings.learned_table import position_rows, resample_positions
from adaptok.tokens import TokenizerSpec
from adaptok.utils.precision import without_autocast

SIZES = 16  # image sizes whose tables are kept


def _project(embed: Any, patches: Float[Tensor, "m k"]) -> Float[Tensor, "m d"]:
    """Runs timm's ``PatchEmbed`` on flattened patches: a linear map, as the convolution sees each
    patch once."""
    return embed.norm(F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias))


def cell_embedding(
    embed: nn.Module, spec: TokenizerSpec, resize: str, branch: bool
) -> ResizeZeroEmbedding:
    """Builds APT's embedding (Eq. 2) around a trained patch embedding; only the branch is new."""
    out = ResizeZeroEmbedding(spec.in_channels, spec.dim, spec.sizes, resize=resize, branch=branch)
    del out.patch
    # not a module: the parameters belong to the model and keep their names there
    out.patch = functools.partial(_project, embed)  # pyright: ignore[reportAttributeAccessIssue]
    return out


class CellPositions:
    """Resamples learned positions of cells from a model's table (APT, Sec. 3.2).

    Uses bicubic interpolation with antialiasing, as timm does between image sizes and APT between
    levels. Keeps the tables of the last few image sizes while there is nothing to differentiate.
    """

    def __init__(self):
        self._state: tuple = ()
        self._kept: dict[tuple, Tensor] = {}

    def __call__(
        self, table: Float[Tensor, "1 g d"], grid: tuple[int, int], cells: Cells, training: bool
    ) -> Float[Tensor, "n d"]:
        """Returns the position of each cell.

        Args:
            table: of patches only, without rows for special tokens.
            grid: patches per axis of the table.
        """
        return self._tables(table, grid, cells, training).index_select(0, position_rows(cells))

    def _tables(self, table: Tensor, grid: tuple[int, int], cells: Cells, training: bool) -> Tensor:
        fixed = not (training or (torch.is_grad_enabled() and table.requires_grad))
        if torch.compiler.is_compiling() or table.is_inference():
            return self._make(table, grid, cells)
        if not fixed:
            self._kept.clear()  # some optimizers write without raising `_version`
            return self._make(table, grid, cells)
        # A table at the same address may hold other values: `_version` counts writes in place.
        state = table.data_ptr(), table.dtype, table._version, table.shape
        if self._state != state:
            self._kept.clear()
        self._state, key = state, (cells.shape[1:], cells.sizes, grid)
        if key not in self._kept:
            if len(self._kept) == SIZES:
                self._kept.pop(next(iter(self._kept)))
            with torch.inference_mode(False), torch.no_grad():  # may serve autograd later
                self._kept[key] = self._make(table, grid, cells)
        return self._kept[key]

    @staticmethod
    def _make(table: Tensor, grid: tuple[int, int], cells: Cells) -> Tensor:
        with without_autocast(table):
            return resample_positions(table[0].unflatten(0, grid), cells.shape[1:], cells.sizes)
