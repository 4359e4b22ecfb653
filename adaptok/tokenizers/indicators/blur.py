"""Error of blurring a cell to the resolution of a token, in pixels or in features (Quadformer)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from adaptok.cells import product
from adaptok.layers.boundary import Boundary, pad_beyond
from adaptok.registry import INDICATORS, Registry
from adaptok.tokenizers.indicators.base import Field, Scores, points_of_nodes
from adaptok.tokenizers.indicators.resampling import down_up
from adaptok.tree import Tree, sum_pyramid
from adaptok.utils.arguments import SizePower, checked, shown
from adaptok.utils.magnitude import squarable, wide

FEATURES = Registry("features", "features", needs=("__call__",))  # none by name
POOL: dict[int, Callable[..., Tensor]] = {
    1: adaptive_avg_pool1d,
    2: adaptive_avg_pool2d,
    3: adaptive_avg_pool3d,
}


@INDICATORS.register("blur")
class BlurIndicator(nn.Module):
    """Root mean square over the cell of what the field loses if its cells had one token's points,
    times a power of the cell's size (Quadformer: Ronen et al., "Vision transformers with
    mixed-resolution tokenization").

    For cells f times as large as the finest, the whole domain is resampled by 1/f and back by f,
    linearly and without antialiasing; edges are repeated, whatever the boundary. The score is
    ``size ** power * sqrt(mean of squares)`` over points, channels and frames, with the size in
    grid points (the geometric mean over the axes).

    With `features` the two fields are compared behind a frozen module, and squared differences are
    averaged from its grid to the nodes. A domain that does not divide is continued first, so that
    nodes at the border see what lies beyond it; the features of a module are its own affair, and
    scores then depend on the units of the field.

    Args:
        power: of the size; None: 0.5 (the authors' code), with features 0 (the paper).
        features: a frozen module from ``(m, c, *space)`` to ``(m, k, *grid)``, or a class or
            mapping of one; None: the field itself.

    Raises:
        ValueError: features that are no module or no factory of one.
    """

    monotone = False

    @checked
    def __init__(
        self,
        *,
        power: SizePower | None = None,
        features: Mapping[str, Any] | Callable[..., Any] | None = None,
    ):
        super().__init__()
        self.features = None if features is None else FEATURES.build(features)
        self.power = (0.5 if features is None else 0.0) if power is None else power
        if isinstance(self.features, nn.Module):
            self.features.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> BlurIndicator:
        """Stays in evaluation: the features are frozen, running statistics included."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Scores each inner node.

        Raises:
            ValueError: features that return something else than ``(m, k, *grid)``.
        """
        b, t = field.shape[:2]
        scores = [wide(field).new_zeros(b, 0)]
        if self.features is None:
            maps = squarable(field, tuple(range(1, field.ndim))).flatten(0, 1)
        else:
            whole = [g * s for g, s in zip(tree.grids[0], tree.sizes[0], strict=True)]
            maps = pad_beyond(wide(field), whole, boundary).flatten(0, 1)
            sharp = self._seen(maps)
        for level, size in enumerate(tree.sizes[:-1]):
            factors = tuple(s // f for s, f in zip(size, tree.sizes[-1], strict=True))
            blurred = down_up(maps, factors)
            if self.features is None:
                error = (blurred - maps).square().mean(1).unflatten(0, (b, t)).mean(1)
                sums = tree.per_level(sum_pyramid(error[:, None], tree)[:, 0])[level]
                points = tree.per_level(points_of_nodes(tree, field.device))[level]
                mean = sums / points.clamp_min(1)
            else:
                error = (self._seen(blurred) - sharp).square().mean(1, keepdim=True)
                mean = POOL[len(size)](error, tree.grids[level]).flatten(1)
                mean = mean.unflatten(0, (b, t)).mean(1)
            scores.append(mean.sqrt() * product(size) ** (self.power / len(size)))
        return torch.cat(scores, 1)

    def _seen(self, maps: Float[Tensor, "m c *s"]) -> Float[Tensor, "m k *g"]:
        """What the module says of maps, which it gets in its own dtype."""
        assert self.features is not None
        module = isinstance(self.features, nn.Module)
        own = next(self.features.parameters(), maps) if module else maps
        seen = self.features(maps.to(own.dtype))
        if not isinstance(seen, Tensor) or seen.ndim != maps.ndim or len(seen) != len(maps):
            raise ValueError(
                f"features of {tuple(maps.shape)} are one tensor (m, k, *grid) with as many axes "
                f"and samples, got {shown(seen)}"
            )
        return wide(seen)
