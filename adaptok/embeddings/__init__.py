"""Embeddings: from the patches of mixed-size cells to features."""

from adaptok.embeddings.hmlp import HmlpEmbedding
from adaptok.embeddings.linear import LinearEmbedding, restore_rows
from adaptok.embeddings.positions import LearnedPositions, resample_positions
from adaptok.embeddings.resize_zero import ResizeZeroEmbedding

__all__ = [
    "HmlpEmbedding",
    "LearnedPositions",
    "LinearEmbedding",
    "ResizeZeroEmbedding",
    "resample_positions",
    "restore_rows",
]
