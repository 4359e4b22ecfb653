"""The common part of the processors with separate attention over time and space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from adaptok.cells import Cells, GridLayout, Groups
from adaptok.layers.blocks import AttentionBranch, Block
from adaptok.processors.transformer import Transformer


class FactorisedTransformer(Transformer):
    """Blocks of attention over time, attention over space, and an MLP; see `Transformer`."""

    attends_over_time = True
    needs_frames = True  # a history that is folded into channels leaves no time to attend to
    stacks: ClassVar = {"time": AttentionBranch, "space": Block}

    def merge_groups(self, cells: Cells, groups: Sequence[Any]) -> Groups:
        """The tokens of a frame."""
        return frame_groups(cells)


def frame_groups(cells: Cells) -> Groups:
    """Groups the tokens of each frame."""
    return cells.groups(fixed=(0,)).nonempty


def time_groups(cells: Cells) -> Groups:
    """Groups the tokens of the same cell in different frames.

    In a tiling, these are the tokens whose centres lie in the same cell of the finest grid: the
    same cell if all frames share a tiling; if each frame has its own, a coarse cell meets the fine
    cell in its middle. If cells overlap, only tokens of the same level meet.
    """
    space = range(1, cells.ndim + 1)
    if isinstance(cells.layout, GridLayout):  # the cells of a grid know their bands
        return cells.groups(fixed=space)
    finest = [cells.sizes[-1][axis] for axis in space]
    return cells.groups(fixed=space, pitch=finest, by_level=not cells.tiling).nonempty
