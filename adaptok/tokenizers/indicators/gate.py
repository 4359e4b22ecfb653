"""A learned gate on the points of each cell."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from adaptok.cells import product
from adaptok.layers.boundary import Boundary, pad_beyond
from adaptok.patches import patchify
from adaptok.registry import INDICATORS
from adaptok.tokenizers.indicators.base import Field, Scores
from adaptok.tree import Tree
from adaptok.utils.arguments import LevelSizes, Positive, PositiveFloat, checked
from adaptok.utils.auxiliary import is_collecting
from adaptok.utils.magnitude import standardised, wide


@INDICATORS.register("gate")
class GateIndicator(nn.Module):
    """Probability that a cell splits, by a small network on its own points (MSViT, Sec. 3).

    Each channel is standardised over its sample. The points of a cell go through a linear map and a
    GELU, one channel and frame at a time; the mean over channels and frames goes through a
    perceptron with one output. So a gate takes any number of channels. Each level has its own
    weights.

    In training, while losses are collected (`adaptok.utils.auxiliary`), logistic noise is added to
    the logit: the relaxed sample of a gate that is open with this probability (Gumbel-sigmoid).
    Otherwise equal fields get equal scores.

    Args:
        sizes: cell size of each level, time first.
        width: hidden width.
        temperature: that logit and noise are divided by.

    Raises:
        ValueError: cells of one size, between which nothing is to be chosen.
    """

    @checked
    def __init__(
        self, sizes: LevelSizes, *, width: Positive = 64, temperature: PositiveFloat = 1.0
    ):
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"a gate chooses between cell sizes, and has {sizes} alone")
        self.sizes, self.temperature = tuple(map(tuple, sizes)), float(temperature)
        self.points = nn.ModuleList(nn.Linear(product(size), width) for size in sizes[:-1])
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
            for _ in sizes[:-1]
        )

    def forward(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Computes the probability of each node, in (0, 1).

        Raises:
            ValueError: a tree of other sizes than the gate was built for.
        """
        if tree.n_levels == 1:
            return field.new_zeros(field.shape[0], 0)
        if tree.sizes != tuple(size[1:] for size in self.sizes):
            raise ValueError(f"a gate for cells of {self.sizes} scores a tree of {tree.sizes}")
        x = standardised(field, (1, *range(3, field.ndim))).to(next(self.parameters()).dtype)
        whole = [n * s for n, s in zip(tree.grids[0], tree.sizes[0], strict=True)]
        x = pad_beyond(x, whole, boundary)
        logit = wide(torch.cat([self._logits(x, level) for level in range(len(self.heads))], 1))
        if self.training and is_collecting():
            logit = logit + torch.rand_like(logit).logit(eps=1e-6)
        return torch.sigmoid(logit / self.temperature)

    def _logits(self, x: Float[Tensor, "b t c *s"], level: int) -> Float[Tensor, "b level"]:
        b, t, channels, *_ = x.shape
        frames = t // self.sizes[level][0]
        patches = patchify(x, self.sizes[level])  # (b, frames * nodes, channels * volume)
        patches = patches.view(b, frames, patches.shape[1] // frames, channels, -1)
        hidden = gelu(self.points[level](patches)).mean((1, 3))
        return self.heads[level](hidden).squeeze(2)
