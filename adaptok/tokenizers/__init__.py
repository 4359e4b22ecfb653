"""Tokenizers: turn fields into packed tokens. One method per file, each composed of parts."""

from adaptok.tokenizers.amr import amr
from adaptok.tokenizers.apf import apf
from adaptok.tokenizers.apt import apt
from adaptok.tokenizers.at_budget import at_budget, part_at_budget
from adaptok.tokenizers.calibration import calibrate
from adaptok.tokenizers.ckm import CkmTokenizer
from adaptok.tokenizers.coarse_fine import coarse_fine
from adaptok.tokenizers.csm import CsmTokenizer
from adaptok.tokenizers.dart import DartTokenizer, dart
from adaptok.tokenizers.embeddings import with_halo
from adaptok.tokenizers.focus import focus
from adaptok.tokenizers.given import GivenTokenizer, given
from adaptok.tokenizers.iap import iap
from adaptok.tokenizers.learning import indicator_loss
from adaptok.tokenizers.marking import PriceController
from adaptok.tokenizers.matey import matey
from adaptok.tokenizers.meshtok import meshtok
from adaptok.tokenizers.msvit import msvit
from adaptok.tokenizers.near_best import near_best
from adaptok.tokenizers.patch_dropout import PatchDropoutTokenizer
from adaptok.tokenizers.quadformer import quadformer
from adaptok.tokenizers.radial import radial
from adaptok.tokenizers.random import random
from adaptok.tokenizers.rlt import RltTokenizer
from adaptok.tokenizers.uniform import UniformTokenizer

__all__ = [
    "CkmTokenizer",
    "CsmTokenizer",
    "DartTokenizer",
    "GivenTokenizer",
    "PatchDropoutTokenizer",
    "PriceController",
    "RltTokenizer",
    "UniformTokenizer",
    "amr",
    "apf",
    "apt",
    "at_budget",
    "calibrate",
    "coarse_fine",
    "dart",
    "focus",
    "given",
    "iap",
    "indicator_loss",
    "matey",
    "meshtok",
    "msvit",
    "near_best",
    "part_at_budget",
    "quadformer",
    "radial",
    "random",
    "with_halo",
]
