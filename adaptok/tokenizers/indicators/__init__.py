"""Indicators: functions that score every inner node of a tree."""

from adaptok.layers.boundary import periodic_axes
from adaptok.tokenizers.indicators.activity import ActivityIndicator
from adaptok.tokenizers.indicators.base import (
    Indicator,
    Intensity,
    channel_weights,
    points_of_nodes,
)
from adaptok.tokenizers.indicators.blur import BlurIndicator
from adaptok.tokenizers.indicators.edges import EdgesIndicator, canny
from adaptok.tokenizers.indicators.entropy import EntropyIndicator
from adaptok.tokenizers.indicators.flow import (
    FlowIndicator,
    MomentumIndicator,
    VelocityGradientIndicator,
    VorticityIndicator,
)
from adaptok.tokenizers.indicators.focus import FocusIndicator
from adaptok.tokenizers.indicators.gate import GateIndicator
from adaptok.tokenizers.indicators.gradient import (
    GradientIndicator,
    central_difference,
    gradient_norm,
    stencil,
)
from adaptok.tokenizers.indicators.laplacian import LaplacianIndicator
from adaptok.tokenizers.indicators.learned import LearnedIndicator
from adaptok.tokenizers.indicators.near_best import NearBestIndicator, modified
from adaptok.tokenizers.indicators.projection import local_errors, relative_errors
from adaptok.tokenizers.indicators.radial import RadialIndicator
from adaptok.tokenizers.indicators.resampling import ResamplingIndicator
from adaptok.tokenizers.indicators.variance import VarianceIndicator, channel_variances
from adaptok.utils.boundary import PERIODIC

__all__ = [
    "PERIODIC",
    "ActivityIndicator",
    "BlurIndicator",
    "EdgesIndicator",
    "EntropyIndicator",
    "FlowIndicator",
    "FocusIndicator",
    "GateIndicator",
    "GradientIndicator",
    "Indicator",
    "Intensity",
    "LaplacianIndicator",
    "LearnedIndicator",
    "MomentumIndicator",
    "NearBestIndicator",
    "RadialIndicator",
    "ResamplingIndicator",
    "VarianceIndicator",
    "VelocityGradientIndicator",
    "VorticityIndicator",
    "canny",
    "central_difference",
    "channel_variances",
    "channel_weights",
    "gradient_norm",
    "local_errors",
    "modified",
    "periodic_axes",
    "points_of_nodes",
    "relative_errors",
    "stencil",
]
