"""Rotary embedding of the cells' centres."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells import Cells
from adaptok.registry import POSITIONS
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import Base, Positive, checked


class Rotary(NamedTuple):
    """Cosines and sines per row and rotated channel pair; compute once per forward."""

    cos: Tensor  # float (n, pairs)
    sin: Tensor  # float (n, pairs)
    head_dim: int  # of queries and keys; the pairs may be fewer than it has

    def __call__(self, x: Float[Tensor, "n h e"]) -> Float[Tensor, "n h e"]:
        """Rotates the channel pairs (2i, 2i + 1) of each head; channels beyond the pairs stay.

        Raises:
            ValueError: heads of another width than the positions were made for.
        """
        if x.shape[-1] != self.head_dim:
            raise ValueError(
                f"these rotary positions are for heads of {self.head_dim} channels, "
                f"got {x.shape[-1]}: give head_dim={x.shape[-1]}"
            )
        pairs = self.cos.shape[1]
        even, odd = x[..., : 2 * pairs].unflatten(-1, (pairs, 2)).unbind(-1)
        cos, sin = self.cos[:, None].to(x.dtype), self.sin[:, None].to(x.dtype)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
        return torch.cat([turned, x[..., 2 * pairs :]], -1)

    def rows(self, index: Tensor) -> Rotary:
        """Rotation of some rows: a mask or indices."""
        return self._replace(cos=self.cos[index], sin=self.sin[index])


def rotary(
    center: Float[Tensor, "n a"], shape: tuple[int, ...], head_dim: int, base: float = 10000.0
) -> Rotary:
    """Axial rotary embedding of positions in grid points (RoPE; axial form as in IAP, Sec. 2).

    Axes of extent 1 in `shape` take no channels; the others share the pairs equally. Leftover
    channels are not rotated.

    Raises:
        ValueError: the head is too narrow to give each axis a pair.
    """
    axes = [axis for axis, extent in enumerate(shape) if extent > 1]
    pairs = pairs_per_axis(len(axes), head_dim) if axes else 0
    steps = torch.arange(pairs, device=center.device, dtype=torch.float32)
    frequency = base ** (-steps / max(pairs, 1))
    angles = (center[:, axes, None].float() * frequency).flatten(1)  # (n, axes * pairs)
    return Rotary(angles.cos(), angles.sin(), head_dim)


def pairs_per_axis(axes: int, head_dim: int) -> int:
    """Number of channel pairs of each axis.

    Raises:
        ValueError: the head is too narrow to give each axis a pair.
    """
    if head_dim < 2 * axes:
        raise ValueError(
            f"rotary positions on {axes} axes need head_dim >= {2 * axes}, got {head_dim}"
        )
    return head_dim // 2 // axes


@POSITIONS.register("rotary")
class RotaryPositions(nn.Module):
    """Rotates queries and keys by their cell's centre; attention depends on relative positions.

    Args:
        spec: specification of the tokenizer.
        head_dim: width of a head.
        rope_base: base of the frequencies.

    Raises:
        ValueError: the head is too narrow to give each space axis a pair.
    """

    @checked
    def __init__(self, spec: TokenizerSpec, head_dim: Positive, rope_base: Base):
        super().__init__()
        pairs_per_axis(spec.ndim, head_dim)  # raises here, not in the first forward
        self.head_dim, self.rope_base = head_dim, rope_base

    def forward(
        self, x: Float[Tensor, "n d"], cells: Cells, center: Float[Tensor, "n a"]
    ) -> tuple[Float[Tensor, "n d"], Rotary | None]:
        """Unchanged features, and the rotation of queries and keys."""
        return x, rotary(center, common_shape(cells), self.head_dim, self.rope_base)


def common_shape(cells: Cells) -> tuple[int, ...]:
    """Returns a shape whose axes longer than 1 are those of every sample; raises ``ValueError`` if
    samples differ in them.
    """
    if cells.mixed is None:
        return cells.shape
    if len({tuple(n > 1 for n in shape) for shape in cells.mixed}) > 1:
        raise ValueError(f"these positions need samples with the same axes, got {cells.mixed}")
    return cells.mixed[0]
