"""Which decoder suits a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptok.layers.strip import StripLayout
from adaptok.layers.two_stage import ConvLayout
from adaptok.registry import DECODERS, Part, name_of, split_part
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


def painter(base: Part, spec: TokenizerSpec, out_channels: int) -> Any:
    """Builds the decoder inside a decoder.

    Raises:
        ValueError: it does not fit, or reads the field itself; the message names the base.
    """
    part = painter_for(base, spec)
    try:
        if DECODERS.says(part, "reads_field"):
            raise ValueError("it reads the field itself; a base paints tokens alone")
        return DECODERS.build(part, spec=spec, out_channels=out_channels)
    except ValueError as error:
        raise ValueError(f"base {name_of(base)!r}: {error}") from error
