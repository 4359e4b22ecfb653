"""Tokenizers: turn fields into packed tokens. One method per file, each composed of parts."""

from adaptok.tokenizers.apt import apt
from adaptok.tokenizers.at_budget import at_budget, part_at_budget
from adaptok.tokenizers.calibration import calibrate
from adaptok.tokenizers.ckm import CkmTokenizer
from adaptok.tokenizers.csm import CsmTokenizer
from adaptok.tokenizers.embeddings import with_halo
from adaptok.tokenizers.iap import iap
from adaptok.tokenizers.learning import indicator_loss
from adaptok.tokenizers.marking import PriceController
from adaptok.tokenizers.matey import matey
from adaptok.tokenizers.near_best import near_best
from adaptok.tokenizers.radial import radial
from adaptok.tokenizers.random import random
from adaptok.tokenizers.rlt import RltTokenizer
from adaptok.tokenizers.uniform import UniformTokenizer

__all__ = [
    "CkmTokenizer",
    "CsmTokenizer",
    "PriceController",
    "RltTokenizer",
    "UniformTokenizer",
    "apt",
    "at_budget",
    "calibrate",
    "iap",
    "indicator_loss",
    "matey",
    "near_best",
    "part_at_budget",
    "radial",
    "random",
    "with_halo",
]
