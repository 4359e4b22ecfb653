"""Indicators: functions that give every inner node of the tree a score."""

from adaptok.indicators.base import PERIODIC, Indicator, periodic_axes, points_of_nodes
from adaptok.indicators.entropy import EntropyIndicator
from adaptok.indicators.gradient import (
    GradientIndicator,
    central_difference,
    gradient_norm,
    stencil,
)
from adaptok.indicators.intensity import Intensity
from adaptok.indicators.laplacian import LaplacianIndicator
from adaptok.indicators.resampling import ResamplingIndicator

__all__ = [
    "PERIODIC",
    "EntropyIndicator",
    "GradientIndicator",
    "Indicator",
    "Intensity",
    "LaplacianIndicator",
    "ResamplingIndicator",
    "central_difference",
    "gradient_norm",
    "periodic_axes",
    "points_of_nodes",
    "stencil",
]
