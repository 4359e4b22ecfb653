"""Attention inside windows of equally many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, Groups, curve_keys, inverse_permutation, repeated, sorted_rows
from adaptok.cells.lengths import Lengths, common, offsets_of, offsets_tensor
from adaptok.layers.blocks import Block
from adaptok.processors.transformer import Place, Transformer
from adaptok.registry import PROCESSORS
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import Positive, checked


@PROCESSORS.register("windowed")
class WindowedTransformer(Transformer):
    """A ViT whose tokens attend inside windows of equally many tokens that lie close together.

    As the balls of a ball tree (Zhdanov et al., "Erwin", ICML 2025, Sec. 3), here on the cells'
    own order: a sample is cut into as few windows of equal numbers as hold
    `tokens_per_window` each, along the depth-first order of a tree (`curve_keys`). Every second
    block cuts another curve, shifted by a third of the domain and half a window, along which time
    runs first, so that what a token knows passes all borders. The cost is linear in the tokens.

    Args:
        tokens_per_window: most tokens of a window.
        options: see `Transformer`. An instance norm is over the tokens of a sample.
    """

    stacks: ClassVar = {"blocks": Block}
    reducible: ClassVar = False
    blocks: nn.ModuleList

    @checked
    def __init__(self, spec: TokenizerSpec, *, tokens_per_window: Positive = 128, **options: Any):
        super().__init__(spec, **options)
        self.tokens_per_window = tokens_per_window

    def run(self, x: Float[Tensor, "n d"], place: Place) -> tuple[Float[Tensor, "n d"], Place]:
        """Runs the blocks, in the one and the other windows by turns."""
        rows = place.rows
        for i, block in enumerate(self.blocks):
            x = block(self.placed(i, x, place), *rows[i % 2])
        return x, place

    def groups(self, cells: Cells) -> tuple[Groups, Groups]:
        """The windows of even and of odd blocks."""
        if cells.max_seqlen <= self.tokens_per_window:
            return cells.groups(), cells.groups()
        starts, longest, lengths = windows(cells, self.tokens_per_window)
        orders = (sorted_rows(curve_keys(cells, shifted=odd), cells) for odd in (False, True))
        plain, other = orders
        other = turned(other, cells, self.tokens_per_window)
        cut = (starts, longest, lengths)
        return tuple(Groups(o, inverse_permutation(o), *cut) for o in (plain, other))  # type: ignore[return-value]

    def norm_groups(self, cells: Cells, groups: Sequence[Any]) -> tuple[Groups, Groups]:
        """The tokens of a sample."""
        return cells.groups(), cells.groups()


def windows(cells: Cells, most: int) -> tuple[Int32[Tensor, " w1"], int, Lengths | None]:
    """Cuts the samples into windows, whose numbers of rows differ by at most one within a sample.

    Windows of unequal lengths are reported as unknown: kernels then pad them, by a row each.
    There are as many windows as the lengths can ask for at most; those not needed are empty.

    Returns:
        First row of each window and the number of rows, the longest window at most, and the lengths
        if they are all equal.
    """
    length, b, device = common(cells.lengths), cells.batch_size, cells.device
    if length is not None:
        count = max(-(-length // most), 1)
        if length % count == 0:
            lengths = repeated(length // count, b * count)
            return offsets_of(lengths, device), length // count, lengths
        own = offsets_tensor(tuple(i * length // count for i in range(count)), device)
        first = (cells.cu_seqlens[:-1, None] + own).flatten()
        return torch.cat([first, cells.cu_seqlens[-1:]]), -(-length // count), None
    lengths, counts = _counts(cells, most)
    last = counts.cumsum(0)
    number = torch.arange(cells.count // most + b, device=device)
    sample = torch.searchsorted(last, number, right=True).clamp(max=b - 1)
    rank = number - (last - counts)[sample]
    first = cells.cu_seqlens[sample] + rank * lengths[sample] // counts[sample].clamp(min=1)
    first = torch.where(number < last[-1:], first, cells.cu_seqlens[-1:])
    starts = torch.cat([first.int(), cells.cu_seqlens[-1:]])
    return starts, min(most, cells.max_seqlen), None


def _counts(cells: Cells, most: int) -> tuple[Int64[Tensor, " b"], Int64[Tensor, " b"]]:
    lengths = cells.cu_seqlens.diff().long()
    return lengths, (lengths + most - 1) // most


def turned(order: Int64[Tensor, " n"], cells: Cells, most: int) -> Int64[Tensor, " n"]:
    """Turns the order of each sample by half a window, its end in front of its beginning."""
    lengths, counts = _counts(cells, most)
    sample = cells.sample  # also of the places in an order
    start, own = cells.cu_seqlens[sample], lengths[sample].clamp(min=1)
    half = own // (2 * counts[sample].clamp(min=1))
    rank = torch.arange(cells.count, device=order.device) - start
    return order[start + (rank - half) % own]
