"""Rotary positions: relative, axial, and quiet where there is nothing to tell apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import rope

from adaptok.layers.positions import rotary


@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 10**6))
def test_equals_complex_rotation(axes, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.rand(7, axes, generator=generator) * 50
    shape = (64,) * axes
    width = 2 * axes * pairs + seed % 3
    x = torch.randn(7, 2, width, generator=generator)
    expected = rope(x.numpy(), centers.numpy().astype(np.float64))
    if width // 2 // axes != pairs:  # the leftover made room for one more pair each
        pairs = width // 2 // axes
    np.testing.assert_allclose(rotary(centers, shape, width)(x).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("width", [16, 32])
def test_heads_are_as_wide_as_said(width):
    turn = rotary(torch.rand(7, 3), (1, 64, 64), 24)
    with pytest.raises(ValueError, match=f"for heads of 24 channels, got {width}"):
        turn(torch.rand(7, 2, width))


@pytest.mark.parametrize("shape", [(1, 64, 64), (4, 32, 32, 32), (1, 128)])
def test_scores_depend_on_differences_alone(shape):
    """<R(p) q, R(p') k> = <R(p + s) q, R(p' + s) k> for every shift s."""
    centers = torch.rand(9, len(shape), dtype=torch.float64) * 30
    q, k = torch.randn(9, 3, 24).double(), torch.randn(9, 3, 24).double()

    def scores(shift):
        turn = rotary(centers + shift, shape, 24)
        return torch.einsum("nhe,mhe->hnm", turn(q), turn(k))

    shift = torch.tensor([3.0, -7.5, 11.0, 0.25])[: len(shape)]
    torch.testing.assert_close(scores(shift), scores(0), atol=2e-4, rtol=0)
    assert (scores(0) - torch.einsum("nhe,mhe->hnm", q, k)).abs().max() > 0.1


def test_axes_of_extent_1_take_no_channels():
    centers = torch.rand(5, 3) * 16
    plane = rotary(centers[:, 1:], (16, 16), 32)
    field = rotary(centers, (1, 16, 16), 32)
    assert torch.equal(field.cos, plane.cos)
    assert torch.equal(field.sin, plane.sin)
    line = rotary(centers, (1, 16, 1), 32)
    assert torch.equal(line.cos, rotary(centers[:, 1:2], (16,), 32).cos)


def test_a_domain_of_one_point_is_left_alone():
    x = torch.randn(4, 2, 8)
    assert torch.equal(rotary(torch.rand(4, 3), (1, 1, 1), 8)(x), x)


def test_two_dimensions_with_one_frame_equal_the_formula_of_the_paper():
    """First half of the channels turns by y, second half by x; frequency 10000^(-i / pairs)."""
    centers = torch.tensor([[0.5, 2.0, 7.0]])
    x = torch.tensor([[[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]]])
    angles = [2.0, 2.0 / 100, 7.0, 7.0 / 100]
    expected = [f(a) for a in angles for f in (np.cos, np.sin)]
    np.testing.assert_allclose(rotary(centers, (1, 9, 9), 8)(x)[0, 0].numpy(), expected, atol=1e-6)


def test_leftover_channels_stay():
    x = torch.randn(6, 2, 23)
    turned = rotary(torch.rand(6, 3) * 9, (9, 9, 9), 23)(x)
    assert torch.equal(turned[..., 18:], x[..., 18:])
    assert not torch.equal(turned[..., :18], x[..., :18])


def test_norms_and_dtype_are_kept():
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        x = torch.randn(6, 2, 16).to(dtype)
        turned = rotary(torch.rand(6, 2) * 9, (9, 9), 16)(x)
        assert turned.dtype == dtype
        torch.testing.assert_close(
            turned.norm(dim=-1), x.norm(dim=-1), atol=tolerance, rtol=tolerance
        )


def test_a_narrow_head_says_how_wide_it_must_be():
    with pytest.raises(ValueError, match="3 axes need head_dim >= 6, got 5"):
        rotary(torch.rand(2, 3), (4, 4, 4), 5)


def test_another_base_turns_at_other_frequencies():
    center = torch.tensor([[3.0]])
    turn = rotary(center, (8,), 4, base=16.0)
    torch.testing.assert_close(turn.cos, torch.tensor([[3.0, 3.0 / 4]]).cos())
