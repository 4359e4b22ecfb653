"""Embeddings: from the patches of mixed-size cells to features."""

from adaptok.embeddings.hmlp import HmlpEmbedding
from adaptok.embeddings.linear import LinearEmbedding, restore_rows

__all__ = ["HmlpEmbedding", "LinearEmbedding", "restore_rows"]
