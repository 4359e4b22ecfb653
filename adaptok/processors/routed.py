"""A ViT whose later blocks process the best tokens alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Len
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from adaptok.cells import Cells, Groups, sorted_rows
from adaptok.cells.lengths import Lengths, common, distinct, each, offsets_of, total
from adaptok.layers.blocks import Block
from adaptok.layers.norms import Segments
from adaptok.processors.transformer import Place, Rows, Transformer
from adaptok.registry import PROCESSORS
from adaptok.tokens import TokenizerSpec
from adaptok.utils.arguments import PositiveShare, checked
from adaptok.utils.precision import without_autocast
from adaptok.utils.reading import reads_are_free

Shares = PositiveShare | Annotated[Sequence[PositiveShare], Len(1)]


@PROCESSORS.register("routed")
class RoutedTransformer(Transformer):
    """A ViT in which one ranking of the tokens says who takes part in the later blocks.

    Skip-Block Routing (arXiv 2511.00032), a mixture of depths (Raposo et al., Sec. 3) with one
    router: s = MLP(x0) ranks the tokens of a sample once, before the first block. A block of share
    r processes the ``ceil(r n)`` best of n tokens, which attend among themselves,
    ``x + sigmoid(s) (block(x) - x)``; the others pass it by. A block of share 1 is one of `vit`.

    Args:
        shares: of the tokens that each block processes, one number for all blocks or one per
            block; the last of a shorter list goes for the blocks that remain.
        options: see `Transformer`.
    """

    stacks: ClassVar = {"blocks": Block}
    reducible: ClassVar = False
    blocks: nn.ModuleList

    @checked
    def __init__(
        self,
        spec: TokenizerSpec,
        *,
        shares: Shares = (1.0, 1.0, 0.75, 0.75, 0.5),
        **options: Any,
    ):
        super().__init__(spec, **options)
        listed = list(shares) if isinstance(shares, Sequence) else [shares]
        depth = len(self.blocks)
        self.shares = [float(share) for share in (listed + listed[-1:] * depth)[:depth]]
        self.router: nn.Sequential | None = None  # one that ranks for nobody has no gradient
        if any(share < 1 for share in self.shares):
            width = max(spec.dim // 4, 1)
            self.router = nn.Sequential(nn.Linear(spec.dim, width), nn.GELU(), nn.Linear(width, 1))

    def run(self, x: Float[Tensor, "n d"], place: Place) -> tuple[Float[Tensor, "n d"], Place]:
        """Runs the blocks on their shares of the tokens."""
        (every,), cells = place.rows, place.cells
        if self.router is None:
            return super().run(x, place)
        with without_autocast(x):  # half precision would make ties
            score = self.router(x.to(next(self.router.parameters()).dtype)).squeeze(1)
        gate, order = score.sigmoid(), sorted_rows(score.detach(), cells, descending=True)
        chosen: dict[float, tuple[Tensor, Tensor, Rows]] = {}
        for i, (block, share) in enumerate(zip(self.blocks, self.shares, strict=True)):
            x = self.placed(i, x, place)
            if share == 1:
                x = block(x, *every)
                continue
            if share not in chosen:
                best, real, groups = best_rows(order, cells, share)
                chosen[share] = best, gate[best] * real, rows_of(every, best, groups)
            best, scale, own = chosen[share]
            before = x[best]
            change = (block(before, *own) - before) * scale[:, None]
            x = x.index_add(0, best, change.to(x.dtype))
        return x, place

    def groups(self, cells: Cells) -> tuple[Groups]:
        """The tokens of a sample."""
        return (cells.groups(),)

    def norm_groups(self, cells: Cells, groups: Sequence[Any]) -> Sequence[Groups]:
        """The tokens of a sample that a block processes."""
        return groups


def best_rows(
    order: Int64[Tensor, " n"], cells: Cells, share: float
) -> tuple[Int64[Tensor, " m"], Bool[Tensor, " m"], Groups]:
    """Lists the rows that lead the ranking of each sample, ``ceil(share * n)`` of its n.

    If the host does not know the numbers, there are as many rows as there can be at most, filled up
    with row 0 in a last group of its own; the mask says which are real.

    Args:
        order: rows sample after sample, the best first.
    """
    lengths = known_lengths(cells)
    if lengths is not None:
        kept = each(lengths, lambda n: best_of(n, share))
        count, ends = total(kept), offsets_of(kept, order.device)
        numbers = ends.diff()
        groups = Groups(None, None, ends, max(distinct(kept), default=0), kept)
        longest = common(kept)
        if longest is not None:
            rows = order.unflatten(0, (cells.batch_size, -1))[:, :longest].flatten()
            return rows, torch.ones_like(rows, dtype=torch.bool), groups
    else:
        # ceil(share * n) is below share * n + 1 for each sample.
        count = min(cells.count, int(share * cells.count) + cells.batch_size)
        numbers = (cells.cu_seqlens.diff().double() * share - SLACK).ceil().long()
        ends = torch.nn.functional.pad(numbers.cumsum(0, dtype=torch.int32), (1, 0))
        last = torch.full_like(ends[:1], count)
        most = max(best_of(cells.max_seqlen, share), cells.batch_size)  # of the filler
        groups = Groups(None, None, torch.cat([ends, last]), most, None)
    # `order` holds sample after sample, so that a place in it has the sample of this row.
    sample, place = cells.sample, torch.arange(cells.count, device=order.device)
    rank = place - cells.cu_seqlens[sample]
    slot = torch.where(rank < numbers[sample], ends[sample] + rank, count)
    rows = order.new_zeros(count + 1).scatter(0, slot, order)[:count]
    real = torch.arange(count, device=order.device) < ends[cells.batch_size]
    return rows, real, groups


SLACK = 1e-9  # so that 0.1 * 10 and its like, rounded up, are the whole number meant


def best_of(count: int, share: float) -> int:
    """Number of tokens that a share of some comes to, rounded up."""
    return math.ceil(count * share - SLACK)


def known_lengths(cells: Cells) -> Lengths | None:
    """Rows per sample, read where that is free."""
    if cells.lengths is None and reads_are_free(cells.cu_seqlens):
        return tuple(cells.cu_seqlens.diff().tolist())
    return cells.lengths


def rows_of(every: Rows, index: Int64[Tensor, " m"], groups: Groups) -> Rows:
    """What layers are called with for some of the rows."""
    turned, bias = every.rotate, every.key_bias
    return Rows(
        groups,
        None if turned is None else turned.rows(index),
        every.sample[index],
        every.samples,
        None if every.segments is None else Segments.of(groups, index.shape[0]),
        None if bias is None else bias[index],
    )
