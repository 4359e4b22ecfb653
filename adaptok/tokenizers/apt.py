"""APT, adaptive patch transformers (Choudhury et al., "Accelerating Vision Transformers with
Adaptive Patch Sizes")."""

from __future__ import annotations

from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.base import per_axis
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokenizers.ladder import THRESHOLDS
from adaptok.tokenizers.marking import Thresholds, as_thresholds, level_thresholds
from adaptok.tokenizers.tree import TreeTokenizer, composed, level_sizes
from adaptok.utils.arguments import Bins, Dimensions, Pair, PerAxis, Positive, checked


@TOKENIZERS.register("apt")
@checked
def apt(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    thresholds: Thresholds = THRESHOLDS,
    budget: Positive | None = None,
    color: str | None = None,
    bins: Bins = 512,
    value_range: Pair | None = None,
    resize: str = "central",
    branch: bool = True,
    positions: PerAxis | None = None,
    frame_size: Positive = 1,
    per_frame: bool = False,
    ignore: Ignore = "constants",
    border: str = "split",
) -> TreeTokenizer:
    """APT: entropy against a threshold per level, resized patches with a zero-initialised branch.

    Score: Eq. 1. Rule: Sec. 3.1, a region takes the coarsest cell whose entropy is below the
    threshold of its size. Embedding: Sec. 3.2, Eq. 2. The number of tokens depends on the data;
    `adaptok.calibrate` finds the thresholds for a mean number.

    Args:
        min_size: finest cell (paper: the patch of the ViT, 14 or 16); None: 4, or what suits the
            budget of a run.
        max_size: coarsest cell, min_size times a power of two; None: one size per threshold.
        thresholds: bits, those of the smallest merged cells first (paper: 5.5 for cells of twice
            min_size, 4.0 for four times). Also per call.
        budget: at most this many tokens per sample over all frames, or None; also per call.
        color: "gray" (needs 1 or 3 channels) or "channels"; default gray if there are 1 or 3.
        bins: of the histogram.
        value_range: values that the histogram spans, (0, 255) for images of bytes. None: the range
            of each map of each sample, in any units.
        resize: "central" (the authors' bilinear samples) or "area" (antialiased).
        branch: False leaves out the zero-initialised branch (the paper's "Resizing" baseline).
        positions: side of a learned table of positions in finest cells, one number or one per axis;
            None: no table (rotary positions belong to the processor).
        frame_size: extent of every cell in time.
        per_frame: a tiling per frame.
        ignore: what is not scored: "constants" (the static fields of a surrogate), fields by name
            or channels by number; [] for none, the paper's behaviour.
        border: what cells do that cross the border of the domain: "split" (down to the finest,
            paper) or "clip" (they may stay whole), see `composed`.

    Raises:
        ValueError: thresholds that do not fit the sizes, or invalid knobs.
    """
    min_size = 4 if min_size is None else min_size
    if max_size is None:
        bars = as_thresholds(thresholds)
        count = len(bars) if isinstance(bars, tuple) else 1
        max_size = [size << count for size in per_axis(min_size, ndim, "min_size")]
    n_levels = len(level_sizes(min_size, max_size, ndim))
    score = {"color": color, "bins": bins, "value_range": value_range}
    bars = level_thresholds(thresholds, n_levels - 1)
    features = {"resize": resize, "branch": branch, "positions": positions}
    return composed(
        ndim,
        in_channels,
        dim,
        indicator={"name": "entropy", **score},
        marking={"name": "threshold", "thresholds": bars, "budget": budget},
        embedding={"name": "resize_zero", **features},
        min_size=min_size,
        max_size=max_size,
        frame_size=frame_size,
        per_frame=per_frame,
        ignore=ignore,
        border=border,
    )
