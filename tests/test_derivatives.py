"""Derivatives of whole models: of first and second order, in forward and reverse mode."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import adaptok

STATIC = ["iap", "uniform", "ckm", "csm"]


def small(tokenizer="uniform"):
    """A surrogate of one space dimension whose cells stay the same under small changes."""
    part = {"uniform": {"size": 4}, "iap": {"budget": 5, "min_size": 2, "max_size": 4}}[tokenizer]
    return adaptok.create_surrogate(
        ndim=1,
        in_channels=1,
        dim=8,
        depth=1,
        heads=2,
        tokenizer={"name": tokenizer, **part},
        normalise="none",
        predict="state",
    ).double()


def state():
    return torch.randn(1, 1, 1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tokenizer", ["uniform", "iap"])
def test_first_and_second_derivatives_agree_with_differences(tokenizer):
    model, x = small(tokenizer), state().requires_grad_()
    with adaptok.attention_backend("math"):
        assert torch.autograd.gradcheck(model, x, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(model, x, fast_mode=True)


def test_jacobians_of_all_modes_are_one():
    model, x = small(), state()
    with adaptok.attention_backend("math"):
        reverse = torch.func.jacrev(model)(x)
        forward = torch.func.jacfwd(model)(x)
        _, column = torch.func.jvp(model, (x,), (torch.eye(12, dtype=x.dtype)[:1].view_as(x),))
    torch.testing.assert_close(forward, reverse)
    torch.testing.assert_close(column, reverse[..., 0, 0, 0, 0])


def test_a_hessian_vector_product_agrees_with_differences_of_gradients():
    model, x = small(), state()
    direction = torch.randn_like(x)
    slope = torch.func.grad(lambda x: model(x).square().sum())
    with adaptok.attention_backend("math"):
        _, product = torch.func.jvp(slope, (x,), (direction,))  # forward over reverse
        z = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(z).square().sum(), z, create_graph=True)
        (twice,) = torch.autograd.grad((first * direction).sum(), z)  # reverse over reverse
        ends = [slope(x + sign * 1e-6 * direction) for sign in (1, -1)]
    torch.testing.assert_close(product, twice)
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, product, rtol=1e-5, atol=1e-6)


def test_a_per_sample_jacobian_maps_over_a_batch():
    model, x = small(), torch.cat([state(), state() + 1])
    with adaptok.attention_backend("math"):
        mapped = torch.func.vmap(torch.func.jacrev(lambda x: model(x[None])[0]))(x)
        alone = torch.func.jacrev(model)(x[1:])
    torch.testing.assert_close(mapped[1], alone[0, ..., 0, :, :, :])


@pytest.mark.parametrize("name", STATIC)
def test_static_tokenizers_run_on_fake_tensors(name):
    """Counts follow from the settings, so nothing has to be read."""
    knobs = {"budget": 64} if name == "iap" else {}
    tokenizer = adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=24, **knobs)
    real = tokenizer(torch.randn(2, 1, 2, 32, 32))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = tokenizer(torch.randn(2, 1, 2, 32, 32))
    assert fake.features.shape == real.features.shape
    assert fake.cells.lengths == real.cells.lengths
    after = tokenizer(torch.randn(2, 1, 2, 32, 32))  # no fake tensor stayed behind
    assert after.features.isfinite().all()


@pytest.mark.parametrize("name", ["ckm", "csm"])
def test_tokenizers_of_any_patch_size_run_on_the_meta_device(name):
    tokenizer = adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=24).to("meta")
    field = torch.empty(2, 1, 2, 32, 32, device="meta")
    real = adaptok.create_tokenizer(name, ndim=2, in_channels=2, dim=24)
    for control in ({}, {"patch_size": 4}):
        tokens = tokenizer(field, **control)
        assert tokens.features.device.type == "meta"
        assert len(tokens) == len(real(torch.zeros(2, 1, 2, 32, 32), **control))
