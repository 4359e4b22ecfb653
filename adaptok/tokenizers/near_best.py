"""Near-best tilings, to a tolerance, a budget or a price (Binev & DeVore, "Fast computation in
adaptive tree approximation", Numer. Math. 97, 2004)."""

from __future__ import annotations

from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokenizers.tree import TreeTokenizer, composed
from adaptok.utils.arguments import (
    Degree,
    Dimensions,
    NonNegativeFloat,
    PerAxis,
    Positive,
    PositiveShare,
    checked,
)


@TOKENIZERS.register("near_best")
@checked
def near_best(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    tolerance: PositiveShare | None = None,
    budget: Positive | None = None,
    price: NonNegativeFloat | None = None,
    degree: Degree = 0,
    normalise: bool = False,
    frame_size: Positive = 1,
    per_frame: bool = False,
    ignore: Ignore = "constants",
    border: str = "clip",
) -> TreeTokenizer:
    """Near-best: about as few cells as hold the field to a tolerance, or the best for a budget.

    Score: modified errors of the projection onto polynomials (Sec. 2). With a tolerance the number
    of tokens depends on the field, and `certificate` tells the error that is reached; with a budget
    alone it is fixed.

    Args:
        min_size: finest cell in grid points, one number or one per axis; None: 2, or what suits the
            budget of a run.
        max_size: coarsest cell, min_size times a power of two; None: 16, or likewise.
        tolerance: relative error of each sample, ``||f - Pf|| / ||f - mean f||``; also per call.
            None: 0.05, or with a budget none.
        budget: with a tolerance the most tokens per sample over all frames, else their number; also
            per call.
        price: of a token, in place of both: nodes split whose score is above it, so that samples
            and steps share their tokens (marking `price`); also per call, and found by
            `adaptok.calibrate` for a mean number.
        degree: of the polynomials on a cell: 0 (its mean) or 1 (a slope per axis too).
        normalise: measure each channel in units of its own spread over the sample.
        frame_size: extent of every cell in time.
        per_frame: a tiling per frame, each of which meets the tolerance.
        ignore: what is not scored: "constants" (the static fields of a surrogate), fields by name
            or channels by number; [] for none.
        border: "clip" or "split" cells that cross the border of the domain, see `composed`.

    Raises:
        ValueError: a price beside a tolerance or a budget.
    """
    marking = {"name": "tolerance", "tolerance": tolerance, "budget": budget}
    if tolerance is None and budget is not None:  # a fixed number of tokens: static shapes
        marking = {"name": "budget", "budget": budget}
    if price is not None:
        if tolerance is not None or budget is not None:
            raise ValueError("a price takes the place of tolerance and budget: give one of them")
        marking = {"name": "price", "price": price}
    return composed(
        ndim,
        in_channels,
        dim,
        indicator={"name": "near_best", "degree": degree, "normalise": normalise},
        marking=marking,
        min_size=min_size,
        max_size=max_size,
        frame_size=frame_size,
        per_frame=per_frame,
        ignore=ignore,
        border=border,
    )
