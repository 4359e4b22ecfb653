"""Baselines: one-step models without tokens, for the same training, evaluation and tables."""

from adaptok.baselines.base import BASELINES, Baseline, create_baseline
from adaptok.baselines.fno import FNO
from adaptok.baselines.persistence import Persistence
from adaptok.baselines.unet import UNet
from adaptok.baselines.well import well

__all__ = ["BASELINES", "FNO", "Baseline", "Persistence", "UNet", "create_baseline", "well"]
