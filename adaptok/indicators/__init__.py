"""Indicators: functions that give every inner node of the tree a score."""

from adaptok.indicators.base import PERIODIC, Indicator, periodic_axes
from adaptok.indicators.gradient import GradientIndicator, central_difference, gradient_norm

__all__ = [
    "PERIODIC",
    "GradientIndicator",
    "Indicator",
    "central_difference",
    "gradient_norm",
    "periodic_axes",
]
