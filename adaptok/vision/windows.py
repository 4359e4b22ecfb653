"""Window attention (ViTDet) as a grouping of cells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from adaptok.cells import Cells, Groups


def check_window(
    window: int | None,
    global_blocks: Iterable[int],
    sizes: tuple[tuple[int, ...], ...],
    depth: int,
) -> tuple[int, ...]:
    """Returns the numbers of the blocks without windows, counted from the first.

    Args:
        sizes: of cells, coarse to fine.
        depth: number of blocks.

    Raises:
        ValueError: a block that does not exist, or windows that are no whole multiples of the
            coarsest cell. Of those each cell lies in one window, and windows are the same regions
            for all tilings.
    """
    coarsest = sizes[0][1:]
    if window is not None and (window < 1 or any(window % size for size in coarsest)):
        raise ValueError(
            f"window must be a multiple of the coarsest cell {coarsest} in pixels, got {window}"
        )
    given = tuple(global_blocks)
    if any(not -depth <= i < depth for i in given):
        raise ValueError(f"the model has {depth} blocks, got global_blocks {given}")
    return tuple(i % depth for i in given)


def check_reach(model: Any, global_pool: str) -> None:
    """Raises ``ValueError`` if an adapted model would read a class token that sees no cell.

    Args:
        global_pool: pooling of the head, the present one or another.
    """
    distilled = getattr(model, "dist_token", None) is not None
    reads = distilled or (global_pool == "token" and model.attn_pool is None)
    blind = model.window is not None and not model.global_blocks
    if reads and blind:
        raise ValueError(
            "window cuts the class token off: in windowed blocks special tokens attend among "
            "themselves, so with no global block every image has the same logits. Give "
            "global_blocks, another global_pool, or, for dense features alone, a model without a "
            "head: model.reset_classifier(0, '')"
        )


def window_groups(cells: Cells, packed: Groups, prefix: int, window: int) -> Groups:
    """Groups rows in the order of `packed`: one group per window and one per image's prefix.

    Special tokens belong to no window: in windowed blocks they attend among themselves.
    """
    own = cells.groups(fixed=(1, 2), pitch=(window, window))
    assert own.order is not None
    special = cells.batch_size * prefix
    offsets = own.cu_seqlens
    order, lengths = own.order, own.lengths
    if prefix:
        ahead = torch.arange(special, device=cells.device)
        order = torch.cat([ahead, order + special])
        starts = torch.arange(0, special, prefix, device=cells.device, dtype=offsets.dtype)
        offsets = torch.cat([starts, offsets + special])
        # A batch of any size, in a program that is exported, has no lengths of two kinds.
        known = isinstance(lengths, tuple)
        lengths = (prefix,) * cells.batch_size + lengths if known else None
    if packed.inverse is not None:
        order = packed.inverse[order]
    rows = torch.arange(order.shape[0], device=cells.device)
    inverse = torch.empty_like(order).scatter_(0, order, rows)
    return Groups(order, inverse, offsets, max(prefix, own.max_seqlen), lengths)
