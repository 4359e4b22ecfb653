"""Which decoder suits a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from adaptok.layers.two_stage import ConvLayout
from adaptok.registry import Part
from adaptok.tokens import TokenizerSpec


def decoder_for(part: Part, spec: TokenizerSpec) -> Part:
    """Resolves "auto": "modulated" for the cells of CKM and CSM, "runs" for cells of different
    extents in time, else "linear".
    """
    runs = len({size[0] for size in spec.sizes}) > 1
    name = "modulated" if spec.layout is ConvLayout else "runs" if runs else "linear"
    if isinstance(part, Mapping):
        return {**part, "name": name} if part.get("name") == "auto" else part
    return name if part == "auto" else part
