"""IAP, iterative adaptive patchification (Wang & Perdikaris, "Adaptive Tokenization for Vision
Transformer PDE Simulation")."""

from __future__ import annotations

from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokenizers.tree import TreeTokenizer, composed
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, Power, Weights, checked


@TOKENIZERS.register("iap")
@checked
def iap(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    budget: Positive = 256,
    per_batch: bool = False,
    splits_per_step: Positive = 1,
    k: Positive = 1,
    padding: str = "replicate",
    weights: Weights | None = None,
    ignore: Ignore = "constants",
    power: Power = 1.0,
    channels: str = "mean",
    frames: str = "mean",
    frame_size: Positive = 1,
    per_frame: bool = False,
    border: str = "clip",
) -> TreeTokenizer:
    """IAP: Sobel gradient indicator and best-first refinement to a token budget.

    Score: App. B, Eq. 2 and 3. Refinement: Sec. 2, Algorithms 1 and 2, Eq. 1. One linear embedding
    per size (Sec. 2). The paper splits four cells per step; the default of one is the exact
    best-first refinement, and ``splits_per_step=4`` runs the paper's loop.

    Args:
        min_size: finest cell; None: 2 (paper; 4 for 512² fields), or what suits the budget of a
            run.
        max_size: coarsest cell; None: 16 (paper; 32 in 2D at 1024 tokens), or likewise.
        budget: tokens per sample over all frames; also per call, one number or one per sample.
        per_batch: the samples of a batch share their budgets; the total stays fixed.
        splits_per_step: cells split per step, K of Eq. 1.
        k: half-width of the Sobel stencil.
        padding: "replicate", "circular" or "reflect"; periodic axes are always circular.
        weights: weight per channel that is not ignored.
        ignore: what is not scored: "constants" (the static fields of a surrogate), fields by name
            or channels by number; [] for none, the paper's behaviour.
        power: exponent of the per-point score.
        channels: "mean" (paper) or "max" over channels.
        frames: "mean" or "max" over frames, if these are not folded into channels.
        frame_size: extent of every cell in time.
        per_frame: a tiling per frame.
        border: what cells do that cross the border of the domain: "clip" (they may stay whole) or
            "split" (down to the finest), see `composed`.
    """
    gradient = {"k": k, "padding": padding, "weights": weights}
    gradient |= {"power": power, "channels": channels, "frames": frames}
    return composed(
        ndim,
        in_channels,
        dim,
        indicator={"name": "gradient", **gradient},
        marking={
            "name": "budget",
            "budget": budget,
            "splits_per_step": splits_per_step,
            "per_batch": per_batch,
        },
        min_size=min_size,
        max_size=max_size,
        frame_size=frame_size,
        per_frame=per_frame,
        ignore=ignore,
        border=border,
    )
