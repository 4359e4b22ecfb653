"""EViT: the tokens that the class token attends to stay, the others become one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from adaptok.cells.lengths import Lengths, distinct, each, offsets_of
from adaptok.processors.reducers.base import Reduced, Reducer, Seen, chosen_blocks
from adaptok.processors.reducers.sequences import Reduction, Sequences, largest, reduction
from adaptok.registry import REDUCERS
from adaptok.utils.arguments import Depth, NonNegative, PositiveShare, Weighted, checked


@REDUCERS.register("evit")
class EViT(Reducer):
    """Keeps the share of the tokens that the class token attends to most, and fuses the rest.

    Liang et al., "Not all patches are what you need: expediting vision transformers via token
    reorganizations", arXiv 2202.07800, Sec. 3: after the attention of some blocks, the tokens are
    ranked by the attention of the class token to them, mean over heads, and those that are not
    kept become one token, the sum of attention times feature. Without a class token the mean query
    of the tokens attends in its place.

    Args:
        depth: number of blocks.
        keep: share of the tokens (without prefix) that stays in each of the blocks.
        blocks: where; default a quarter, half and three quarters of the depth (3, 6, 9 of 12).
        fuse: make one token of the rest; False drops them.
        normalised: make the fused token a mean, rather than a sum of shares below 1.
        weighted: let a fused token count as a key for the tokens in it, see `ToMe`.

    Raises:
        ValueError: no block of this index.
    """

    @checked
    def __init__(
        self,
        depth: Depth,
        *,
        keep: PositiveShare = 0.7,
        blocks: Sequence[NonNegative] | None = None,
        fuse: bool = True,
        normalised: bool = False,
        weighted: Weighted = False,
    ):
        super().__init__(depth, float(weighted))
        self.keep, self.normalised, self.drops = keep, normalised, not fuse
        self.blocks = chosen_blocks(blocks, depth)

    def acts(self, block: int) -> bool:
        """Whether it is one of the chosen blocks."""
        return block in self.blocks and self.keep < 1

    def forward(self, seen: Seen) -> Reduced | None:
        """Keeps and fuses."""
        rows = seen.sequences
        kept = each(rows.lengths, lambda n: math.ceil(self.keep * max(n - rows.prefix, 0)))
        if rows.fewer(kept) == each(rows.lengths, lambda n: min(n, rows.prefix)):
            return None
        attention = attention_of_first(seen)
        found, rest = keep_and_fuse(attention.detach(), rows, kept, fuse=not self.drops)
        if self.drops:
            return Reduced(seen.x[found.kept], seen.mass[found.kept], found)
        share = torch.where(rest, rows.collect(attention), 1).to(seen.x.dtype)
        x = found.sums(seen.x * share[:, None])
        x = x / found.sums(share)[:, None] if self.normalised else x
        return Reduced(x, found.sums(seen.mass), found)


def attention_of_first(seen: Seen) -> Float[Tensor, "g m"]:
    """Attention of the first prefix row, or of the mean query, to the rows of its sequence; mean
    over heads.
    """
    rows, q, k = seen.sequences, seen.q, seen.k
    assert q is not None
    assert k is not None
    if seen.rotate is not None:
        q, k = seen.rotate(q), seen.rotate(k)
    first = offsets_of(rows.lengths, rows.device)[:-1].long()
    query = q[first] if rows.prefix else rows.mean(q)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # grouped queries
    score = torch.einsum("ghe,gmhe->ghm", query, rows.spread(k)) * q.shape[2] ** -0.5
    if seen.key_bias is not None:
        score = score + rows.spread(seen.key_bias)[:, None]
    real = rows.place < rows.counts()
    return score.masked_fill(~real[:, None], -torch.inf).softmax(-1).mean(1)


@torch.no_grad()
def keep_and_fuse(
    score: Float[Tensor, "g m"], sequences: Sequences, kept: Lengths, *, fuse: bool
) -> tuple[Reduction, Bool[Tensor, " n"]]:
    """Keeps the best rows in their order; the others join one at the end, or are dropped.

    Args:
        kept: rows to keep per sequence, without prefix.

    Returns:
        found: which row goes where.
        rest: rows that are not kept.
    """
    free, prefix = sequences.free(), sequences.prefix
    best = largest(score, free, sequences.counts(kept))
    stays = best | (sequences.place < prefix) & (sequences.place < sequences.counts())
    rank = stays.long().cumsum(1) - 1
    rest = free & ~best
    left = sequences.fewer(sequences.fewer(each(kept, lambda n: n + prefix)))
    if not fuse:
        found = reduction(sequences, rank, stays, left, gone=rest)
        return found, sequences.collect(rest)
    rank = torch.where(rest, stays.sum(1, keepdim=True), rank)
    ones = torch.ones_like(rest[:, :1], dtype=torch.long)
    leader = largest(score, rest, ones)
    lengths = _with_fused(sequences.lengths, left)
    found = reduction(sequences, rank, stays | leader, lengths)
    return found, sequences.collect(rest)


def _with_fused(before: Lengths, left: Lengths) -> Lengths:
    """One more row in each sequence that has lost some."""
    if isinstance(before, tuple) and isinstance(left, tuple):
        return tuple(m + (m < n) for n, m in zip(before, left, strict=True))
    n = distinct(before)[0]
    return each(left, lambda m: m + (m < n))
