"""SViT: attention over time, then over space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptok.cells import Cells, Groups
from adaptok.processors.factorised import FactorisedTransformer, frame_groups, time_groups
from adaptok.registry import PROCESSORS


@PROCESSORS.register("spacetime")
class SpaceTimeTransformer(FactorisedTransformer):
    """Each cell attends to itself in other frames, then to all cells of its frame, then an MLP.

    MATEY's SViT (Sec. 3, "AViT, SViT, and ViT"; ViViT's factorised self-attention). Needs a
    history of frames; one frame is allowed. An instance norm is over the tokens that attend to one
    another. For the arguments see `Transformer`.
    """

    def groups(self, cells: Cells) -> tuple[Groups, Groups]:
        """The tokens of a cell, and those of a frame."""
        return time_groups(cells), frame_groups(cells)

    def norm_groups(self, cells: Cells, groups: Sequence[Any]) -> Sequence[Groups]:
        """The tokens that attend to one another."""
        return groups
