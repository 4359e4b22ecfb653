"""APF, adaptive patching (Zhang et al., "Adaptive patching for high-resolution image segmentation
with transformers", SC 2024)."""

from __future__ import annotations

from typing import Literal

from adaptok.registry import EMBEDDINGS, INDICATORS, MARKINGS, TOKENIZERS
from adaptok.tokenizers.base import per_axis
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokenizers.rooted import RootedTokenizer
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import (
    Dimensions,
    NonNegative,
    NonNegativeFloat,
    Pair,
    PerAxis,
    Positive,
    checked,
)


@TOKENIZERS.register("apf")
@checked
def apf(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    min_size: PerAxis | None = None,
    budget: Positive = 256,
    stop: bool = False,
    points: PerAxis = 4,
    low: NonNegativeFloat = 75.0,
    high: NonNegativeFloat = 125.0,
    blur: Literal[1, 3, 5, 7] = 3,
    reach: NonNegative = 16,
    color: str | None = "channels",
    value_range: Pair | None = None,
    frame_size: Positive = 1,
    per_frame: bool = False,
    ignore: Ignore = "constants",
    border: str = "clip",
) -> RootedTokenizer:
    """APF: cells with many edge points split, from the whole domain down, to a token budget.

    Score: the number of Canny edge points. Rule: the best leaf splits until the budget is spent;
    among equals, the first in the list of the authors' code, where children replace their parent. A
    leaf is resized to `points` values per axis, and one linear map embeds leaves of all sizes. The
    decoder is `paste`.

    Args:
        min_size: finest cell in grid points; None: 2 (authors' code), or what suits the budget of a
            run. The coarsest is the whole domain: the smallest power of two times min_size that
            covers its shortest side.
        budget: tokens per sample over all frames; also per call, one number or one per sample.
        stop: end all refinement when a finest cell has the most edges, as the authors' code does,
            with fewer tokens than the budget; the domain then has to fit as with border="split".
        points: values per axis that every cell is resized to.
        low: threshold of edge points beside stronger ones, see the indicator `edges`.
        high: threshold of edge points by themselves.
        blur: width of the Gaussian before, 1, 3, 5 or 7.
        reach: grid points along which an edge is followed from a strong point over weak ones.
        color: "channels" or "gray".
        value_range: lowest and highest value; None: those of each map of each sample.
        frame_size: extent of every cell in time.
        per_frame: a tiling per frame.
        ignore: what is not scored: "constants" (the static fields of a surrogate), fields by name
            or channels by number; [] for none.
        border: "clip" (cells may stick out of a domain that is no power of two times min_size) or
            "split" (such a domain is refused, and sizes that fit are named).
    """
    finest = (frame_size, *per_axis(2 if min_size is None else min_size, ndim, "min_size"))
    edges = {"low": low, "high": high, "blur": blur, "reach": reach}
    edges |= {"color": color, "value_range": value_range, "ties": "list", "above_finest": stop}
    marking = {"name": "budget", "budget": budget}
    if stop:  # those of the nodes before the end that the budget pays for
        marking = {"name": "threshold", "thresholds": 0.0, "budget": budget}
    spec = TokenizerSpec(ndim, in_channels, dim, (finest,), rooted=True)
    resized = {"name": "boxes", "points": points, "frames": frame_size}
    return RootedTokenizer(
        spec,
        INDICATORS.create("edges", **edges),
        MARKINGS.build(marking),
        EMBEDDINGS.build(resized, in_channels=in_channels, dim=dim, sizes=spec.sizes),
        per_frame=per_frame,
        ignore=ignore,
        border="split" if stop else border,
    )
