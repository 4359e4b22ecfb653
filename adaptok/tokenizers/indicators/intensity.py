"""What the indicators of APT look at: gray values or channels, and the range they live in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LUMA = (0.2989, 0.5870, 0.1140)  # the sum of 0.9999 is the reference's
COLORS = ("gray", "channels")


class Intensity:
    """Maps of a field that an image indicator scores, and the value range they are measured in.

    Args:
        color: "gray" (0.2989 R + 0.5870 G + 0.1140 B; one channel is gray already), "channels"
            (each channel by itself), or None: gray of 1 or 3 channels, else each channel.
        value_range: lowest and highest value, or None for the range of each map of each sample.
    """

    def __init__(self, color: str | None, value_range: Sequence[float] | None):
        if color is not None and color not in COLORS:
            raise ValueError(f"color must be one of {', '.join(COLORS)} or None, got {color!r}")
        if value_range is not None and (
            len(value_range) != 2 or not value_range[0] < value_range[1]
        ):
            raise ValueError(f"value_range is (lowest, highest) or None, got {value_range!r}")
        self.color = color
        self.value_range = None if value_range is None else (*map(float, value_range),)

    def maps(self, field: Float[Tensor, "b t c *s"]) -> Float[Tensor, "b t m *s"]:
        """One map (gray) or one per channel, at least float32.

        Raises:
            ValueError: gray of a number of channels other than 1 or 3.
        """
        x = field.detach()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        channels = x.shape[2]
        if self.color == "channels" or channels == 1 or (self.color is None and channels != 3):
            return x
        if channels != 3:
            raise ValueError(
                f"color 'gray' needs 1 or 3 channels, the field has {channels}; "
                "use color='channels'"
            )
        gray = x[:, :, 0] * LUMA[0]  # left to right in this order: bins depend on the last bit
        gray += x[:, :, 1] * LUMA[1]
        gray += x[:, :, 2] * LUMA[2]
        return gray.unsqueeze(2)

    def limits(self, maps: Float[Tensor, "b t m *s"]) -> tuple[float | Tensor, float | Tensor]:
        """Lowest value and width of the range, broadcastable; the width is never 0."""
        if self.value_range is not None:
            low, high = self.value_range
            return low, high - low
        axes = (1, *range(3, maps.ndim))  # the frames of a sample share their range
        low, high = maps.amin(axes, keepdim=True), maps.amax(axes, keepdim=True)
        return low, (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
