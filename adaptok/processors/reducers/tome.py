"""ToMe: similar tokens merge."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from adaptok.cells.lengths import Lengths, distinct
from adaptok.processors.reducers.base import PerBlock, Reduced, Reducer, Seen, per_block
from adaptok.processors.reducers.sequences import Reduction, Sequences, ranks, reduction
from adaptok.registry import REDUCERS
from adaptok.utils.arguments import Depth, Weighted, checked


class Merging(Reducer):
    """Merges `r` tokens per block, those of smallest distance in some metric.

    Args:
        depth: number of blocks.
        r: tokens that each block takes away: a number, one per block, or a pair of a number and an
            inflection (see `per_block`).
        weighted: let a merged token count as a key for the tokens in it, by the logarithm of their
            number added to its scores; a number is a factor on it.
    """

    def __init__(self, depth: int, r: PerBlock, weighted: Weighted):
        super().__init__(depth, float(weighted))
        self.r = per_block(r, depth)

    def acts(self, block: int) -> bool:
        """Whether `r` is above 0 there."""
        return self.r[block] > 0


@REDUCERS.register("tome")
class ToMe(Merging):
    """Merges the r most similar pairs of a bipartite matching, by means that know how many tokens
    each one stands for.

    Bolya et al., "Token merging: your ViT but faster", arXiv 2210.09461, Sec. 3: tokens at even and
    odd places are two sets; each of the first proposes its most similar one of the second (cosine
    of the mean of the keys over heads), and the r best proposals merge. Several may merge into one.

    Args:
        depth: number of blocks.
        r: tokens that each block takes away: a number, one per block (a shorter list leaves the
            rest alone), or a pair of a number and an inflection, such as ``(8, -1.0)``.
        weighted: let a merged token count as a key for the tokens in it, by the logarithm of their
            number added to its scores; a number is a factor on it.

    Raises:
        ValueError: more numbers than blocks, or none that is a count.
    """

    @checked
    def __init__(self, depth: Depth, *, r: PerBlock = 8, weighted: Weighted = True):
        super().__init__(depth, r, weighted)

    def forward(self, seen: Seen) -> Reduced | None:
        """Merges by the mean of the keys over heads."""
        assert seen.k is not None
        taken = self.at_most_half(seen.sequences, self.r[seen.block])
        if not any(distinct(taken)):
            return None
        found = match(seen.k.mean(1), seen.sequences, taken)
        return Reduced(*found.merge(seen.x, seen.mass), found)


@torch.no_grad()
def match(metric: Float[Tensor, "n c"], sequences: Sequences, taken: Lengths) -> Reduction:
    """Bipartite soft matching (ToMe, Sec. 3, "Bipartite soft matching").

    The new order is that of the authors' code: prefix, tokens of even places that did not merge,
    all of odd places; without a prefix the former are sorted by descending similarity.

    Args:
        metric: what is compared, by its cosine.
        taken: tokens to take away per sequence, at most half of those without prefix.
    """
    prefix, count, gone = sequences.prefix, sequences.counts(), sequences.counts(taken)
    metric = F.normalize(metric.float(), dim=-1)
    dense = sequences.spread(metric)
    place = sequences.place
    even, odd = place[::2], place[1::2]
    score = dense[:, ::2] @ dense[:, 1::2].mT
    score = score.masked_fill(((odd < prefix) | (odd >= count))[:, None], -torch.inf)
    best, partner = score.max(-1)
    order = ranks(best.masked_fill((even < prefix) | (even >= count), -torch.inf))
    merges = order < gone
    # Places in the new sequence.
    ahead_even, ahead_odd = (prefix + 1) // 2, prefix // 2
    rest = (even >= prefix) & ~merges
    place_even = prefix + rest.long().cumsum(1) - 1 if prefix else order - gone
    place_even = torch.where(even < prefix, even, place_even)
    between = (count + 1) // 2 - ahead_even - gone  # of even places, without prefix
    place_odd = prefix + between + torch.arange(len(odd), device=odd.device) - ahead_odd
    place_odd = torch.where(odd < prefix, odd, place_odd)
    place_even = torch.where(merges, place_odd.gather(1, partner), place_even)
    rank = place_even.new_empty(place_even.shape[0], sequences.longest)
    stays = torch.ones_like(rank, dtype=torch.bool)
    rank[:, ::2], rank[:, 1::2], stays[:, ::2] = place_even, place_odd, ~merges
    return reduction(sequences, rank, stays, sequences.fewer(taken))
