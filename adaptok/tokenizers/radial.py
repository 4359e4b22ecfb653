"""Resolution by the distance from a point, a tokenizer that does not see the field."""

from __future__ import annotations

from collections.abc import Sequence

from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.tree import TreeTokenizer, composed
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, Share, checked


@TOKENIZERS.register("radial")
@checked
def radial(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    budget: Positive = 256,
    center: Sequence[Share] | None = None,
    frame_size: Positive = 1,
    border: str = "clip",
) -> TreeTokenizer:
    """Radial: cells grow with the distance from a point, to a token budget: a baseline without
    content.

    Args:
        min_size: finest cell in grid points, one number or one per axis; None: 2, or what suits the
            budget of a run.
        max_size: coarsest cell, min_size times a power of two; None: 16, or likewise.
        budget: tokens per sample over all frames; also per call, one number or one per sample.
        center: the point, as a share of the domain along each axis; None: the middle.
        frame_size: extent of every cell in time.
        border: "clip" or "split" cells that cross the border of the domain, see `composed`.

    Raises:
        ValueError: a center of another dimension.
    """
    if center is not None and len(center) != ndim:
        raise ValueError(f"center is one share per space axis, {ndim}, got {list(center)}")
    return composed(
        ndim,
        in_channels,
        dim,
        indicator={"name": "radial", "center": center},
        marking={"name": "budget", "budget": budget},
        min_size=min_size,
        max_size=max_size,
        frame_size=frame_size,
        border=border,
    )
