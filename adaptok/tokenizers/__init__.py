"""Tokenizers: fields to packed tokens. One method per file, each a composition of parts."""

from adaptok.tokenizers.apt import apt
from adaptok.tokenizers.calibration import calibrate
from adaptok.tokenizers.iap import iap
from adaptok.tokenizers.matey import matey
from adaptok.tokenizers.uniform import UniformTokenizer

__all__ = ["UniformTokenizer", "apt", "calibrate", "iap", "matey"]
