"""Which decoder suits a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from adaptok.layers.two_stage import ConvLayout
from adaptok.registry import Part
from adaptok.tokens import TokenizerSpec


def decoder_for(part: Part, spec: TokenizerSpec) -> Part:
    """Resolves "auto": "modulated" for the cells of CKM and CSM, "paste" for those whose sizes
    follow the domain, else "linear".
    """
    name = "modulated" if spec.layout is ConvLayout else "paste" if spec.rooted else "linear"
    if isinstance(part, Mapping):
        return {**part, "name": name} if part.get("name") == "auto" else part
    return name if part == "auto" else part
