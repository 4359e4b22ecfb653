"""AViT: attention over time, then along each space axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adaptok.cells import Cells, Groups
from adaptok.processors.factorised import FactorisedTransformer, frame_groups, time_groups
from adaptok.registry import PROCESSORS


@PROCESSORS.register("axial")
class AxialTransformer(FactorisedTransformer):
    """Each cell attends to itself in other frames, then along every space axis, then an MLP.

    MATEY's AViT (Sec. 3, "AViT, SViT, and ViT"): the same queries, keys and values attend along
    each axis, and the results are averaged. On refined cells, which MATEY does not define, a token
    attends along an axis to the band, one coarsest cell wide, that its centre lies in. Needs a
    history of frames; one frame is allowed. An instance norm is over the tokens of a frame. For
    the arguments see `Transformer`.
    """

    def groups(self, cells: Cells) -> tuple[Groups, tuple[Groups, ...]]:
        """The tokens of a cell; and, per axis, the tokens of a frame that share a band along it."""
        return time_groups(cells), tuple(axis_groups(cells, a) for a in range(1, cells.ndim + 1))

    def norm_groups(self, cells: Cells, groups: Sequence[Any]) -> tuple[Groups, Groups]:
        """The tokens of a frame."""
        frames = frame_groups(cells)
        return frames, frames


def axis_groups(cells: Cells, axis: int) -> Groups:
    """Groups the tokens of a frame in the same band along one axis, one coarsest cell wide."""
    return cells.groups(fixed=[a for a in range(cells.ndim + 1) if a != axis]).nonempty
