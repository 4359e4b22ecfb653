"""Positions: how features learn where their cells lie. One kind per file."""

from adaptok.positions.fourier import FourierPositions, fourier_features
from adaptok.positions.misplaced import misplaced_center, told_center
from adaptok.positions.none import NoPositions
from adaptok.positions.rotary import Rotary, RotaryPositions, pairs_per_axis, rotary

__all__ = [
    "FourierPositions",
    "NoPositions",
    "Rotary",
    "RotaryPositions",
    "fourier_features",
    "misplaced_center",
    "pairs_per_axis",
    "rotary",
    "told_center",
]
