"""Processors: tokens to tokens of the same cells."""

from adaptok.processors.axial import AxialTransformer, axis_groups
from adaptok.processors.factorised import frame_groups, time_groups
from adaptok.processors.perceiver import Perceiver
from adaptok.processors.routed import RoutedTransformer
from adaptok.processors.spacetime import SpaceTimeTransformer
from adaptok.processors.spacetime_parallel import ParallelSpaceTime
from adaptok.processors.transolver import Transolver
from adaptok.processors.vit import ViT
from adaptok.processors.windowed import WindowedTransformer

__all__ = [
    "AxialTransformer",
    "ParallelSpaceTime",
    "Perceiver",
    "RoutedTransformer",
    "SpaceTimeTransformer",
    "Transolver",
    "ViT",
    "WindowedTransformer",
    "axis_groups",
    "frame_groups",
    "time_groups",
]
