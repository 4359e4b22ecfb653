"""Which images of different size go into one packed batch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from adaptok.cells import product
from adaptok.patches import level_grid
from adaptok.tokenizers.base import per_axis


def pack(
    images: Sequence[int] | Sequence[Tensor],
    budget: int,
    *,
    patch: int | Sequence[int] | None = None,
) -> list[list[int]]:
    """Groups images so that no group has more tokens than a budget (NaViT: Dehghani et al., arXiv
    2307.06304, Sec. 2.1), by first fit with the largest images first.

    Args:
        images: tokens of each image (such as ``model.tiling(images).lengths``; add class and
            register tokens for a budget that counts them), or the images (c, h, w) themselves.
        budget: tokens per group.
        patch: side of the finest cells in pixels. Images count one token per such cell, the most
            that they can have.

    Returns:
        groups: indices in ascending order, each index once; the same for the same input.

    Raises:
        ValueError: an image above the budget, by its index; images without `patch`, or anything
            else that is not a positive whole number.
    """
    if not isinstance(budget, Integral) or isinstance(budget, bool) or int(budget) < 1:
        raise ValueError(f"budget is a positive whole number, got {budget!r}")
    counts = [_count(i, image, patch) for i, image in enumerate(images)]
    groups: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(counts)), key=lambda i: -counts[i]):  # stable: ties by index
        if counts[i] > budget:
            raise ValueError(f"image {i} has {counts[i]} tokens, above the budget of {budget}")
        fits = next((g for g, left in enumerate(room) if left >= counts[i]), None)
        if fits is None:
            fits = len(groups)
            groups.append([])
            room.append(int(budget))
        groups[fits].append(i)
        room[fits] -= counts[i]
    return [sorted(group) for group in groups]


def _count(i: int, image: Any, patch: int | Sequence[int] | None) -> int:
    if isinstance(image, Tensor) and image.ndim == 3:
        if patch is None:
            raise ValueError("images need patch=, the side of the finest cells in pixels")
        return product(level_grid(tuple(image.shape[1:]), per_axis(patch, 2, "patch")))
    if isinstance(image, Integral) and not isinstance(image, bool) and int(image) >= 1:
        return int(image)
    given = tuple(image.shape) if isinstance(image, Tensor) else repr(image)
    raise ValueError(f"number {i} is neither a count of tokens nor an image (c, h, w): {given}")
