"""timm's rotary positions at the centres of cells of any size.

All of timm's variants rotate by angles that are linear in the position, so a coarse cell uses the
formula at its centre, half-way between the patches it merges (APT, Sec. 3: positions of merged
patches); for finest cells that is timm's table.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    RotaryEmbeddingMRope,
    _apply_coord_augs,
)
from torch import Tensor, nn

Grid = tuple[float | Tensor, float | Tensor]  # patches per axis; a row each for several images


class Rope(NamedTuple):
    """Rotates each row by its position; rows of special tokens stay as they are."""

    sin: Float[Tensor, "n #h e"]
    cos: Float[Tensor, "n #h e"]
    half: bool  # pairs (i, i + e/2) instead of (2i, 2i + 1)

    def __call__(self, x: Float[Tensor, "n h e"]) -> Float[Tensor, "n h e"]:
        """Rotates each head's channel pairs; the result has the dtype of `x`."""
        if self.half:
            low, high = x.chunk(2, -1)
            turned = torch.cat([-high, low], -1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return (x * self.cos + turned * self.sin).to(x.dtype)


def rotations(
    rope: Any, index: Float[Tensor, "n 2"], real: Tensor, grid: Grid, depth: int
) -> list[Rope]:
    """Returns one rotation per block, the same object for blocks that share it.

    Args:
        rope: timm's module.
        index: row and column of each packed row in units of patches, patch (0, 0) at 0.
        real: bool (n, 1), False for special tokens.
        grid: patches per axis at this image size, or at that of each row.
    """
    if isinstance(rope, RotaryEmbeddingMixed):
        index = _augmented(rope, index)  # once: blocks share the transform
        return [_turn(_mixed(rope, index, block), real, False) for block in range(depth)]
    for kind, angles in _ANGLES.items():
        if isinstance(rope, kind):
            half = getattr(rope, "rotate_half", True)  # MRoPE has no other layout
            return [_turn(angles(rope, index, grid)[:, None], real, half)] * depth
    raise AssertionError(type(rope))


def unsupported_rope(rope: nn.Module | None) -> str | None:
    """Says why these positions cannot be taken at the centres of cells, or returns None."""
    if rope is None or isinstance(rope, (RotaryEmbeddingMixed, *_ANGLES)):
        return None
    return f"rotary positions of type {type(rope).__name__}"


def _turn(angles: Float[Tensor, "n h pairs"], real: Tensor, half: bool) -> Rope:
    angles = torch.where(real[:, None], angles, 0.0)
    wide = torch.cat([angles, angles], -1) if half else angles.repeat_interleave(2, -1)
    return Rope(wide.sin(), wide.cos(), half)


def _ordered(rope: Any, pair: Any) -> Any:
    return tuple(pair)[::-1] if rope.grid_indexing == "xy" else tuple(pair)


def _coordinates(rope: Any, index: Tensor, grid: Grid, kind: str) -> Float[Tensor, "n 2"]:
    """Extends timm's `_build_grid` to any position; columns in the order of the indexing."""
    offset, columns = rope.grid_offset, []
    for axis, n in enumerate(grid):
        x = index[:, axis]
        if kind == "pixel":
            steps = (n - 1).clamp(min=1) if isinstance(n, Tensor) else max(n - 1.0, 1.0)
            x = -1 + x * (2 / steps)
        elif kind == "centered":
            x = (x + 0.5 + offset) / _side(grid, axis, rope.normalize_coords)
        else:
            x = x + offset
        reference = getattr(rope, "ref_feat_shape", None)
        columns.append(x if reference is None else x / n * reference[axis])
    out = torch.stack(_ordered(rope, columns), -1)
    return _augmented(rope, 2 * out - 1 if kind == "centered" else out)


def _side(grid: Grid, axis: int, which: str) -> float | Tensor:
    """Patches along an axis, or along the shorter ("min") or longer ("max") one."""
    if which == "separate":
        return grid[axis]
    first, second = grid
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.minimum(first, second) if which == "min" else torch.maximum(first, second)
    return min(grid) if which == "min" else max(grid)


def _augmented(rope: Any, position: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Shifts, stretches per axis and rescales positions at random in training, as timm does."""
    if not (rope.training and rope.aug_active):
        return position
    return _apply_coord_augs(position, rope.shift_coords, rope.jitter_coords, rope.rescale_coords)


def _axial(rope: Any, index: Tensor, grid: Grid) -> Float[Tensor, "n pairs"]:
    return (_coordinates(rope, index, grid, rope.grid_type)[..., None] * rope.bands).flatten(1)


def _dinov3(rope: Any, index: Tensor, grid: Grid) -> Float[Tensor, "n pairs"]:
    coordinates = _coordinates(rope, index, grid, "centered")
    return (2 * math.pi * coordinates[..., None] / rope.periods).flatten(1)


def _mrope(rope: Any, index: Tensor, grid: Grid) -> Float[Tensor, "n pairs"]:
    index = _augmented(rope, index)
    positions = torch.cat([torch.zeros_like(index[:, :1]), index], -1)
    return positions.index_select(-1, rope.axis) * rope.inv_freq


def _mixed(rope: Any, index: Tensor, block: int) -> Float[Tensor, "n h pairs"]:
    first, second = _ordered(rope, index.unbind(-1))
    frequency = rope.freqs[:, block].float()  # (2, heads, pairs)
    return first[:, None, None] * frequency[0] + second[:, None, None] * frequency[1]


_ANGLES: dict[type, Callable[[Any, Tensor, Grid], Tensor]] = {
    RotaryEmbeddingCat: _axial,
    RotaryEmbeddingDinoV3: _dinov3,
    RotaryEmbeddingMRope: _mrope,
}
