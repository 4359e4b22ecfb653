"""Processors: tokens to tokens of the same cells."""

from adaptok.processors.vit import ViT

__all__ = ["ViT"]
