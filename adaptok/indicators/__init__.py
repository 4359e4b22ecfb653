"""Indicators: functions that give every inner node of the tree a score."""

from adaptok.indicators.base import PERIODIC, Indicator, channel_weights, periodic_axes
from adaptok.indicators.gradient import GradientIndicator, central_difference, gradient_norm
from adaptok.indicators.variance import VarianceIndicator, channel_variances

__all__ = [
    "PERIODIC",
    "GradientIndicator",
    "Indicator",
    "VarianceIndicator",
    "central_difference",
    "channel_variances",
    "channel_weights",
    "gradient_norm",
    "periodic_axes",
]
