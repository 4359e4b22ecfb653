"""No position information, the control experiment."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.layers.positions.rotary import Rotary
from adaptok.registry import POSITIONS


@POSITIONS.register("none")
class NoPositions(nn.Module):
    """Tokens do not know where they are."""

    def forward(
        self, x: Float[Tensor, "n d"], cells: Cells, center: Float[Tensor, "n a"]
    ) -> tuple[Float[Tensor, "n d"], Rotary | None]:
        """Features as they are, and nothing that turns the queries and keys."""
        return x, None
