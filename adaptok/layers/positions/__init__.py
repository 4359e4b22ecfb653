"""Positions: ways to tell features where their cells lie. One kind per file."""

from adaptok.layers.positions.film import FilmPositions
from adaptok.layers.positions.fourier import FourierPositions, fourier_features
from adaptok.layers.positions.misplaced import misplaced_center
from adaptok.layers.positions.none import NoPositions
from adaptok.layers.positions.rotary import (
    Rotary,
    RotaryPositions,
    common_shape,
    pairs_per_axis,
    rotary,
)
from adaptok.layers.positions.sinusoid import SinusoidPositions, sinusoid, sinusoid_pairs

__all__ = [
    "FilmPositions",
    "FourierPositions",
    "NoPositions",
    "Rotary",
    "RotaryPositions",
    "SinusoidPositions",
    "common_shape",
    "fourier_features",
    "misplaced_center",
    "pairs_per_axis",
    "rotary",
    "sinusoid",
    "sinusoid_pairs",
]
