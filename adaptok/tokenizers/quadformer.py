"""Quadformer (Ronen et al., "Vision transformers with mixed-resolution tokenization")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokenizers.tree import TreeTokenizer, composed
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, SizePower, checked


@TOKENIZERS.register("quadformer")
@checked
def quadformer(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    budget: Positive = 256,
    power: SizePower | None = None,
    features: Mapping[str, Any] | Callable[..., Any] | None = None,
    frame_size: Positive = 1,
    per_frame: bool = False,
    ignore: Ignore = "constants",
    border: str = "clip",
) -> TreeTokenizer:
    """Quadformer: cells split that lose most when blurred to one token, to a token budget.

    Score: indicator `blur`. Refinement: best first to exactly the budget if a split can
    end there, otherwise to less than one split below it. Cells are resized to the finest size,
    linearly and without antialiasing, and embedded by one linear map. Its positions are those of a
    processor with ``positions="sinusoid"``.

    Args:
        min_size: finest cell in grid points, one number or one per axis; None: 2, or what suits the
            budget of a run.
        max_size: coarsest cell, min_size times a power of two; None: 16, or likewise.
        budget: tokens per sample over all frames; also per call, one number or one per sample.
        power: exponent of the cell's size in the score; None: 0.5 (the authors' code), with
            features 0 (paper).
        features: a frozen module behind which a cell and its blur are compared, from
            ``(m, c, *space)`` to ``(m, k, *grid)``, or a class or mapping of one; None: the values.
        frame_size: extent of every cell in time, in frames.
        per_frame: a tiling per frame.
        ignore: what is not scored: "constants" (the static fields of a surrogate), fields by name
            or channels by number; [] for none.
        border: "clip" or "split" cells that cross the border of the domain, see `composed`.
    """
    return composed(
        ndim,
        in_channels,
        dim,
        indicator={"name": "blur", "power": power, "features": features},
        marking={"name": "budget", "budget": budget},
        embedding={"name": "resize_zero", "branch": False},
        min_size=min_size,
        max_size=max_size,
        frame_size=frame_size,
        per_frame=per_frame,
        ignore=ignore,
        border=border,
    )
