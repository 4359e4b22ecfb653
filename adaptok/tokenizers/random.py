"""Resolution by chance, a tokenizer that does not see the field."""

from __future__ import annotations

from adaptok.registry import TOKENIZERS
from adaptok.tokenizers.tree import TreeTokenizer, composed
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, Seed, checked


@TOKENIZERS.register("random")
@checked
def random(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    min_size: PerAxis | None = None,
    max_size: PerAxis | None = None,
    budget: Positive = 256,
    seed: Seed = 0,
    frame_size: Positive = 1,
    per_frame: bool = False,
    border: str = "clip",
) -> TreeTokenizer:
    """Random: cells split by chance, to a token budget: a baseline without content.

    The tiling follows from the seed and the shape of the domain alone, the same for all samples: a
    batch equals its samples. A schedule of seeds draws another one per step
    (``schedule.settings=[{seed: 0}, {seed: 1}]``).

    Args:
        min_size: finest cell in grid points, one number or one per axis; None: 2, or what suits the
            budget of a run.
        max_size: coarsest cell, min_size times a power of two; None: 16, or likewise.
        budget: tokens per sample over all frames; also per call, one number or one per sample.
        seed: of the chance; also per call.
        frame_size: extent of every cell in time.
        per_frame: a tiling per frame.
        border: "clip" or "split" cells that cross the border of the domain, see `composed`.
    """
    return composed(
        ndim,
        in_channels,
        dim,
        indicator="radial",  # the marking takes its shape alone
        marking={"name": "random", "budget": budget, "seed": seed},
        min_size=min_size,
        max_size=max_size,
        frame_size=frame_size,
        per_frame=per_frame,
        border=border,
    )
