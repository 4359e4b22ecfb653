"""Tokenizers: fields to packed tokens. One method per file, each a composition of parts."""

from adaptok.tokenizers.ckm import CkmTokenizer
from adaptok.tokenizers.csm import CsmTokenizer
from adaptok.tokenizers.iap import iap
from adaptok.tokenizers.uniform import UniformTokenizer

__all__ = ["CkmTokenizer", "CsmTokenizer", "UniformTokenizer", "iap"]
