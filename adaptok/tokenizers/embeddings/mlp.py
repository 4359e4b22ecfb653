"""Embedding by two linear maps per level (MeshTok)."""

from __future__ import annotations

from torch import nn

from adaptok.cells import product
from adaptok.registry import EMBEDDINGS
from adaptok.tokenizers.embeddings.linear import LinearEmbedding
from adaptok.utils.arguments import LevelSizes, Positive, checked


@EMBEDDINGS.register("mlp")
class MlpEmbedding(LinearEmbedding):
    """Two linear maps per level of the cell's values with a GELU between them, without biases
    (MeshTok: a convolution whose stride is its kernel, then a pointwise one).

    Args:
        in_channels: channels of the field.
        dim: width of the features, and between the maps.
        sizes: cell size of each level, time first.
    """

    @checked
    def __init__(self, in_channels: Positive, dim: Positive, sizes: LevelSizes):
        super().__init__(in_channels, dim, sizes)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Linear(in_channels * product(size), dim, bias=False),
                nn.GELU(),
                nn.Linear(dim, dim, bias=False),
            )
            for size in sizes
        )
