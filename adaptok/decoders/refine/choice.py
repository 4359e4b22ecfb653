"""Which blocks of grid points are refined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from adaptok.cells import product, repeated
from adaptok.cells.lengths import total
from adaptok.decoders.refine.blocks import Blocks, block_tree
from adaptok.layers.boundary import Boundary, codes_of_frames
from adaptok.registry import INDICATORS, MARKINGS, Part
from adaptok.tokenizers.asked import check_marks, check_scores, learns
from adaptok.tokenizers.ignoring import Ignore, IgnoresChannels, as_ignore, only
from adaptok.tokenizers.indicators import relative_errors
from adaptok.tokenizers.marking import top_mask
from adaptok.tokenizers.marking.base import finite
from adaptok.tokens import TokenizerSpec
from adaptok.tree import Tree, true_entries


class BlockChoice(IgnoresChannels, nn.Module):
    """Chooses blocks by their scores: a share of them, or by one of the other three rules.

    Each frame is scored and chosen from alone. The choice is piecewise constant, so no gradient
    goes through it.

    Args:
        spec: specification of the tokenizer.
        indicator: scores blocks.
        block: grid points of a block per axis.
        share: of the blocks.
        points: at most this many grid points per frame.
        tolerance: the fewest blocks that leave out at most this share of the summed scores.
        marking: chooses the blocks that it splits.
        ignore: channels that the indicator does not see.

    Raises:
        ValueError: several rules, or fewer points than a block has.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        indicator: Part,
        *,
        block: int,
        share: float,
        points: int | None = None,
        tolerance: float | None = None,
        marking: Part | None = None,
        ignore: Ignore = "constants",
    ):
        super().__init__()
        rules = {"points": points, "tolerance": tolerance, "marking": marking}
        given = [name for name, value in rules.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"the points are chosen by one rule, got {' and '.join(given)}")
        ndim = spec.ndim
        if points is not None and points < block**ndim:
            raise ValueError(
                f"points={points} leaves none: a block has {block}^{ndim} = {block**ndim} points"
            )
        self.spec = spec
        sizes = tuple((1, *size) for size in block_tree((block,) * ndim, block).sizes)
        wired = {"in_channels": spec.in_channels, "sizes": sizes}
        self.indicator = INDICATORS.build(indicator, **wired)
        self.marking = None if marking is None else MARKINGS.build(marking)
        self.block, self.share, self.points, self.tolerance = block, share, points, tolerance
        self.ignore = as_ignore(ignore)

    @property
    def static(self) -> bool:
        """Whether the number of points follows from the shape of the field alone."""
        return self.tolerance is None and getattr(self.marking, "static", self.marking is None)

    def forward(self, scored: Float[Tensor, "b t c *s"], boundary: Boundary) -> Blocks:
        """Scores every frame and chooses.

        A number that depends on the content (`static` is False) costs one synchronisation.

        Raises:
            ValueError: an indicator or marking that breaks its promise, or a program is exported
                of a number that depends on the content.
        """
        if torch.compiler.is_exporting() and not self.static:
            raise ValueError(
                "decoder 'refine' chooses as many points as the content asks for, and an exported "
                "program has a fixed number: use share=... or points=..."
            )
        scores, tree = self.scores(scored, boundary)
        with torch.no_grad():
            chosen, count = self._chosen(scores.detach(), tree, scored)
            entries = chosen.flatten()
            index = entries.nonzero().squeeze(1) if count is None else true_entries(entries, count)
        return Blocks(index, tree.shape, self.block)

    def scores(
        self, scored: Float[Tensor, "b t c *s"], boundary: Boundary
    ) -> tuple[Float[Tensor, "f g"], Tree]:
        """Scores the blocks of every frame, and returns the tree that numbers them."""
        field, boundary, given = self.as_scored(scored, boundary)
        tree = self.tree(field.shape[3:])
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns(self.indicator)):
            scores = self.indicator(field, tree, boundary=boundary, **given)
        check_scores(scores, (field.shape[0], tree.inner), self.indicator)
        return scores, tree

    def tree(self, space: Sequence[int]) -> Tree:
        """Returns the tree whose inner nodes are the blocks of a domain."""
        return block_tree(space, self.block)

    def as_scored(
        self, field: Float[Tensor, "b t c *s"], boundary: Boundary
    ) -> tuple[Float[Tensor, "f 1 k *s"], Boundary, dict[str, Any]]:
        """Returns what the indicator is called with, see `TreeTokenizer.as_scored`; each frame is a
        sample.
        """
        boundary = codes_of_frames(boundary, field.shape[1])
        seen, given = self.seen(field.shape[2]), {}
        if getattr(self.indicator, "sees_all", False):
            given["seen"] = seen
        else:
            field = only(field, seen)
        return field.flatten(0, 1).unsqueeze(1), boundary, given

    def _chosen(
        self, scores: Float[Tensor, "f g"], tree: Tree, scored: Float[Tensor, "b t c *s"]
    ) -> tuple[Bool[Tensor, "f g"], int | None]:
        """The chosen blocks, and their number if the host knows it."""
        frames, blocks = scores.shape
        if self.marking is not None:
            return self._marked(scores, tree, scored)
        scores = finite(scores[:, None])[:, 0]
        if self.tolerance is not None:
            return within(scores, self.tolerance), None
        count = round(self.share * blocks)
        if self.points is not None:
            count = self.points // self.block ** len(tree.shape)
        count = min(max(count, 1), blocks)
        return top_mask(scores, repeated(count, frames)), count * frames

    def _marked(
        self, scores: Float[Tensor, "f g"], tree: Tree, scored: Float[Tensor, "b t c *s"]
    ) -> tuple[Bool[Tensor, "f g"], int | None]:
        assert self.marking is not None
        whole = block_tree([n * self.block for n in tree.grids[0]], self.block)
        hints = {"monotone": getattr(self.indicator, "monotone", False), "shared": 1}
        if getattr(self.marking, "needs_errors", False):
            field = only(scored, self.seen(scored.shape[2])).flatten(0, 1).unsqueeze(1)
            errors = getattr(self.indicator, "errors", relative_errors)
            hints["errors"] = errors(field, tree)[:, None]
        marks = self.marking(scores[:, None], whole, **hints)
        check_marks(marks, (scores.shape[0], 1, scores.shape[1]), self.marking)
        leaves = marks.total if marks.lengths is None else total(marks.lengths)
        if leaves is None:
            return marks.split[:, 0], None
        more = product(whole.ratios[0]) - 1  # leaves that a split adds
        return marks.split[:, 0], (leaves - scores.shape[0] * scores.shape[1]) // more


def within(scores: Float[Tensor, "f g"], tolerance: float) -> Bool[Tensor, "f g"]:
    """The fewest entries of each row such that those left out hold at most a share of its sum."""
    scores = scores.double().clamp(min=0)
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    left = ranked.flip(1).cumsum(1).flip(1)  # what is left out before the entry of this rank
    taken = left > tolerance * left[:, :1]
    return torch.zeros_like(taken).scatter(1, order, taken)
