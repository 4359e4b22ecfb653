"""Persistence: tomorrow is like today."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.models.baselines.base import BASELINES
from adaptok.utils.arguments import Positive, checked


@BASELINES.register("persistence")
class Persistence(nn.Module):
    """Predicts no change; it has no weights and is not trained."""

    @checked
    def __init__(self, out_channels: Positive, predict: str):
        super().__init__()
        if predict != "delta":
            raise ValueError(f"persistence predicts a change of zero: predict=delta, not {predict}")
        self.out_channels = out_channels

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s"]:
        """Returns zeros, (b, out_channels, *space)."""
        return x.new_zeros(x.shape[0], self.out_channels, *x.shape[2:])
