"""Images that were padded to one batch, as detectors pad them: without tokens for the padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.utils.arguments import shown


def unpadded(
    images: Float[Tensor, "b c h w"],
    sizes: Sequence[Sequence[int]],
    patch: tuple[int, ...],
    least: tuple[int, ...],
) -> list[Float[Tensor, "c _ _"]]:
    """Cuts each image of a batch to its real part, up to the next whole patch.

    Args:
        sizes: height and width of the real part of each image, at its top left.
        patch: sides of a patch; no real pixel is cut, so that a few padded ones may stay.
        least: sides below which no image is cut.

    Raises:
        ValueError: another number of sizes, or one that the batch cannot hold.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError(f"a padded batch is (b, c, height, width), got {shown(images)}")
    sizes = [tuple(int(n) for n in size) for size in sizes]
    if len(sizes) != len(images):
        raise ValueError(f"{len(images)} images need as many sizes, got {len(sizes)}")
    full, parts = tuple(images.shape[2:]), []
    for i, (image, size) in enumerate(zip(images, sizes, strict=True)):
        if len(size) != 2 or not all(0 < n <= most for n, most in zip(size, full, strict=True)):
            raise ValueError(f"image {i} of a batch of {full} cannot have the real size {size}")
        rounded = (-(-n // p) * p for n, p in zip(size, patch, strict=True))
        bounded = zip(rounded, least, full, strict=True)
        height, width = (min(max(n, low), most) for n, low, most in bounded)
        parts.append(image[:, :height, :width])
    return parts


def pad_maps(
    maps: Sequence[Float[Tensor, "d _ _"]], grid: tuple[int, int] | None = None
) -> Float[Tensor, "b d gh gw"]:
    """Stacks maps of different size, with zeros below and to the right.

    Args:
        grid: points of the result per axis; by default the most of any map.

    Raises:
        ValueError: no map, or one larger than the grid.
    """
    if not maps:
        raise ValueError("no maps to stack")
    most = tuple(max(one.shape[axis] for one in maps) for axis in (1, 2))
    height, width = most if grid is None else grid
    if most[0] > height or most[1] > width:
        raise ValueError(f"maps of up to {most} points do not fit a grid of {(height, width)}")
    sides = [(0, width - one.shape[2], 0, height - one.shape[1]) for one in maps]
    pairs = zip(maps, sides, strict=True)
    return torch.stack([torch.nn.functional.pad(one, side) for one, side in pairs])
