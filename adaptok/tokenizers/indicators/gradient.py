"""The Sobel gradient indicator of IAP."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import Boundary, periodic_axes
from adaptok.registry import INDICATORS, choice
from adaptok.tokenizers.indicators.base import (
    Field,
    Scores,
    channel_weights,
    check_weights,
)
from adaptok.tree import Tree, sum_pyramid
from adaptok.utils.arguments import Positive, Power, Weights, checked
from adaptok.utils.magnitude import standardised

SMALL = 2**16  # values that are scored at once: more leave the cache


@INDICATORS.register("gradient")
class GradientIndicator:
    """Sum over the cell of the Sobel gradient norm of the standardised channels (IAP, Sec. 2, App.
    B).

    Each channel of each frame is standardised over its whole image, ``(x - mean) / std`` with the
    population std, in any units: nothing is added to the std. A constant channel scores 0.

    Args:
        k: half-width of the stencil (order 2k finite difference, binomial weights across).
        padding: "replicate", "circular" or "reflect"; with boundary codes, periodic axes are
            circular.
        weights: non-negative weight per channel, default 1 each.
        ignore: channels left out (a static mask would dominate the score); negative ones count from
            the end.
        power: exponent of the per-point score.
        channels: "mean" or "max" over the channels of a frame.
        frames: "mean" or "max" over frames.
    """

    monotone = True

    @checked
    def __init__(
        self,
        *,
        k: Positive = 1,
        padding: str = "replicate",
        weights: Weights | None = None,
        ignore: Sequence[int] = (),
        power: Power = 1.0,
        channels: str = "mean",
        frames: str = "mean",
    ):
        choice("padding", padding, PADDINGS)
        for name, value in (("channels", channels), ("frames", frames)):
            choice(name, value, ("mean", "max"))
        self.k, self.padding, self.power = k, padding, power
        self.weights = check_weights(weights)
        self.ignore = tuple(ignore)
        self.channels, self.frames = channels, frames

    def __call__(self, field: Field, tree: Tree, *, boundary: Boundary = None) -> Scores:
        """Sums the score map over each inner node."""
        return sum_pyramid(self.score_map(field, boundary=boundary)[:, None], tree)[:, 0]

    def score_map(self, field: Field, *, boundary: Boundary = None) -> Float[Tensor, "b *s"]:
        """Scores each grid point (IAP, Eq. 3), reduced over channels and frames."""
        b, t, channels, *space = field.shape
        weights = channel_weights(self.weights, self.ignore, channels)
        step = channels  # at once if they are small or a graph is traced, else one by one
        if not torch.compiler.is_compiling():
            step = min(max(SMALL // (b * t * math.prod(space)), 1), channels)
        total: Tensor | None = None
        for first in range(0, channels, step):
            own = weights[first : first + step]
            if not any(own):
                continue
            maps = self.channel_maps(field[:, :, first : first + step], boundary=boundary)
            if any(weight != 1 for weight in own):
                maps *= maps.new_tensor(own).view(-1, *[1] * len(space))
            if len(own) == 1:
                maps = maps.squeeze(2)
            else:
                maps = maps.sum(2) if self.channels == "mean" else maps.amax(2)
            if total is None:
                total = maps
            elif self.channels == "mean":
                total += maps
            else:
                total = torch.maximum(total, maps, out=total)
        assert total is not None, "some channel has a weight"
        if self.channels == "mean":
            total /= sum(weights)
        total = total.mean(1) if self.frames == "mean" else total.amax(1)
        return total if self.power == 1 else total**self.power

    def channel_maps(self, field: Field, *, boundary: Boundary = None) -> Field:
        """Computes the gradient norm of every standardised channel of every frame."""
        space = tuple(range(3, field.ndim))
        return gradient_norm(standardised(field, space), space, self.k, self.padding, boundary)


def gradient_norm(
    x: Float[Tensor, "b ..."],
    axes: tuple[int, ...],
    k: int = 1,
    padding: str = "replicate",
    boundary: Boundary = None,
) -> Float[Tensor, "b ..."]:
    """L2 norm over `axes` of the multidimensional Sobel gradient, in units of x per grid spacing
    times the (unnormalised) binomial weights; IAP Eq. 2 and 3.

    Args:
        boundary: codes (D, 2) or (b, D, 2) in the order of `axes`; periodic axes are padded
            circularly.
    """
    smooth = [float(math.comb(2 * k, j)) for j in range(2 * k + 1)]
    difference = central_difference(k)
    extents = [x.shape[axis] for axis in axes]
    for axis, wrap in zip(axes, periodic_axes(boundary, len(axes), x), strict=True):
        x = _padded(x, axis, k, padding, wrap)
    smoothed, differences = x, []  # along the axes so far; one difference per axis
    for axis, n in zip(axes, extents, strict=True):
        differences = [_correlated(part, axis, n, smooth) for part in differences]
        differences.append(_correlated(smoothed, axis, n, difference))
        if axis != axes[-1]:
            smoothed = _correlated(smoothed, axis, n, smooth)
    squared = differences[0].square()
    for part in differences[1:]:
        squared += part.square()
    return squared.sqrt()


def central_difference(k: int) -> list[float]:
    """First-derivative stencil of half-width k, unit spacing: order-2k accurate.

    The weight at distance j is ``(-1)^(j+1) k!^2 / (j (k-j)! (k+j)!)``.
    """
    f = math.factorial
    right = [(-1) ** (j + 1) * f(k) ** 2 / (j * f(k - j) * f(k + j)) for j in range(1, k + 1)]
    return [-w for w in reversed(right)] + [0.0, *right]


def stencil(x: Tensor, axis: int, taps: list[float], padding: str, wrap: Tensor | None) -> Tensor:
    """Correlates with a short stencil along one axis; the size stays."""
    k, n = len(taps) // 2, x.shape[axis]
    return _correlated(_padded(x, axis, k, padding, wrap), axis, n, taps)


def _padded(x: Tensor, axis: int, k: int, padding: str, wrap: Tensor | None) -> Tensor:
    n, parts = x.shape[axis], [x]
    for first, place in ((-k, 0), (n, 2)):
        steps = torch.arange(first, first + k, device=x.device)
        end = x.index_select(axis, PADDINGS[padding](steps, n))
        if wrap is not None and padding != "circular":
            end = torch.where(wrap, x.index_select(axis, steps % n), end)
        parts.insert(place, end)
    return torch.cat(parts, axis)


def _correlated(padded: Tensor, axis: int, n: int, taps: list[float]) -> Tensor:
    first, second, *others = [
        (padded.narrow(axis, j, n), tap) for j, tap in enumerate(taps) if tap != 0
    ]
    total = first[0] if first[1] == 1 else first[0] * first[1]
    total = torch.add(total, second[0], alpha=second[1])
    for part, tap in others:  # in place: a list of terms would take as much memory as taps
        total.add_(part, alpha=tap)
    return total


def _reflect(steps: Tensor, n: int) -> Tensor:
    period = max(1, 2 * (n - 1))
    steps = steps % period
    return torch.minimum(steps, period - steps).clamp(max=n - 1)


PADDINGS = {
    "replicate": lambda steps, n: steps.clamp(0, n - 1),
    "circular": lambda steps, n: steps % n,
    "reflect": _reflect,
}
