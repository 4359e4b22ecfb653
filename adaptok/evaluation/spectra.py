"""Spectra of residuals, and the strength of patterns with the period of a patch.

Functions take ``(..., *space)`` with `ndim` space axes last, as `adaptok.evaluation.metrics`, and
return one result per leading index: per sample, rollout step and channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.evaluation.metrics import energy_per_bin, mse, power_spectrum, wavenumbers


class Spectrum(NamedTuple):
    """Power per band of wavenumbers.

    Attributes:
        wavenumber: (m,), the middle of each band in cycles per grid point.
        power: (..., m); sums to the mean square.
    """

    wavenumber: Tensor
    power: Tensor


def residual_spectrum(
    prediction: Float[Tensor, "*bs"], target: Float[Tensor, "*bs"], ndim: int
) -> Spectrum:
    """Isotropic power spectrum of prediction - target (CKM and CSM, Fig. 2); it sums to the MSE.

    Bands are as wide as the lowest wavenumber of the longest axis; the first holds the mean.

    Raises:
        ValueError: the two differ in shape, or `ndim` does not fit them.
    """
    mse(prediction, target, ndim)  # checks shapes and ndim
    shape = target.shape[-ndim:]
    longest = max(shape)
    length = wavenumbers(shape, dtype=torch.float64, device=target.device)
    bands = round(longest * math.sqrt(ndim) / 2) + 2
    power = energy_per_bin(prediction - target, ndim, (length * longest).round().long(), bands)
    return Spectrum(torch.arange(bands, device=target.device) / longest, power)


def axis_spectrum(x: Float[Tensor, "*bs"], ndim: int, axis: int) -> Spectrum:
    """Power per wavenumber along one space axis (0 is the first), summed over the others."""
    power = power_spectrum(x, ndim)
    n = power.shape[axis - ndim]
    others = [i for i in range(-ndim, 0) if i != axis - ndim]
    power = power.sum(others) if others else power
    folded = power[..., : n // 2 + 1].clone()  # both signs of a wavenumber are one band
    folded[..., 1 : (n + 1) // 2] += power.flip(-1)[..., : (n - 1) // 2]
    return Spectrum(torch.arange(n // 2 + 1, device=power.device) / n, folded)


def patch_harmonics(
    prediction: Float[Tensor, "*bs"],
    target: Float[Tensor, "*bs"],
    ndim: int,
    patch_size: int | Sequence[int],
) -> Float[Tensor, "*b"]:
    """Measures how far the residual's spectrum rises above its background at patch harmonics.

    Along each axis, the power at the wavenumbers m / patch_size up to the Nyquist wavenumber over
    the local background: a power law through the power at the wavenumbers beside it, up to half way
    to the next harmonic (a mean would be biased, as spectra of turbulence are steep). 1 means no
    patch artifacts. The ratios of all harmonics and axes are combined by their geometric mean.

    Args:
        patch_size: period in grid points, one number or one per space axis. An axis with a
            period of 1, one that it does not divide, or one of fewer than 4 patches has no resolved
            harmonics and is left out.

    Raises:
        ValueError: no axis is left, or shapes that do not fit.
    """
    mse(prediction, target, ndim)  # checks shapes and ndim
    shape = prediction.shape[-ndim:]
    sizes = [patch_size] * ndim if isinstance(patch_size, int) else list(patch_size)
    if len(sizes) != ndim or min(sizes) < 1:
        raise ValueError(f"patch_size needs {ndim} numbers of at least 1, got {patch_size}")
    ratios = []
    for axis, (n, p) in enumerate(zip(shape, sizes, strict=True)):
        if _resolved(n, p):
            power = axis_spectrum(prediction - target, ndim, axis).power
            if n % 2 == 0:  # the Nyquist wavenumber has one sign, all others have two
                power = torch.cat([power[..., :-1], 2 * power[..., -1:]], -1)
            ratios += _rises(power.clamp(min=torch.finfo(power.dtype).tiny).log(), n // p)
    if not ratios:
        raise ValueError(
            f"no axis of {tuple(shape)} holds 4 or more whole patches of size {patch_size}, "
            "larger than 1"
        )
    return torch.stack(ratios).mean(0).exp()


def resolves(shape: Sequence[int], patch_size: Sequence[int]) -> bool:
    """Whether an axis of the space `shape` has harmonics that `patch_harmonics` can tell apart."""
    return any(map(_resolved, shape, patch_size))


def _resolved(n: int, patch_size: int) -> bool:
    return patch_size > 1 and n % patch_size == 0 and n // patch_size >= 4


def _rises(log_power: Tensor, spacing: int) -> list[Tensor]:
    """Returns the log power at every multiple of the spacing, minus the value that a line through
    the neighbours predicts there (least squares of log power against log wavenumber).

    The prediction is a weighted sum of the neighbours' log powers. With x the log wavenumber
    relative to the peak, the line's value at x = 0 is mean(y) - mean(x) * slope, which gives each
    neighbour the share 1/n - mean(x) (x - mean(x)) / sum((x - mean(x))^2). Example: spacing 4,
    peak 4, neighbours 2, 3, 5, 6.
    """
    last, reach = log_power.shape[-1] - 1, spacing // 2
    out = []
    for peak in range(spacing, last + 1, spacing):
        beside = [k for k in range(peak - reach, peak + reach + 1) if k != peak and k <= last]
        x = torch.tensor(beside, dtype=torch.float64).log() - math.log(peak)
        share = torch.full_like(x, 1 / len(beside))
        if beside[-1] > peak or len(beside) > 3:  # else too few, on one side, for a slope
            centered = x - x.mean()
            share = share - x.mean() * centered / centered.square().sum()
        share = share.to(log_power)
        out.append(log_power[..., peak] - (log_power[..., beside] * share).sum(-1))
    return out
