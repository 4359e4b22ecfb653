"""Which decoder suits a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptok.layers.strip import StripLayout
from adaptok.layers.two_stage import ConvLayout
from adaptok.registry import Part, name_of, split_part
from adaptok.tokens import TokenizerSpec


def decoder_for(part: Part, spec: TokenizerSpec) -> Part:
    """Resolves "auto": the decoder that belongs to the tokenizer, else `painter_for`."""
    own = spec.decoder
    if own is None or name_of(part) != "auto":
        return painter_for(part, spec)
    name, knobs = split_part(own, "decoder")
    return {**knobs, **split_part(part, "decoder")[1], "name": name}


def painter_for(part: Part, spec: TokenizerSpec) -> Part:
    """Resolves "auto" where tokens alone are painted: "modulated" for the cells of CKM and CSM,
    "boxes" for those of DART, "paste" for those whose sizes follow the domain, "runs" for cells of
    different extents in time, else "linear".
    """
    suited: dict[Any, str] = {ConvLayout: "modulated", StripLayout: "boxes"}
    runs = len({size[0] for size in spec.sizes}) > 1
    name = suited.get(spec.layout, "paste" if spec.rooted else "runs" if runs else "linear")
    if isinstance(part, Mapping):
        return {**part, "name": name} if part.get("name") == "auto" else part
    return name if part == "auto" else part
