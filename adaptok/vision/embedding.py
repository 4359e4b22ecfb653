"""A model's own patch embedding and position table, for cells."""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.tokenizers.embeddings import ResizeZeroEmbedding
from adaptok.tokenizers.embeddings.learned_table import position_rows, resample_positions
from adaptok.tokens import TokenizerSpec
from adaptok.utils.derived import Derived
from adaptok.utils.hooks import is_plain

SIZES = 16  # image sizes whose tables are kept


class CellPatchEmbed(PatchEmbed):
    """timm's ``PatchEmbed``, on rows of flattened patches too; called once for the cells of a
    batch, and once more for all patches if the branch runs."""

    def forward(self, x: Tensor) -> Tensor:
        """Embeds images (b, c, h, w) as timm does, or patches (m, c * height * width)."""
        if x.ndim == 4:
            return super().forward(x)
        proj: Any = self.proj
        if is_plain(proj, nn.Conv2d):  # it sees each patch once: a linear map
            return self.norm(F.linear(x, proj.weight.flatten(1), proj.bias))
        height, width = int(self.patch_size[0]), int(self.patch_size[1])
        return self.norm(proj(x.unflatten(1, (-1, height, width))).flatten(1))


def convolution_of(embed: Any) -> Any:
    """Returns the convolution of a patch embedding, perhaps inside a module around it; or None."""
    return next((m for m in embed.proj.modules() if isinstance(m, nn.Conv2d)), None)


def cell_embedding(
    embed: nn.Module, spec: TokenizerSpec, resize: str, branch: bool
) -> ResizeZeroEmbedding:
    """Builds APT's embedding (Eq. 2) around a trained patch embedding; only the branch is new."""
    out = ResizeZeroEmbedding(spec.in_channels, spec.dim, spec.sizes, resize=resize, branch=branch)
    del out.patch
    embed.__class__ = CellPatchEmbed
    # not a module: the parameters belong to the model and keep their names there
    out.patch = functools.partial(_called, embed)  # pyright: ignore[reportAttributeAccessIssue]
    return out


def _called(module: nn.Module, x: Tensor) -> Tensor:
    return module(x)


class CellPositions:
    """Resamples learned positions of cells from a model's table (APT, Sec. 3.2).

    Uses bicubic interpolation with antialiasing, as timm does between image sizes and APT between
    levels. Keeps the tables of the last few image sizes, see
    `adaptok.utils.derived.Derived`.
    """

    def __init__(self):
        self.kept = Derived(SIZES)

    def __call__(
        self, table: Float[Tensor, "1 g d"], grid: tuple[int, int], cells: Cells, training: bool
    ) -> Float[Tensor, "n d"]:
        """Returns the position of each cell.

        Args:
            table: of patches only, without rows for special tokens.
            grid: patches per axis of the table.
        """
        rows = table[0].unflatten(0, grid)
        make = functools.partial(resample_positions, rows, cells.shape[1:], cells.sizes)
        tables = self.kept(table, (cells.shape[1:], cells.sizes, grid), make, training)
        return tables.index_select(0, position_rows(cells))
