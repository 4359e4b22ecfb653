"""Gradient, curvature and anomaly of a cell compared with those of the others (MeshTok)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from adaptok.layers.boundary import Boundary, periodic_axes
from adaptok.registry import INDICATORS
from adaptok.tokenizers.indicators.base import Field, Scores, points_of_nodes
from adaptok.tokenizers.indicators.gradient import gradient_norm, stencil
from adaptok.tree import Tree, sum_pyramid
from adaptok.utils.arguments import checked
from adaptok.utils.magnitude import squarable


@INDICATORS.register("activity")
class ActivityIndicator:
    """``n(mean |Sobel|) + n(mean |Laplacian|) + n(|mean - mean of the frame|)`` over the cell, each
    averaged over channels first (MeshTok).

    n maps the values of a frame on one level to 0 ... 1; frames are averaged. Sobel magnitudes are
    the norm over the axes, the Laplacian sums second differences. The largest channel decides, in
    the units of the field. Edges are repeated, and periodic axes are periodic. Only points inside
    the domain count.

    Args:
        compat: score as the authors' code does: zeros beyond every border, and
            ``n(x) = (x - min) / (max + 1e-6)``, which weighs the three by what varies in them and
            depends on the units of the field; the default is ``(x - min) / (max - min)``.
    """

    monotone = False

    @checked
    def __init__(self, *, compat: bool = False):
        self.compat = compat

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Scores each inner node."""
        b, t = field.shape[:2]
        x = squarable(field.detach(), tuple(range(1, field.ndim)))
        points = points_of_nodes(tree, field.device).clamp_min(1)
        inside = tree.nodes(field.device).inside[: tree.inner]
        slopes = [each.mean(2) for each in self._derivatives(x, boundary)]  # (b, t, *space)
        terms = [sum_pyramid(each, tree) / points for each in slopes]
        means = sum_pyramid(x.flatten(1, 2), tree).unflatten(1, (t, -1)) / points
        away = means - x.flatten(3).mean(3)[..., None]
        terms.append(away.abs().mean(2))
        # Constants differ by rounding alone, which is no activity.
        noise = 16 * torch.finfo(x.dtype).eps * x.flatten(2).abs().amax(2, keepdim=True)
        scores = [x.new_zeros(b, 0)]
        for *levels, here in zip(*map(tree.per_level, terms), tree.per_level(inside), strict=True):
            parts = [self._normalised(own, here, noise) for own in levels]
            scores.append(torch.stack(parts).sum(0).mean(1))
        return torch.cat(scores, 1)

    def _derivatives(
        self, x: Float[Tensor, "b t c *s"], boundary: Boundary
    ) -> tuple[Float[Tensor, "b t c *s"], Float[Tensor, "b t c *s"]]:
        """Sobel magnitude, with differences (-1, 0, 1), and absolute Laplacian of each point."""
        axes = tuple(range(3, x.ndim))
        inner = x.shape[3:]
        if self.compat:
            x, boundary = pad(x, (1, 1) * len(axes)), None
        sobel = 2 * gradient_norm(x, axes, boundary=boundary)
        second = [1.0, -2.0, 1.0]
        wraps = periodic_axes(boundary, len(axes), x)
        laplacian = torch.zeros_like(x)
        for axis, wrap in zip(axes, wraps, strict=True):
            laplacian += stencil(x, axis, second, "replicate", wrap)
        laplacian = laplacian.abs_()
        if self.compat:
            cut = (..., *(slice(1, 1 + n) for n in inner))
            return sobel[cut], laplacian[cut]
        return sobel, laplacian

    def _normalised(
        self,
        own: Float[Tensor, "b t level"],
        here: Bool[Tensor, " level"],
        noise: Float[Tensor, "b t 1"],
    ) -> Float[Tensor, "b t level"]:
        low = own.masked_fill(~here, torch.inf).amin(2, keepdim=True)
        high = own.masked_fill(~here, -torch.inf).amax(2, keepdim=True)
        if self.compat:
            return ((own - low) / (high + 1e-6)).masked_fill(~here, 0)
        width = high - low
        flat = width <= noise
        return ((own - low) / width.masked_fill(flat, 1)).masked_fill(flat | ~here, 0)
