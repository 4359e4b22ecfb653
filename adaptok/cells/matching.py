"""Which cells were there before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int64
from torch import Tensor

if TYPE_CHECKING:
    from adaptok.cells.cells import Cells


def matching_rows(cells: Cells, previous: Cells) -> Int64[Tensor, " n"]:
    """Finds the row of the same box of the same sample among previous cells, -1 if there is none.

    One sort and one search, with static shapes and without waiting for the device.

    Raises:
        ValueError: cells of other samples.
    """
    if (cells.batch_size, cells.shapes) != (previous.batch_size, previous.shapes):
        raise ValueError(
            f"cells of the same samples match, these are for {cells.batch_size} of "
            f"{cells.shapes[:1]} and {previous.batch_size} of {previous.shapes[:1]}"
        )
    here, there = _boxes(cells), _boxes(previous)
    if len(there) == 0:
        return torch.full((len(here),), -1, device=cells.device)
    code, order = _codes(there, cells).sort(stable=True)
    place = torch.searchsorted(code, _codes(here, cells)).clamp(max=len(there) - 1)
    row = order[place]
    return torch.where((there[row] == here).all(1), row, -1)


def _boxes(cells: Cells) -> Int64[Tensor, "n k"]:
    return torch.cat([cells.sample[:, None], cells.origin.long(), cells.size.long()], 1)


def _codes(boxes: Int64[Tensor, "n k"], cells: Cells) -> Int64[Tensor, " n"]:
    """One number per box. Different boxes have different ones unless they overflow, which costs a
    match and makes no wrong one.
    """
    coarsest = cells.sizes[0]
    longest = [max(axis) for axis in zip(*cells.shapes, strict=True)]
    # Cells may stick out by less than a coarsest cell on each side.
    spans = [n + 2 * size for n, size in zip(longest, coarsest, strict=True)]
    code = boxes[:, 0]
    for column, span in enumerate((*spans, *spans), 1):
        code = code * span + boxes[:, column]
    return code
