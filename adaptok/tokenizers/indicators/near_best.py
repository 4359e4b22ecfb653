"""Near-best tree approximation (Binev & DeVore, "Fast computation in adaptive tree approximation",
Numer. Math. 97, 2004)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import Boundary
from adaptok.registry import INDICATORS
from adaptok.tokenizers.indicators.base import Field, Scores
from adaptok.tokenizers.indicators.projection import relative_errors
from adaptok.tree import Tree
from adaptok.utils.arguments import Degree, checked


@INDICATORS.register("near_best")
class NearBestIndicator:
    """Modified error of the projection onto polynomials (Binev & DeVore, Sec. 2): refining by it is
    near-best, whatever the field.

    With e the squared error on a node, relative to that of the sample's mean (`relative_errors`),
    the score of a coarsest node is e, and that of others follows from ``1/s = 1/e + 1/s(parent)``.
    So a node whose ancestors were split in vain has a low score, and no child outscores its parent.

    The error has the units of the field, in which the largest channel decides, unless `normalise`
    is set or the field is normalised beforehand. A field that does not vary scores 0.

    Args:
        degree: of the polynomials on a cell: 0 (its mean) or 1 (a slope per axis too).
        normalise: measure each channel in units of its own spread over the sample.
    """

    monotone = True

    @checked
    def __init__(self, *, degree: Degree = 0, normalise: bool = False):
        self.degree, self.normalise = degree, normalise

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Computes the modified error of every inner node."""
        return modified(self.errors(field, tree), tree)

    def errors(self, field: Field, tree: Tree) -> Float[Tensor, "b nodes"]:
        """Computes the squared error of every node, the finest included."""
        return relative_errors(field, tree, self.degree, normalise=self.normalise)


def modified(errors: Float[Tensor, "b nodes"], tree: Tree) -> Float[Tensor, "b inner"]:
    """Turns errors into modified ones, ``s = e s' / (e + s')`` with s' that of the parent."""
    scores: list[Tensor] = []
    tiny = torch.finfo(errors.dtype).tiny
    for level, own in enumerate(tree.per_level(errors[..., : tree.inner])):
        if level:
            above = tree.expand(scores[-1], level - 1)
            # the ratio is at most 1 in any rounding, so no child is above its parent
            own = above * (own / (own + above).clamp(min=tiny))
        scores.append(own)
    return torch.cat([errors[..., :0], *scores], -1)
