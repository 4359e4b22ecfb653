"""MeshTok (arXiv 2606.04366): a share of the coarse cells of each frame is refined."""

from __future__ import annotations

from collections.abc import Sequence

from adaptok.registry import EMBEDDINGS, INDICATORS, MARKINGS, TOKENIZERS, Part
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokenizers.matey import nested_sizes
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, Share, checked


@TOKENIZERS.register("meshtok")
@checked
def meshtok(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    sizes: Sequence[PerAxis] | None = None,
    ratio: Share = 0.25,
    indicator: Part = "activity",
    compat: bool = False,
    embedding: Part = "mlp",
    frame_size: Positive = 1,
    per_frame: bool = True,
    ignore: Ignore = "constants",
    border: str = "clip",
) -> TreeTokenizer:
    """MeshTok: a fixed share of the coarse cells, those with the most activity, is refined.

    Activity is gradient, curvature and anomaly; each frame refines its own cells.

    The number of tokens is fixed. Positions and decoder of the method are those of a processor with
    ``positions="film"`` and ``decoder="mlp"``.

    Args:
        sizes: cell sizes from fine to coarse, each one number or one per space axis; None: 4 and 8,
            or what suits the budget of a run. With more than two, a share of each level is refined.
        ratio: share of the cells of a level that split; also per call.
        indicator: scores the cells: "activity" (MeshTok), or any other.
        compat: score as the authors' code does, see `ActivityIndicator`.
        embedding: "mlp" (MeshTok), or any other.
        frame_size: extent of every cell in time.
        per_frame: score and refine each frame alone (MeshTok), as many cells in each; False: one
            tiling for all.
        ignore: what is not scored: "constants" (the static fields of a surrogate), fields by name
            or channels by number; [] for none.
        border: what cells do that cross the border of the domain: "clip" (they may stay whole) or
            "split" (down to the finest), see `composed`.

    Raises:
        ValueError: sizes that do not nest, or `compat` with another indicator.
    """
    if compat:
        if indicator != "activity":
            raise ValueError("compat is an option of the indicator 'activity': give no other")
        indicator = {"name": "activity", "compat": True}
    levels = tuple(
        (frame_size, *size) for size in nested_sizes((4, 8) if sizes is None else sizes, ndim)
    )
    spec = TokenizerSpec(ndim, in_channels, dim, levels)
    return TreeTokenizer(
        spec,
        INDICATORS.build(indicator, in_channels=in_channels, sizes=levels),
        MARKINGS.create("fraction", ratio=ratio, each_frame=True),
        EMBEDDINGS.build(embedding, in_channels=in_channels, dim=dim, sizes=levels),
        per_frame=per_frame,
        ignore=ignore,
        border=border,
    )
