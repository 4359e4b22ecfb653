"""Sparse refinement: a convolutional solver at the grid points with the highest scores."""

from adaptok.decoders.refine.blocks import Blocks, block_tree
from adaptok.decoders.refine.choice import BlockChoice
from adaptok.decoders.refine.decoder import RefineDecoder
from adaptok.decoders.refine.smoothing import Smoothing
from adaptok.decoders.refine.solver import PointSolver

__all__ = ["BlockChoice", "Blocks", "PointSolver", "RefineDecoder", "Smoothing", "block_tree"]
