"""Metrics equal the Well's, and what can be said about them exactly."""

import math
from types import SimpleNamespace

import pytest
import torch

from adaptok.evaluation import metrics

SHAPES = [(32,), (16, 24), (8, 12, 10)]


def pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 4, *shape, generator=generator)
    y = x + 0.3 * torch.randn(x.shape, generator=generator)
    return x, y * torch.tensor([1.0, 10.0, 0.1, 0.0]).view(4, *(1,) * len(shape))


def channels_last(x, ndim):
    return x.movedim(-ndim - 1, -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["mse", "nrmse", "vrmse"])
def test_equal_to_the_well(shape, name):
    well = pytest.importorskip("the_well.benchmark.metrics.spatial")
    x, y = pair(shape)
    ndim = len(shape)
    theirs = getattr(well, name.upper())()
    expected = theirs(
        channels_last(x, ndim), channels_last(y, ndim), SimpleNamespace(n_spatial_dims=ndim)
    )
    torch.testing.assert_close(getattr(metrics, name)(x, y, ndim), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_error_equal_to_the_well(shape):
    well = pytest.importorskip("the_well.benchmark.metrics.spectral")
    x, y = pair(shape)
    ndim = len(shape)
    expected = well.binned_spectral_mse()(
        channels_last(x, ndim), channels_last(y, ndim), SimpleNamespace(n_spatial_dims=ndim)
    )
    error = metrics.binned_spectral_error(x, y, ndim)
    for i in range(3):
        for kind in ("mse", "nmse"):
            torch.testing.assert_close(
                getattr(error, kind)[..., i],
                expected[f"spectral_error_{kind}_per_bin_{i}"],
                rtol=1e-5,
                atol=1e-6,
            )


@pytest.mark.parametrize("shape", SHAPES)
def test_bands_sum_to_the_mean_squared_error(shape):
    x, y = pair(shape)
    error = metrics.binned_spectral_error(x, y, len(shape))
    torch.testing.assert_close(error.mse.sum(-1), metrics.mse(x, y, len(shape)))


def test_a_pure_wave_falls_into_its_own_band():
    n = 64
    grid = torch.arange(n) * 2 * math.pi / n
    wave = torch.sin(28 * grid)[None, None, None].expand(1, 1, 1, n)
    error = metrics.binned_spectral_error(wave, torch.zeros_like(wave), 1)
    torch.testing.assert_close(error.mse[0, 0, 0], torch.tensor([0.0, 0.0, 0.5]))


def test_the_mean_scores_one_and_the_truth_zero():
    y = torch.randn(2, 1, 3, 32, 32)
    constant = y.mean((-1, -2), keepdim=True).expand_as(y)
    torch.testing.assert_close(
        metrics.vrmse(constant, y, 2), torch.ones(2, 1, 3), rtol=1e-3, atol=0
    )
    assert metrics.vrmse(y, y, 2).abs().max() == 0


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"differ in shape: \(1, 2, 8\) and \(1, 2, 9\)"):
        metrics.vrmse(torch.zeros(1, 2, 8), torch.zeros(1, 2, 9), 1)
    with pytest.raises(ValueError, match="number of space axes"):
        metrics.mse(torch.zeros(4), torch.zeros(4), 2)


def test_sums_are_off_by_what_was_added():
    x, y = pair((16, 24))
    shifted = x + 0.25 * x.abs().mean((-2, -1), keepdim=True)
    expected = torch.full((2, 3, 4), 0.25, dtype=torch.float64)
    torch.testing.assert_close(metrics.sum_error(shifted, x, 2), expected, rtol=1e-5, atol=0)
    assert metrics.sum_error(x.roll(3, -1), x, 2).max() < 1e-12
    assert metrics.sum_error(y[:, :, 3:], y[:, :, 3:], 2).max() == 0  # nothing is there
