"""Cells that pass a test stay beside those inside of them that pass it too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from adaptok.cells import Cells, product
from adaptok.tokenizers.coherence import present
from adaptok.tokenizers.indicators import Indicator
from adaptok.tokenizers.marking import Marking, Marks
from adaptok.tokenizers.tree import TreeTokenizer
from adaptok.tokens import TokenizerSpec
from adaptok.tree import Sizes, Tree, cells_from_nodes, existing


class PassingTokenizer(TreeTokenizer):
    """Keeps the coarsest cells, and below them every cell that its marking would split and whose
    ancestors it would: cells of several sizes lie over one another, and what does not pass is in
    none but the coarser ones.

    The finest cells are tested too, so that the tree has one level of points more than there are
    sizes.

    Args:
        spec: of overlapping cells (``tiling=False``).
        indicator: node scores.
        marking: which nodes pass.
        embedding: patches to features.
        options: of `TreeTokenizer`.

    Raises:
        ValueError: a spec of a tiling, or a finest cell of one point.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        indicator: Indicator,
        marking: Marking,
        embedding: nn.Module,
        **options: Any,
    ):
        if spec.tiling:
            raise ValueError("cells that pass lie over one another: spec.tiling is False")
        if max(spec.sizes[-1][1:]) == 1:
            raise ValueError("a finest cell that is tested has more than one point: min_size=2")
        super().__init__(spec, indicator, marking, embedding, **options)

    def tree(self, space: Sequence[int]) -> Tree:
        """Returns the tree over a domain that scores are for: cells, and inside them points."""
        own = super().tree(space)
        return Tree(own.shape, (*own.sizes, (1,) * len(own.shape)), self.order, self.border)

    def _passed(self, split: Bool[Tensor, "b f inner"], tree: Tree) -> Bool[Tensor, "b f inner"]:
        passed = split & existing(split, tree)[..., : tree.inner]
        passed[..., : tree.offsets[1]] = True
        return passed & ~tree.nodes(split.device).outside

    def _covering(self, split: Bool[Tensor, "b f inner"], tree: Tree) -> Bool[Tensor, "b f inner"]:
        """The splits all of whose children are cells."""
        outside = tree.nodes(split.device).outside
        levels = tree.per_level(self._passed(split, tree) | outside)
        splits = []
        for level, below in enumerate(levels[1:]):
            children = product(tree.ratios[level])
            splits.append(tree.sum_children(below.long(), level) == children)
        return torch.cat([*splits, torch.zeros_like(levels[-1])], -1)

    def _cell_sizes(self, tree: Tree) -> Sizes:
        return tree.sizes[:-1]

    def _split_before(self, previous: Cells, tree: Tree, frames: int) -> Bool[Tensor, "b f inner"]:
        """The nodes that passed."""
        return present(previous, tree, frames, self.spec.sizes[0][0])[..., : tree.inner]

    def _packed(self, marks: Marks, tree: Tree, frames: int) -> Cells:
        cells = super().tree(tree.shape)  # its nodes are the inner ones of the other
        passed, size = self._passed(marks.split, tree), self.spec.sizes[0][0]
        return cells_from_nodes(passed, cells, frames=frames, frame_size=size, tiling=False)
