"""Error measures of the Well, for channels-first fields.

Every function takes a prediction and a target ``(..., *space)`` with `ndim` space axes last,
averages over space only and returns ``(...)``: one number per sample, frame and channel, which the
caller averages. Values equal those of the same name in ``the_well.benchmark.metrics`` (which is
channels-last).

`adaptok.registry.METRICS` holds what a test computes: functions ``(prediction, target, ndim)`` of
(b, t, c, *space) fields in physical units on the CPU that return (b, t, c), lower being better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.registry import METRICS
from adaptok.utils.arguments import NonNegativeFloat, Positive, checked
from adaptok.utils.magnitude import excess, wide

EPS = 1e-7
Values = Float[Tensor, "..."]


def _space(ndim: int) -> tuple[int, ...]:
    return tuple(range(-ndim, 0))


def _check(prediction: Tensor, target: Tensor, ndim: int) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            "prediction and target differ in shape: "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if not 1 <= ndim <= target.ndim:
        raise ValueError(f"ndim is the number of space axes (1 to {target.ndim} here), got {ndim}")


@checked
def mse(prediction: Values, target: Values, ndim: Positive) -> Values:
    """Mean squared error over space."""
    _check(prediction, target, ndim)
    return (wide(prediction) - wide(target)).square().mean(_space(ndim))


class Squarable(NamedTuple):
    """Fields in float32 or more, divided by a power of two (1 unless squares would overflow), and
    what then corresponds to an `eps` in squared units.
    """

    prediction: Tensor
    target: Tensor
    eps: Tensor

    @classmethod
    def of(cls, prediction: Tensor, target: Tensor, ndim: int, eps: float) -> Squarable:
        """Scales each frame and channel alone."""
        _check(prediction, target, ndim)
        prediction, target = wide(prediction), wide(target)
        powers = (excess(x, _space(ndim)) for x in (prediction, target))
        power = torch.maximum(*powers).clamp(min=1)
        small = (float(eps) / power / power)[(..., *[0] * ndim)]
        tiny = torch.finfo(power.dtype).tiny
        return cls(prediction / power, target / power, small.clamp(min=tiny))


@checked
def nmse(prediction: Values, target: Values, ndim: Positive, eps: NonNegativeFloat = EPS) -> Values:
    """Mean squared error over the mean square of the target (MATEY's training loss)."""
    prediction, target, small = Squarable.of(prediction, target, ndim, eps)
    return mse(prediction, target, ndim) / (target.square().mean(_space(ndim)) + small)


@METRICS.register("nrmse")
@checked
def nrmse(
    prediction: Values, target: Values, ndim: Positive, eps: NonNegativeFloat = EPS
) -> Values:
    """Root of `nmse`; its mean is the NRMSE of MATEY.

    Args:
        eps: added to the mean square of the target, in squared physical units.
    """
    return nmse(prediction, target, ndim, eps).sqrt()


@METRICS.register("vrmse")
@checked
def vrmse(
    prediction: Values, target: Values, ndim: Positive, eps: NonNegativeFloat = EPS
) -> Values:
    """Root of the mean squared error over the variance of the target (1: as good as its mean).

    The variance is the unbiased one, as in the Well. For a nearly constant frame, `eps` (in squared
    physical units) determines the value.

    Args:
        eps: added to the variance of the target, in squared physical units.
    """
    prediction, target, small = Squarable.of(prediction, target, ndim, eps)
    return (mse(prediction, target, ndim) / (target.var(_space(ndim)) + small)).sqrt()


@checked
def sum_error(prediction: Values, target: Values, ndim: Positive) -> Values:
    """Difference of the sums over space, relative to the sum of the target's absolute values.

    Of a conserved quantity this is the drift of what is predicted. Zero where the target is zero
    everywhere and the sums agree.
    """
    _check(prediction, target, ndim)
    prediction, target = prediction.double(), target.double()
    off = (prediction - target).sum(_space(ndim)).abs()
    return off / target.abs().sum(_space(ndim)).clamp(min=torch.finfo(target.dtype).tiny)


class SpectralError(NamedTuple):
    """Squared error per band of wavenumbers, each ``(..., bins)``, low to high."""

    mse: Tensor
    nmse: Tensor


def wavenumber_bins(shape: tuple[int, ...], n_bins: int = 3) -> Tensor:
    """Edges ``(n_bins + 1,)``, logarithmic from the longest wave to the diagonal Nyquist wave.

    Unit: radians per grid point. The first edge is moved to 0, so that it holds the mean too.
    """
    low, high = 2 * math.pi / max(shape), math.pi * math.sqrt(len(shape)) + 1e-6
    edges = torch.logspace(math.log10(low), math.log10(high), n_bins + 1)
    edges[0] = 0.0
    return edges


def binned_spectral_error(
    prediction: Tensor, target: Tensor, ndim: int, bins: Tensor | None = None
) -> SpectralError:
    """Squared error in each band of isotropic wavenumbers; `mse` sums over the bins to `mse`.

    `nmse` is relative to the energy of the target in the same band.

    Args:
        bins: increasing edges from 0, radians per grid point; by default three logarithmic bands.
    """
    _check(prediction, target, ndim)
    shape = tuple(target.shape[-ndim:])
    edges = (wavenumber_bins(shape) if bins is None else bins).to(target.device)
    length = 2 * math.pi * wavenumbers(shape, device=target.device)
    index = torch.bucketize(length, edges, right=True) - 1
    n_bins = len(edges) - 1  # what lies beyond the last edge is left out
    error = energy_per_bin(prediction - target, ndim, index, n_bins + 1)[..., :n_bins]
    prediction, target, small = Squarable.of(prediction, target, ndim, EPS)
    share = energy_per_bin(prediction - target, ndim, index, n_bins + 1)[..., :n_bins]
    energy = energy_per_bin(target, ndim, index, n_bins + 1)[..., :n_bins]
    return SpectralError(error, share / (energy + small[..., None]))


def wavenumbers(shape: Sequence[int], **of_tensor: Any) -> Tensor:
    """Length of the wave vector of each Fourier mode, flat, in cycles per grid point: (points,).

    Args:
        of_tensor: device and type.
    """
    axes = [torch.fft.fftfreq(n, **of_tensor) for n in shape]
    grids = torch.meshgrid(*axes, indexing="ij")
    return torch.stack(grids).square().sum(0).sqrt().flatten()


def power_spectrum(x: Tensor, ndim: int) -> Tensor:
    """Squared amplitude of each Fourier mode; sums to the mean square."""
    return torch.fft.fftn(x, dim=_space(ndim), norm="forward").abs().square()


def energy_per_bin(x: Tensor, ndim: int, index: Tensor, n_bins: int) -> Tensor:
    """Sum of |x_k|^2 over each bin in units of a mean square: ``(..., n_bins)``.

    Args:
        index: bin of each Fourier mode, flat.
    """
    power = power_spectrum(x, ndim).flatten(-ndim)
    return power.new_zeros(*power.shape[:-1], n_bins).index_add_(-1, index, power)
