"""Nested resolution around given places, a tokenizer that does not see the field."""

from __future__ import annotations

from collections.abc import Sequence

from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.indicators.focus import FocusIndicator, Point
from adaptok.tokenizers.tree import TreeTokenizer, composed
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, checked


@TOKENIZERS.register("focus")
@checked
def focus(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    budget: Positive = 256,
    points: Sequence[Point] | None = None,
    boxes: Sequence[Sequence[Point]] | None = None,
    frame_size: Positive = 1,
    border: str = "clip",
) -> TreeTokenizer:
    """Focus: nested resolution around given points and boxes, a baseline without content.

    Args:
        min_size: finest cell in grid points, one number or one per axis; None: 2, or what suits the
            budget of a run.
        max_size: coarsest cell, min_size times a power of two; None: 16, or likewise.
        budget: tokens per sample over all frames; also per call, one number or one per sample.
        points: foci, each a share of the domain along each axis, such as ``[[0.25, 0.5]]``.
        boxes: foci that extend, each its first and its last corner, such as
            ``[[[0.1, 0.1], [0.3, 0.2]]]``. Without points and boxes the middle is the focus.
        frame_size: extent of every cell in time.
        border: "clip" or "split" cells that cross the border of the domain, see `composed`.

    Raises:
        ValueError: foci of another dimension, or boxes whose corners are in another order.
    """
    FocusIndicator(points=points, boxes=boxes).check(ndim)
    return composed(
        ndim,
        in_channels,
        dim,
        indicator={"name": "focus", "points": points, "boxes": boxes},
        marking={"name": "budget", "budget": budget},
        min_size=min_size,
        max_size=max_size,
        frame_size=frame_size,
        border=border,
    )
