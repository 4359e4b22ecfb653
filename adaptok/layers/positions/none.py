"""The control experiment without position information."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.layers.positions.rotary import Rotary
from adaptok.registry import POSITIONS


@POSITIONS.register("none")
class NoPositions(nn.Module):
    """Gives tokens no position information."""

    def forward(
        self, x: Float[Tensor, "n d"], cells: Cells, center: Float[Tensor, "n a"]
    ) -> tuple[Float[Tensor, "n d"], Rotary | None]:
        """Unchanged features, and None (no rotation)."""
        return x, None
