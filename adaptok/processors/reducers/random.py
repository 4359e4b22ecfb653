"""Random dropping, the control experiment."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from adaptok.cells.lengths import distinct, number
from adaptok.processors.reducers.base import PerBlock, Reduced, Reducer, Seen, per_block
from adaptok.processors.reducers.sequences import in_order, largest
from adaptok.registry import REDUCERS
from adaptok.utils.arguments import Depth, Seed, checked
from adaptok.utils.constants import cached_constant


@REDUCERS.register("random")
class RandomDropping(Reducer):
    """Drops `r` random tokens per block: the control experiment of any reducer.

    Which places of a sequence are dropped depends on the seed alone, so that a batch equals its
    samples; in training they are drawn anew from torch's generator.

    Args:
        depth: number of blocks.
        r: tokens that each block takes away, see `ToMe`.
        seed: of what is dropped in evaluation.

    Raises:
        ValueError: more numbers than blocks, or none that is a count.
    """

    drops = True

    @checked
    def __init__(self, depth: Depth, *, r: PerBlock = 8, seed: Seed = 0):
        super().__init__(depth)
        self.r, self.seed = per_block(r, depth), int(seed)

    def acts(self, block: int) -> bool:
        """Whether `r` is above 0 there."""
        return self.r[block] > 0

    def forward(self, seen: Seen) -> Reduced | None:
        """Drops."""
        rows = seen.sequences
        taken = self.at_most_half(rows, self.r[seen.block])
        if not any(distinct(taken)):
            return None
        free, shape = rows.free(), (number(rows.lengths), rows.longest)
        if self.training:
            draws = torch.rand(shape, device=rows.device)
        else:
            draws = _draws(self.seed, seen.block, rows.longest, rows.device).expand(shape)
        gone = largest(draws, free, rows.counts(taken))
        stays = (rows.place < rows.counts()) & ~gone
        found = in_order(rows, stays, rows.fewer(taken))
        return Reduced(seen.x[found.kept], seen.mass[found.kept], found)


@cached_constant(512)  # graphs know no generators of torch
def _draws(seed: int, block: int, places: int, device: torch.device) -> Tensor:
    generator = Random(f"{seed}, {block}")
    return torch.tensor([generator.random() for _ in range(places)]).to(device)
