"""Embeddings: maps from the patches of mixed-size cells to features."""

from adaptok.tokenizers.embeddings.boxes import BoxEmbedding
from adaptok.tokenizers.embeddings.conv_stem import ConvStem
from adaptok.tokenizers.embeddings.halo import CellHalo, with_halo
from adaptok.tokenizers.embeddings.hmlp import HmlpEmbedding
from adaptok.tokenizers.embeddings.learned_table import (
    LearnedPositions,
    PositionedEmbedding,
    resample_positions,
)
from adaptok.tokenizers.embeddings.linear import LinearEmbedding, restore_rows
from adaptok.tokenizers.embeddings.merge_tokens import MergeTokensEmbedding
from adaptok.tokenizers.embeddings.mlp import MlpEmbedding
from adaptok.tokenizers.embeddings.resize_zero import ResizeZeroEmbedding

__all__ = [
    "BoxEmbedding",
    "CellHalo",
    "ConvStem",
    "HmlpEmbedding",
    "LearnedPositions",
    "LinearEmbedding",
    "MergeTokensEmbedding",
    "MlpEmbedding",
    "PositionedEmbedding",
    "ResizeZeroEmbedding",
    "resample_positions",
    "restore_rows",
    "with_halo",
]
