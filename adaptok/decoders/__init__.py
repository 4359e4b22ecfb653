"""Decoders: tokens to a field."""

from adaptok.decoders.cross_attention import CrossAttentionDecoder
from adaptok.decoders.hmlp import HmlpDecoder
from adaptok.decoders.linear import LinearDecoder
from adaptok.decoders.local import LocalDecoder

__all__ = ["CrossAttentionDecoder", "HmlpDecoder", "LinearDecoder", "LocalDecoder"]
