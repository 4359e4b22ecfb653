"""Sinusoids of the cells' centres, added to the tokens."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.layers.positions.rotary import Rotary, common_shape
from adaptok.registry import POSITIONS
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import checked


def sinusoid(
    center: Float[Tensor, "n a"], shape: tuple[int, ...], unit: tuple[int, ...], dim: int
) -> Float[Tensor, "n dim"]:
    """``[sin(c w), cos(c w)]`` per axis, with c in units of `unit` and frequencies w from 1 to
    1e-4, spaced logarithmically (the encoding of Vaswani et al. as in fairseq; Quadformer).

    The last axis comes first (x, y, then time), and each has an equal share of the channels; what
    is left over is 0. Axes of extent 1 in `shape` take no channels.

    Args:
        center: time first, in grid points.
        shape: extent of the domain, time first.
        unit: grid points per unit, time first.
        dim: channels.

    Raises:
        ValueError: too few channels to give each axis a pair.
    """
    axes = [axis for axis, extent in reversed([*enumerate(shape)]) if extent > 1]
    pairs = sinusoid_pairs(len(axes), dim)
    if not axes:
        return center.new_zeros(center.shape[0], dim)
    step = -math.log(1e4) / max(pairs - 1, 1)
    frequency = (torch.arange(pairs, device=center.device) * step).exp()
    parts = []
    for axis in axes:
        angle = (center[:, axis, None].float() / unit[axis]) * frequency
        parts += [angle.sin(), angle.cos()]
    found = torch.cat(parts, 1)
    return torch.nn.functional.pad(found, (0, dim - found.shape[1]))


def sinusoid_pairs(axes: int, dim: int) -> int:
    """Returns the pairs of channels of each axis; raises ``ValueError`` if there are none."""
    if dim < 2 * axes:
        raise ValueError(
            f"sinusoid positions on {axes} axes need a dim of at least {2 * axes}, got {dim}"
        )
    return dim // 2 // max(axes, 1)


@POSITIONS.register("sinusoid")
class SinusoidPositions(nn.Module):
    """Adds sinusoids of the centre, in units of the finest cell, once before the blocks
    (Quadformer); the size of a cell is not told.

    Args:
        spec: specification of the tokenizer; its dim has two channels per space axis (and, of a
            history of frames, two for time).

    Raises:
        ValueError: a dim that is too small.
    """

    @checked
    def __init__(self, spec: TokenizerSpec):
        super().__init__()
        sinusoid_pairs(spec.ndim, spec.dim)  # raises here, not in the first forward

    def forward(
        self, x: Float[Tensor, "n d"], cells: Cells, center: Float[Tensor, "n a"]
    ) -> tuple[Float[Tensor, "n d"], Rotary | None]:
        """Features plus sinusoids, and None (no rotation)."""
        place = sinusoid(center, common_shape(cells), cells.sizes[-1], x.shape[1])
        return x + place.to(x.dtype), None
