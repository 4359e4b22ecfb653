"""Embeddings: from the patches of mixed-size cells to features."""

from adaptok.embeddings.conv_stem import ConvStem
from adaptok.embeddings.linear import LinearEmbedding, restore_rows

__all__ = ["ConvStem", "LinearEmbedding", "restore_rows"]
