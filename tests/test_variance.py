"""The variance indicator against torch.var, box by box."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import Forest

from adaptok.tokenizers.indicators import VarianceIndicator
from adaptok.tokenizers.indicators.variance import channel_variances
from adaptok.tree import Tree


def by_boxes(field: torch.Tensor, forest: Forest) -> torch.Tensor:
    """(b, inner nodes inside, c): torch.var of everything in the box."""
    out = []
    for node in forest.inner():
        _, origin, size = forest.box(node)
        box = tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))
        values = field[(slice(None), slice(None), slice(None), *box)].transpose(1, 2).flatten(2)
        single = values.shape[2] == 1
        out.append(torch.zeros_like(values[..., 0]) if single else values.var(2))
    return torch.stack(out, 1)


def inside(tree: Tree) -> torch.Tensor:
    return ~tree.nodes(torch.device("cpu")).outside


@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.data())
def test_equals_torch_var_on_every_node(ndim, frames, three_levels, data):
    axis = [st.sampled_from([1, 2, 3]), st.sampled_from([2, 3]), st.sampled_from([1, 2])]
    fine, ratio, again = (tuple(data.draw(a) for _ in range(ndim)) for a in axis)
    middle = tuple(f * r for f, r in zip(fine, ratio, strict=True))
    sizes = [middle, fine]
    if three_levels and max(again) > 1:
        sizes.insert(0, tuple(m * a for m, a in zip(middle, again, strict=True)))
    shape = tuple(data.draw(st.integers(1, 9 if ndim == 3 else 20)) for _ in range(ndim))
    field = torch.rand(2, frames, 2, *shape, dtype=torch.float64)
    tree = Tree(shape, tuple(sizes))
    ours = channel_variances(field, tree)[:, inside(tree)]
    torch.testing.assert_close(ours, by_boxes(field, Forest(shape, sizes)))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
def test_nothing_cancels_where_the_mean_is_large(offset):
    """In single precision, as good as the rounding of the field itself allows."""
    field = (offset + torch.rand(2, 2, 1, 32, 32, dtype=torch.float64)).float()
    sizes = ((16, 16), (8, 8), (4, 4))
    ours = channel_variances(field, Tree((32, 32), sizes))
    exact = by_boxes(field.double(), Forest((32, 32), sizes))
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [0.1, -7.3, 1e30])
def test_a_constant_has_variance_exactly_zero(value):
    field = torch.full((1, 3, 2, 13, 24), value)
    assert channel_variances(field, Tree((13, 24), ((12, 12), (6, 6), (2, 2)))).eq(0).all()


def test_mean_over_channels_with_weights():
    field = torch.randn(2, 2, 3, 16, 16) * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1)
    tree = Tree((16, 16), ((8, 8), (4, 4)))
    each = channel_variances(field, tree)
    torch.testing.assert_close(VarianceIndicator()(field, tree), each.mean(-1))
    weighted = VarianceIndicator(weights=[2, 0, 1])(field, tree)
    torch.testing.assert_close(weighted, (2 * each[..., 0] + each[..., 2]) / 3)
    torch.testing.assert_close(VarianceIndicator(ignore=[-1])(field, tree), each[..., :2].mean(-1))
    with pytest.raises(ValueError, match="2 channel weights for a field of 3"):
        VarianceIndicator(weights=[1, 1])(field, tree)
    with pytest.raises(ValueError, match="weights must be"):
        VarianceIndicator(weights=[1, -1])


def test_normalise_makes_units_irrelevant():
    field = torch.randn(2, 2, 2, 16, 16).cumsum(3)
    other = field * torch.tensor([1e-3, 40.0]).view(2, 1, 1) + 5
    tree = Tree((16, 16), ((8, 8), (4, 4)))
    raw, unit_free = VarianceIndicator(), VarianceIndicator(normalise=True)
    torch.testing.assert_close(unit_free(other, tree), unit_free(field, tree), rtol=1e-3, atol=0)
    assert (raw(other, tree) / raw(field, tree)).max() > 100
    mean = field.mean((1, 3, 4), keepdim=True)
    standard = (field - mean) / field.transpose(1, 2).flatten(2).std(2)[:, None, :, None, None]
    torch.testing.assert_close(unit_free(field, tree), raw(standard, tree))
    constant = torch.full((1, 1, 1, 16, 16), 3.0)
    assert unit_free(constant, tree).eq(0).all()


def test_half_precision_and_one_level():
    field = torch.rand(1, 1, 1, 16, 16)
    tree = Tree((16, 16), ((8, 8), (4, 4)))
    score = VarianceIndicator()(field.bfloat16(), tree)
    torch.testing.assert_close(score, VarianceIndicator()(field.bfloat16().float(), tree))
    assert VarianceIndicator()(field, Tree((16, 16), ((4, 4),))).shape == (1, 0)
