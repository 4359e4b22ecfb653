"""MATEY (Zhang et al., "MATEY: multiscale adaptive foundation models for spatiotemporal physical
systems")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptok.cells import nested
from adaptok.layers.positions import misplaced_center
from adaptok.registry import EMBEDDINGS, INDICATORS, MARKINGS, TOKENIZERS, Part, choice
from adaptok.tokenizers.base import per_axis
from adaptok.tokenizers.ignoring import Ignore
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokens import TokenizerSpec, cell_center
from adaptok.utils.arguments import Dimensions, PerAxis, Positive, PositiveShare, Share, checked

MODES = ("replace", "add")


@TOKENIZERS.register("matey")
@checked
def matey(
    ndim: Dimensions,
    in_channels: Positive,
    dim: Positive,
    *,
    sizes: Sequence[PerAxis] | None = None,
    gamma: PositiveShare = 0.2,
    fraction: Share | None = None,
    mode: str = "replace",
    normalise: bool = False,
    frame_size: Positive = 1,
    per_frame: bool = False,
    embedding: Part = "linear",
    legacy_positions: bool = False,
    ignore: Ignore = "constants",
    border: str = "clip",
) -> TreeTokenizer:
    """MATEY: cells whose variance is close to the largest one are refined.

    Sec. 3, "Adaptive tokenization", Fig. 1. MATEY scores the raw field; a surrogate does so with
    ``score_on="raw"``.

    Args:
        sizes: cell sizes from fine to coarse, each one number or one per space axis; None: 8
            and 32, or what suits the budget of a run.
        gamma: cells split whose variance exceeds gamma times the sample's largest (paper's runs:
            0.2 and 0.4).
        fraction: share of the cells of each level that split; replaces gamma.
        mode: "replace": children replace refined cells, a tiling (the later code). "add": refined
            cells stay beside their children (the paper).
        normalise: divide the variance of each channel by that of its sample.
        frame_size: extent of every cell in time.
        per_frame: score and refine each frame alone (MATEY: one decision for all frames).
        embedding: "linear", or "hmlp" for MATEY's convolutional stem, or a mapping with knobs.
        legacy_positions: give fine tokens the misplaced positions of the paper-era code.
        ignore: what is not scored: "constants" (the static fields of a surrogate), fields by name
            or channels by number; [] for none, the paper's behaviour.
        border: what cells do that cross the border of the domain: "clip" (they may stay whole) or
            "split" (down to the finest), see `composed`.

    Raises:
        ValueError: sizes that do not nest, or legacy positions without their two levels or with a
            fraction.
    """
    choice("mode", mode, MODES)
    levels = tuple(
        (frame_size, *size) for size in nested_sizes((8, 32) if sizes is None else sizes, ndim)
    )
    if legacy_positions and (len(levels) != 2 or fraction is not None):
        raise ValueError("legacy_positions are those of two sizes and a gamma, as in the paper")
    marking: dict[str, Any] = {"name": "maximum", "gamma": gamma}
    if fraction is not None:
        marking = {"name": "fraction", "ratio": fraction}
    spec = TokenizerSpec(
        ndim,
        in_channels,
        dim,
        levels,
        tiling=mode == "replace",
        position_center=misplaced_center if legacy_positions else cell_center,
    )
    return TreeTokenizer(
        spec,
        INDICATORS.create("variance", normalise=normalise),
        MARKINGS.build(marking),
        EMBEDDINGS.build(embedding, in_channels=in_channels, dim=dim, sizes=spec.sizes),
        per_frame=per_frame,
        ignore=ignore,
        border=border,
    )


def nested_sizes(sizes: Sequence[int | Sequence[int]], ndim: int) -> tuple[tuple[int, ...], ...]:
    """Orders sizes coarse to fine, one number per space axis, from sizes fine to coarse.

    Raises:
        ValueError: no size, or a size that is no multiple of the finer one before it.
    """
    levels = tuple(per_axis(size, ndim, "each of sizes") for size in reversed(list(sizes)))
    if not levels or not nested(levels):
        raise ValueError(
            "sizes go from fine to coarse, each a multiple of the one before on every axis; "
            f"got {list(sizes)}"
        )
    return levels
