"""Processors: tokens to tokens of the same cells."""

from adaptok.processors.spacetime_parallel import ParallelSpaceTime
from adaptok.processors.vit import ViT

__all__ = ["ParallelSpaceTime", "ViT"]
