"""Residual spectra: they sum to the squared error, and a pattern of patches stands out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adaptok.evaluation import metrics, spectra

SHAPES = [(32,), (16, 24), (15, 20), (8, 12, 10)]


@pytest.mark.parametrize("shape", SHAPES)
def test_spectra_sum_to_the_mean_squared_error(shape):
    ndim = len(shape)
    x, y = torch.randn(2, 3, *shape), torch.randn(2, 3, *shape)
    error = metrics.mse(x, y, ndim)
    torch.testing.assert_close(spectra.residual_spectrum(x, y, ndim).power.sum(-1), error)
    for axis in range(ndim):
        along = spectra.axis_spectrum(x - y, ndim, axis)
        assert along.power.shape == (2, 3, shape[axis] // 2 + 1)
        torch.testing.assert_close(along.power.sum(-1), error)


@pytest.mark.parametrize("shape", SHAPES)
def test_bands_mode_by_mode(shape):
    x = torch.randn(*shape).double()
    amplitude = np.abs(np.fft.fftn(x.numpy())) ** 2 / x.numel() ** 2
    isotropic = np.zeros(len(spectra.residual_spectrum(x, x * 0, len(shape)).power))
    along = np.zeros(shape[-1] // 2 + 1)
    for mode in np.ndindex(*shape):
        k = [min(i, n - i) / n for i, n in zip(mode, shape, strict=True)]
        isotropic[round(math.hypot(*k) * max(shape))] += amplitude[mode]
        along[round(k[-1] * shape[-1])] += amplitude[mode]
    out = spectra.residual_spectrum(x, x * 0, len(shape)).power.numpy()
    np.testing.assert_allclose(out, isotropic, atol=1e-12)
    last = spectra.axis_spectrum(x, len(shape), len(shape) - 1).power.numpy()
    np.testing.assert_allclose(last, along, atol=1e-12)


def test_a_wave_lies_at_its_wavenumber():
    wave = torch.sin(2 * math.pi * 5 * torch.arange(64) / 64).expand(1, 48, 64)
    spectrum = spectra.residual_spectrum(wave, wave * 0, 2)
    assert spectrum.wavenumber[spectrum.power[0].argmax()] == 5 / 64
    along = spectra.axis_spectrum(wave, 2, 1)
    assert along.wavenumber[along.power[0].argmax()] == 5 / 64
    torch.testing.assert_close(along.power[0, 5], torch.tensor(0.5))


def pattern(shape, patch, generator) -> torch.Tensor:
    """The same random patch everywhere, without its mean."""
    tile = torch.randn(patch, patch, generator=generator)
    repeats = [n // patch for n in shape]
    return (tile - tile.mean()).repeat(*repeats)


def test_noise_has_no_peaks_and_patches_have():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 64, 64, generator=generator)
    target = torch.zeros_like(noise)
    for patch in (4, 8, 16):
        plain = spectra.patch_harmonics(noise, target, 2, patch)
        assert plain.shape == (64,)
        assert 0.9 < plain.mean() < 1.15
        artifact = noise + 0.3 * pattern((64, 64), patch, generator)
        assert spectra.patch_harmonics(artifact, target, 2, patch).min() > 1.15
    smooth = noise.cumsum(-1).cumsum(-2)  # a steep spectrum is background, not a peak
    assert spectra.patch_harmonics(smooth, target, 2, 16).mean() < 1.2


@pytest.mark.parametrize("slope", [0, 3, 6])
@pytest.mark.parametrize("patch", [4, 8, 16])
def test_a_power_law_has_no_peaks(slope, patch):
    generator = torch.Generator().manual_seed(3)
    waves = torch.arange(65).clamp(min=1)
    turns = torch.rand(32, 65, generator=generator)
    turns[:, -1] = 0  # the Nyquist wave is real
    phases = torch.exp(2j * math.pi * turns) * waves ** (-slope / 2)
    x = torch.fft.irfft(phases.to(torch.complex128), n=128)
    ratio = spectra.patch_harmonics(x, torch.zeros_like(x), 1, patch)
    assert (ratio - 1).abs().max() < 0.06


def test_stronger_artifacts_give_higher_peaks_whatever_the_unit():
    generator = torch.Generator().manual_seed(1)
    noise, target = torch.randn(64, 48, generator=generator), torch.randn(64, 48)
    artifact = pattern((64, 48), 8, generator)
    peaks = [
        float(spectra.patch_harmonics(target + noise + a * artifact, target, 2, 8))
        for a in (0, 0.5, 1, 2)
    ]
    assert peaks == sorted(peaks)
    assert peaks[-1] > 2 * peaks[0]
    scaled = spectra.patch_harmonics(1e3 * (noise + artifact), 0 * target, 2, 8)
    torch.testing.assert_close(scaled, spectra.patch_harmonics(noise + artifact, 0 * target, 2, 8))


def test_axes_without_whole_patches_are_left_out():
    x, zero = torch.randn(3, 64, 30), torch.zeros(3, 64, 30)
    both = spectra.patch_harmonics(x, zero, 2, (8, 7))
    assert torch.isfinite(both).all()
    first = spectra.patch_harmonics(x, zero, 2, (8, 1))
    torch.testing.assert_close(first, spectra.patch_harmonics(x, zero, 2, (8, 30)))
    with pytest.raises(ValueError, match=r"no axis of \(64, 30\) holds 4 or more whole patches"):
        spectra.patch_harmonics(x, zero, 2, 32)
    with pytest.raises(ValueError, match="patch_size needs 2 numbers of at least 1"):
        spectra.patch_harmonics(x, zero, 2, (8,))
    with pytest.raises(ValueError, match="differ in shape"):
        spectra.residual_spectrum(x, zero[:, :8], 2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_errors_equal_the_authors(golden, ndim):
    """The metrics of the CKM and CSM paper, BSNMSE in three logarithmic bins among them."""
    arrays = golden("ckm_metrics")
    x, y = (torch.from_numpy(arrays[f"{ndim}d.{name}"]).movedim(-1, 2) for name in ("pred", "true"))
    close = {"rtol": 1e-4, "atol": 1e-6}
    for name in ("VRMSE", "NRMSE", "MSE"):
        out = getattr(metrics, name.lower())(x, y, ndim)
        torch.testing.assert_close(out, torch.from_numpy(arrays[f"{ndim}d.{name}"]), **close)
    error = metrics.binned_spectral_error(x, y, ndim)
    for kind in ("mse", "nmse"):
        for band in range(3):
            expected = torch.from_numpy(arrays[f"{ndim}d.spectral_error_{kind}_per_bin_{band}"])
            torch.testing.assert_close(getattr(error, kind)[..., band], expected, **close)
