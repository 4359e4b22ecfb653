"""Embeddings: from the patches of mixed-size cells to features."""

from adaptok.embeddings.linear import LinearEmbedding, restore_rows

__all__ = ["LinearEmbedding", "restore_rows"]
