"""Another baseline at a lower resolution: what is left if small scales are given up everywhere."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from adaptok.models.baselines.base import BASELINES
from adaptok.registry import Part
from adaptok.utils.arguments import Dimensions, Positive, checked

MODES = ("linear", "bilinear", "trilinear")


@BASELINES.register("lower_resolution")
class LowerResolution(nn.Module):
    """Averages the fields over blocks, predicts with another baseline, and interpolates the result.

    Args:
        factor: grid points per block and axis.
        base: the baseline that sees the averages, a name or a mapping of "name" and knobs.
    """

    @checked
    def __init__(
        self,
        ndim: Dimensions,
        in_channels: Positive,
        out_channels: Positive,
        periodic: tuple[bool, ...],
        shape: tuple[int, ...] | None,
        predict: str,
        *,
        factor: Positive = 2,
        base: Part = "unet",
    ):
        super().__init__()
        if predict != "delta":
            raise ValueError(
                f"lower_resolution interpolates a change, so that the field keeps its small "
                f"scales: predict=delta, not {predict}"
            )
        self.ndim, self.factor = ndim, factor
        wired: dict[str, Any] = {
            "ndim": ndim,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "periodic": periodic,
            "predict": predict,
            "shape": None if shape is None else tuple(-(-n // factor) for n in shape),
        }
        self.base = BASELINES.build(base, **wired)

    def forward(self, x: Float[Tensor, "b c *s"]) -> Float[Tensor, "b o *s"]:
        """Returns the change on the grid of the input; incomplete blocks count their points."""
        pool = getattr(nn.functional, f"avg_pool{self.ndim}d")
        coarse = pool(x, self.factor, ceil_mode=True)
        out = self.base(coarse)
        return nn.functional.interpolate(out, size=x.shape[2:], mode=MODES[self.ndim - 1])
