"""Baselines: one-step models without tokens, for the same training, evaluation and tables."""

from adaptok.models.baselines.base import BASELINES, Baseline, create_baseline
from adaptok.models.baselines.fno import FNO
from adaptok.models.baselines.lower_resolution import LowerResolution
from adaptok.models.baselines.persistence import Persistence
from adaptok.models.baselines.unet import UNet
from adaptok.models.baselines.well import well

__all__ = [
    "BASELINES",
    "FNO",
    "Baseline",
    "LowerResolution",
    "Persistence",
    "UNet",
    "create_baseline",
    "well",
]
