"""Few coarse cells for attention, and the decoder that computes at full resolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from adaptok.registry import TOKENIZERS, Part
from adaptok.tokenizers.uniform import UniformTokenizer
from adaptok.utils.arguments import (
    Dimensions,
    NonNegative,
    PerAxis,
    Positive,
    PositiveShare,
    checked,
)

WIDTHS = {1: 64, 2: 64, 3: 32}  # of the solver, by dimension


@TOKENIZERS.register("coarse_fine")
@checked
def coarse_fine(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    size: PerAxis = 16,
    patch_sizes: Sequence[PerAxis] | None = None,
    share: PositiveShare = 0.5,
    indicator: Part = "gradient",
    width: Positive | None = None,
    smooth: NonNegative = 12,
    frame_size: Positive = 1,
) -> UniformTokenizer:
    """Coarse and fine: few uniform cells, and a small solver where the field varies most.

    The cells carry the attention and do not adapt; the points that the solver sees do. The decoder
    that belongs to it is `RefineDecoder` with the knobs given here, which ``decoder="auto"`` takes.
    Chosen by measurement, see docs/adaptivity.md.

    Args:
        size: cell size in grid points, one number or one per space axis.
        patch_sizes: sizes that ``patch_size=`` may choose per call, see `uniform`.
        share: of the blocks of two points per axis that the solver sees; 1 for all.
        indicator: scores the blocks.
        width: channels of the solver; None: 64, in 3D 32.
        smooth: channels of the dense network over the result; 0 for none.
        frame_size: extent of every cell in time.
    """
    sizes: dict[str, Any] = {"size": size, "patch_sizes": patch_sizes, "frame_size": frame_size}
    tokenizer = UniformTokenizer(ndim, in_channels, dim, **sizes)
    knobs = {"share": share, "indicator": indicator, "smooth": smooth}
    decoder = {"name": "refine", **knobs, "width": width or WIDTHS[ndim]}
    tokenizer.spec = dataclasses.replace(tokenizer.spec, decoder=decoder)
    return tokenizer
