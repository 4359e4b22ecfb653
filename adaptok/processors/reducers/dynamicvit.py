"""DynamicViT: a small network says which tokens go on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.cells.lengths import distinct, each
from adaptok.processors.reducers.base import Reduced, Reducer, Seen, chosen_blocks
from adaptok.processors.reducers.sequences import Sequences, in_order, largest
from adaptok.registry import REDUCERS
from adaptok.utils.arguments import (
    Depth,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveShare,
    checked,
)
from adaptok.utils.auxiliary import report_loss


@REDUCERS.register("dynamicvit")
class DynamicViT(Reducer):
    """Drops the tokens that a learned predictor rates lowest, before some of the blocks.

    Rao et al., "DynamicViT: efficient vision transformers with dynamic token sparsification", arXiv
    2106.02034, Sec. 3: stage s keeps the share ``keep ** s`` of the first number of tokens. In
    training all rows stay, a hard Gumbel sample says which are in, and the others are hidden as
    keys and in pooling; what is out keeps its feature, as if it had been dropped. The loss on the
    rates is reported (`adaptok.utils.auxiliary`), (rate - share)^2, mean over samples and stages.

    Args:
        depth: number of blocks.
        dim: width of the tokens, at least 4.
        keep: share of the tokens (without prefix) that each stage keeps.
        blocks: of the stages; default a quarter, half and three quarters of the depth.
        rate_weight: weight of the loss on the rates.

    Raises:
        ValueError: no block of this index, or tokens that are too narrow.
    """

    place = "before"
    drops = True

    @checked
    def __init__(
        self,
        depth: Depth,
        dim: Positive,
        *,
        keep: PositiveShare = 0.7,
        blocks: Sequence[NonNegative] | None = None,
        rate_weight: NonNegativeFloat = 2.0,
    ):
        super().__init__(depth)
        if dim < 4:
            raise ValueError(f"reducer 'dynamicvit' needs tokens of width 4 or more, got {dim}")
        self.keep, self.rate_weight = keep, rate_weight
        self.blocks = chosen_blocks(blocks, depth)
        self.predictors = nn.ModuleList(Predictor(dim) for _ in self.blocks)

    def acts(self, block: int) -> bool:
        """Whether it is one of the chosen blocks."""
        return block in self.blocks and self.keep < 1

    def forward(self, seen: Seen) -> Reduced | None:
        """Drops, or in training says what is in."""
        rows, stage = seen.sequences, self.blocks.index(seen.block)
        share = self.keep ** (stage + 1)
        gate = torch.ones_like(seen.mass) if seen.gate is None else seen.gate
        rating = self.predictors[stage](seen.x, rows, gate)
        if self.training:
            chosen = F.gumbel_softmax(rating, hard=True)[:, 0].to(gate.dtype)
            free = rows.free()
            gate = torch.where(rows.collect(free), gate * chosen, gate)
            self._report(rows.spread(gate) * free, free, stage, share)
            return Reduced(seen.x, seen.mass, None, gate)
        free = each(seen.first, lambda n: max(n - rows.prefix, 0))
        kept = each(free, lambda n: max(int(n * share), min(n, 1)))
        taken = rows.fewer(each(kept, lambda n: n + rows.prefix))
        if not any(distinct(taken)):
            return None
        score = rows.spread(rating[:, 0].detach())
        best = largest(score, rows.free(), rows.counts(kept))
        stays = best | (rows.place < rows.prefix)
        found = in_order(rows, stays, rows.fewer(taken))
        return Reduced(seen.x[found.kept], seen.mass[found.kept], found)

    def _report(self, gate: Tensor, free: Tensor, stage: int, share: float) -> None:
        rate = gate.sum(1) / free.sum(1).clamp(min=1)
        weight = self.rate_weight / len(self.blocks)
        report_loss(f"reducer_rate_{stage}", (rate - share).square().mean(), weight=weight)


class Predictor(nn.Module):
    """Logarithms of the probabilities that a token stays and goes: from half of its channels, and
    the mean of the other half over the tokens that are in.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.own = dim // 2
        self.enter = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.rate = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
            nn.LogSoftmax(-1),
        )

    def forward(
        self, x: Float[Tensor, "n d"], sequences: Sequences, gate: Float[Tensor, " n"]
    ) -> Float[Tensor, "n 2"]:
        """Rates each row."""
        y = self.enter(x)
        own, shared = y[:, : self.own], y[:, self.own :]
        inside = sequences.collect(sequences.free()) * gate.to(y.dtype)
        total = sequences.spread(shared * inside[:, None]).sum(1)
        mean = total / sequences.spread(inside).sum(1, keepdim=True).clamp(min=1)
        mean = sequences.collect(mean[:, None].expand(-1, sequences.longest, -1))
        return self.rate(torch.cat([own, mean], 1))
