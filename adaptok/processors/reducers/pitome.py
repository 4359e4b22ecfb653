"""PiToMe: tokens in large clusters merge, lone ones are protected."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from adaptok.cells.lengths import Lengths, distinct, each
from adaptok.processors.reducers.base import PerBlock, Reduced, Seen
from adaptok.processors.reducers.sequences import Reduction, Sequences, in_order, ranks
from adaptok.processors.reducers.tome import Merging
from adaptok.registry import REDUCERS
from adaptok.utils.arguments import (
    Depth,
    Finite,
    NonNegativeFloat,
    PositiveShare,
    Weighted,
    checked,
)


@REDUCERS.register("pitome")
class PiToMe(Merging):
    """Merges tokens of high energy, which are those with many similar ones.

    Tran et al., "Accelerating transformers with spectrum-preserving token merging", arXiv
    2405.16148, Sec. 3.2: the 2 r tokens of highest energy (Eq. 4) are sorted by it, those of even
    rank merge into the most similar one of odd rank, and all others are protected. The energy of a
    token is the mean over the others of f(cosine of the mean keys), f(x) = x from the margin on and
    ``alpha (exp(x - margin) - 1)`` below; the margin falls linearly with the depth of the block.

    Args:
        depth: number of blocks.
        r: tokens that each block takes away, see `ToMe`.
        keep: share of the tokens that each block keeps, in place of `r`; at least one half counts.
        margin: similarity from which tokens count as alike, in the first block.
        alpha: how much dissimilar tokens lower the energy.
        weighted: let a merged token count as a key for the tokens in it, see `ToMe`.

    Raises:
        ValueError: more numbers than blocks, or none that is a count.
    """

    @checked
    def __init__(
        self,
        depth: Depth,
        *,
        r: PerBlock = 8,
        keep: PositiveShare | None = None,
        margin: Finite = 0.9,
        alpha: NonNegativeFloat = 1.0,
        weighted: Weighted = True,
    ):
        super().__init__(depth, r, weighted)
        self.keep, self.margin, self.alpha = keep, margin, alpha

    def acts(self, block: int) -> bool:
        """Whether anything is taken away there."""
        return self.r[block] > 0 if self.keep is None else self.keep < 1

    def forward(self, seen: Seen) -> Reduced | None:
        """Merges by the mean of the keys over heads."""
        assert seen.k is not None
        rows, taken = seen.sequences, None
        if self.keep is None:
            taken = self.at_most_half(rows, self.r[seen.block])
        else:
            taken = each(rows.lengths, lambda n: share_of(n - rows.prefix, self.keep))
        if not any(distinct(taken)):
            return None
        margin = self.margin * (1 - seen.block / self.depth)
        found = by_energy(seen.k.mean(1), rows, taken, margin, self.alpha)
        return Reduced(*found.merge(seen.x, seen.mass), found)


def share_of(n: int, keep: float | None) -> int:
    """Tokens of n to take away, at most half."""
    return min(math.floor(n - n * (keep or 0)), n // 2) if n > 0 else 0


@torch.no_grad()
def by_energy(
    metric: Float[Tensor, "n c"], sequences: Sequences, taken: Lengths, margin: float, alpha: float
) -> Reduction:
    """Ordered energy-based matching (PiToMe, Algorithm 1); tokens stay in their order.

    Args:
        metric: what is compared, by its cosine.
        taken: tokens to take away per sequence, at most half of those without prefix.
    """
    dense = sequences.spread(F.normalize(metric.float(), dim=-1))
    free, gone = sequences.free(), sequences.counts(taken)
    score = dense @ dense.mT
    pull = torch.where(score >= margin, score, alpha * ((score - margin).exp() - 1))
    itself = torch.eye(score.shape[1], dtype=torch.bool, device=score.device)
    pull = pull.masked_fill(~free[:, None] | itself, 0)
    rank = ranks((pull.sum(2) / free.sum(1, keepdim=True)).masked_fill(~free, -torch.inf))
    first, second = (free & (rank < 2 * gone) & (rank % 2 == parity) for parity in (0, 1))
    into = score.masked_fill(~second[:, None], -torch.inf).argmax(2)
    stays = (sequences.place < sequences.counts()) & ~first
    return in_order(sequences, stays, sequences.fewer(taken), into)
