"""Where each token of the beginning is now, and its feature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from adaptok.processors.reducers.sequences import Reduction


class Trail(NamedTuple):
    """Follows tokens through reductions.

    Attributes:
        row: where each original token went; None before the first reduction.
        alive: which of them were not dropped; None if none was.
        last: features that dropped tokens had then.
    """

    row: Int64[Tensor, " n"] | None = None
    alive: Bool[Tensor, " n"] | None = None
    last: Float[Tensor, "n d"] | None = None

    def after(self, reduction: Reduction, before: Float[Tensor, "k d"], drops: bool) -> Trail:
        """Follows one reduction.

        Args:
            before: features that it got.
            drops: whether it may have dropped rows.
        """
        target = reduction.target
        row = target if self.row is None else target[self.row]
        if not drops:
            return self._replace(row=row)
        gone = row == reduction.kept.shape[0]
        old = before if self.row is None else before[self.row]
        if self.alive is None or self.last is None:
            return Trail(row.masked_fill(gone, 0), ~gone, old)
        # What was dropped before has followed row 0 since: it is not alive, whatever became of it.
        last = torch.where((gone & self.alive)[:, None], old, self.last)
        return Trail(row.masked_fill(gone, 0), self.alive & ~gone, last)

    def unmerge(self, x: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
        """Gives each original token the feature of the one that it is part of, or its last."""
        full = x if self.row is None else x[self.row]
        if self.alive is None or self.last is None:
            return full
        return torch.where(self.alive[:, None], full, self.last.to(full.dtype))
