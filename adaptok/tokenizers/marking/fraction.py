"""Refinement of a fixed fraction of the cells."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.cells import product, repeated
from adaptok.registry import MARKINGS
from adaptok.tokenizers.marking.base import Marks, rankable
from adaptok.tokenizers.marking.best_first import top_mask
from adaptok.tree import Tree
from adaptok.utils.arguments import Share, check_value, checked


@MARKINGS.register("fraction")
class FractionMarking:
    """Splits the ``int(ratio * N)`` best of the N cells of a level, level after level (MATEY's
    `refine_ratio`).

    Ties split in raster order; nodes that cross the border split first and count. The number of
    cells is known beforehand: no host synchronisation.

    Args:
        ratio: in [0, 1]; also per call.
        each_frame: let every frame with a tiling of its own have as many splits (MeshTok), instead
            of sharing them.
    """

    controls = ("ratio",)
    static = True

    @checked
    def __init__(self, *, ratio: Share = 0.25, each_frame: bool = False):
        self.ratio, self.each_frame = ratio, each_frame

    def __call__(
        self,
        scores: Float[Tensor, "b f inner"],
        tree: Tree,
        *,
        monotone: bool = False,
        shared: int = 1,
        ratio: Share | None = None,
    ) -> Marks:
        """Marks the best existing nodes of each level."""
        if ratio is None:
            ratio = self.ratio
        elif not torch.compiler.is_compiling():
            check_value(ratio, Share, "ratio")
        b, frames, _ = scores.shape
        if not self.each_frame:
            split, cells = _marked(scores, tree, ratio)
            return Marks(split, repeated(cells * shared, b))
        split, cells = _marked(scores.flatten(0, 1).unsqueeze(1), tree, ratio)
        return Marks(split.view_as(scores), repeated(cells * frames * shared, b))


def _marked(
    scores: Float[Tensor, "b f inner"], tree: Tree, ratio: float
) -> tuple[Bool[Tensor, "b f inner"], int]:
    """Marks the best of all frames of a sample; also counts its leaves."""
    b, frames, _ = scores.shape
    counts, leaves = _plan(ratio, tree, frames)
    exists: Tensor | None = None
    split = [scores.new_zeros(b, frames, 0, dtype=torch.bool)]
    for level, own in enumerate(tree.per_level(rankable(scores, tree))):
        if tree.border == "clip":  # what lies beyond the border ranks last, but exists
            own = own.clamp(min=torch.finfo(own.dtype).min)
        own = own if exists is None else own.masked_fill(~exists, -torch.inf)
        chosen = top_mask(own.flatten(1), repeated(counts[level], b)).view_as(own)
        split.append(chosen)
        exists = tree.expand(chosen, level)
    return torch.cat(split, -1), leaves


def cells_of_fraction(ratio: float, tree: Tree, frames: int, *, kept: bool = False) -> int:
    """Counts the cells of one sample over `frames` trees; `kept` includes those that split."""
    splits, leaves = _plan(ratio, tree, frames)
    return leaves + kept * sum(splits)


def _plan(ratio: float, tree: Tree, frames: int) -> tuple[list[int], int]:
    """Counts splits per level, and leaves, of one sample over `frames` trees."""
    inside, whole = tree.inside, tree.whole
    if tree.border == "clip":  # nodes beyond the border exist, too
        inside = whole = tuple(map(product, tree.grids))
    exist, splits, leaves = frames * inside[0], [], 0
    for level, ratios in enumerate(tree.ratios):
        crossing = frames * (inside[level] - whole[level])
        chosen = min(max(int(ratio * exist), crossing), frames * tree.inside[level])
        splits.append(chosen)
        leaves += exist - chosen
        # Whatever does not lie below whole nodes lies below crossing ones.
        below = frames * (inside[level + 1] - whole[level] * product(ratios))
        exist = below + (chosen - crossing) * product(ratios)
    return splits, leaves + exist
