"""Decoders: tokens to a field."""

from adaptok.decoders.boxes import BoxDecoder
from adaptok.decoders.conservative import ConservativeDecoder
from adaptok.decoders.cross_attention import CrossAttentionDecoder
from adaptok.decoders.hmlp import HmlpDecoder
from adaptok.decoders.linear import LinearDecoder
from adaptok.decoders.local import LocalDecoder
from adaptok.decoders.mlp import MlpDecoder
from adaptok.decoders.modulated import ModulatedDecoder
from adaptok.decoders.paste import PasteDecoder
from adaptok.decoders.refine import RefineDecoder
from adaptok.decoders.runs import RunDecoder

__all__ = [
    "BoxDecoder",
    "ConservativeDecoder",
    "CrossAttentionDecoder",
    "HmlpDecoder",
    "LinearDecoder",
    "LocalDecoder",
    "MlpDecoder",
    "ModulatedDecoder",
    "PasteDecoder",
    "RefineDecoder",
    "RunDecoder",
]
