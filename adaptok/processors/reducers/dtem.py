"""DTEM: ToMe by an embedding that is learned for merging alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptok.cells.lengths import Lengths, distinct
from adaptok.processors.reducers.base import PerBlock, Reduced, Seen
from adaptok.processors.reducers.sequences import Reduction
from adaptok.processors.reducers.tome import Merging, match
from adaptok.registry import REDUCERS
from adaptok.utils.arguments import Depth, Positive, PositiveFloat, Weighted, checked

_FAR = -1e4  # a score that no token has


@REDUCERS.register("dtem")
class DTEM(Merging):
    """Merges as `ToMe` by the cosine of a learned map of the tokens, trained by soft merging.

    Lee & Hong, "Learning to merge tokens via decoupled embedding for efficient vision
    transformers", arXiv 2412.10569, Sec. 3: the map sees the input of the attention without
    a gradient to it. In training, `r` rounds of softmax say how much of each token of an even place
    merges, and it goes to its `nearest` tokens of odd places by another softmax. The `r` tokens
    that merge in evaluation go whole, and leave.

    Args:
        depth: number of blocks.
        dim: width of the tokens.
        heads: attention heads.
        r: tokens that each block takes away, see `ToMe`.
        features: width of the map; default that of a head.
        nearest: tokens that one may go to, in training.
        temperature: of both softmaxes.
        weighted: let a merged token count as a key for the tokens in it, see `ToMe`.

    Raises:
        ValueError: more numbers than blocks, or none that is a count.
    """

    @checked
    def __init__(
        self,
        depth: Depth,
        dim: Positive,
        heads: Positive,
        *,
        r: PerBlock = 8,
        features: Positive | None = None,
        nearest: Positive = 3,
        temperature: PositiveFloat = 0.1,
        weighted: Weighted = True,
    ):
        super().__init__(depth, r, weighted)
        self.nearest, self.temperature = nearest, temperature
        width = features or dim // heads
        used = [str(block) for block in range(depth) if self.acts(block)]
        self.metric = nn.ModuleDict({block: nn.Linear(dim, width) for block in used})

    def forward(self, seen: Seen) -> Reduced | None:
        """Merges, in training softly."""
        assert seen.normed is not None
        taken = self.at_most_half(seen.sequences, self.r[seen.block])
        if not any(distinct(taken)):
            return None
        metric = self.metric[str(seen.block)](seen.normed.detach())
        found = match(metric, seen.sequences, taken)
        if not self.training:
            return Reduced(*found.merge(seen.x, seen.mass), found)
        x, mass = self.soft(seen, metric, taken, found)
        return Reduced(x[found.kept], mass[found.kept], found)

    def soft(
        self, seen: Seen, metric: Float[Tensor, "n c"], taken: Lengths, found: Reduction
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """Features and mass after soft merging; nothing of the mass is lost once the rows that
        `found` merges are gone.
        """
        rows = seen.sequences
        dense = rows.spread(F.normalize(metric.float(), dim=-1))
        free = rows.free()
        score = (dense[:, ::2] @ dense[:, 1::2].mT).masked_fill(~free[:, None, 1::2], _FAR)
        near, into = score.topk(min(self.nearest, score.shape[2]), dim=2)
        share = (near / self.temperature).softmax(2)
        movable = free[:, ::2] & (near[..., 0] > _FAR)
        logits = (near[..., 0] / self.temperature).masked_fill(~movable, _FAR)
        moved = relaxed_top(logits, rows.counts(taken), max(distinct(taken))) * movable
        stays = torch.zeros_like(seen.mass, dtype=torch.bool).index_fill(0, found.kept, True)
        leaves = ~rows.spread(stays)[:, ::2] & free[:, ::2]
        moved = torch.where(leaves, 1 + moved - moved.detach(), moved)
        weight = torch.zeros_like(score).scatter(2, into, moved[..., None] * share)
        x, mass = rows.spread(seen.x.float()), rows.spread(seen.mass.float())
        flow = weight.mT * mass[:, None, ::2]  # (g, odd, even)
        gained = mass[:, 1::2] + flow.sum(2)
        sums = mass[:, 1::2, None] * x[:, 1::2] + flow @ x[:, ::2]
        odd = sums / gained.clamp(min=1e-6)[..., None]
        merged, left = x.clone(), mass.clone()
        merged[:, 1::2], left[:, 1::2] = odd, gained
        left[:, ::2] = mass[:, ::2] * (1 - moved)
        return rows.collect(merged).to(seen.x.dtype), rows.collect(left).to(seen.mass.dtype)


def relaxed_top(
    logits: Float[Tensor, "g m"], count: Int[Tensor, "g 1"], rounds: int
) -> Float[Tensor, "g m"]:
    """How much each slot belongs to the `count` largest: a sum of as many softmaxes, each without
    what those before it took (Xie & Ermon, arXiv 1901.10517, Sec. 3).

    Args:
        rounds: the largest count.
    """
    total = torch.zeros_like(logits)
    for i in range(rounds):
        taken = logits.softmax(1)
        total = total + taken * (i < count)
        logits = logits + torch.log1p(-taken.clamp(max=1 - 1e-6))
    return total.clamp(max=1)
