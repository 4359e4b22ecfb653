"""TokenSet: exact inverses of its packings, moves, pytrees; and the check of fields."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils import _pytree as pytree

import adaptok
from adaptok.tokens import TokenSet, as_field


def tokens(budgets=(20, 45, 6), dim: int = 5, **changes) -> TokenSet:
    score = torch.rand(len(budgets), 16, 24)
    cells = adaptok.cells_from_score(score, min_size=2, max_size=8, budget=list(budgets))
    cells = dataclasses.replace(cells, **changes)
    features = torch.randn(len(cells), dim, requires_grad=True)
    return TokenSet(features, cells, torch.randn(len(budgets), 3))


def test_split_and_cat_are_inverses():
    for own in (tokens(), tokens(lengths=None)):
        parts = own.split()
        assert [len(part) for part in parts] == own.cells.cu_seqlens.diff().tolist()
        assert torch.equal(torch.cat(parts), own.features)


@pytest.mark.parametrize("run", [(0, 4), (-1, 3), (2, 1), (1, 1)])
@pytest.mark.parametrize("known", [True, False])
def test_samples_that_the_batch_has_not_are_refused(run, known):
    some = tokens()
    if not known:
        cells = some.cells.replace(lengths=None)
        some = some.replace(cells=cells)
    for each in (some.samples, some.cells.samples, some.cells.rows):
        with pytest.raises(ValueError, match=f"stop <= 3, .* got {run[0]} and {run[1]}"):
            each(*run)


@pytest.mark.parametrize("bound", [None, 60])
def test_padded_and_back(bound):
    own = tokens() if bound is None else tokens(max_seqlen=bound)
    dense, mask = own.padded()
    assert dense.shape == (3, own.cells.max_seqlen, 5)
    assert torch.equal(dense[mask], own.features)
    assert not dense[~mask].any()
    assert mask.sum(1).tolist() == own.cells.cu_seqlens.diff().tolist()
    assert not (~mask[:, :-1] & mask[:, 1:]).any()  # real rows come first
    back = own.from_padded(dense + (~mask)[..., None] * 7.0)  # what stands in the padding is lost
    assert torch.equal(back.features, own.features)
    assert back.cells is own.cells
    assert back.cond is own.cond


def test_gradients_pass_through_the_padding():
    own = tokens()
    dense, _ = own.padded()
    own.from_padded(dense * 2).features.sum().backward()
    assert torch.equal(own.features.grad, torch.full_like(own.features, 2.0))


def test_from_padded_may_change_the_width():
    own = tokens()
    dense, _ = own.padded()
    wide = own.from_padded(torch.cat([dense, dense], -1))
    assert torch.equal(wide.features, torch.cat([own.features, own.features], 1))


def test_frozen_and_replace():
    own = tokens()
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.features = own.features  # type: ignore[misc]
    other = own.replace(cond=None)
    assert other.cond is None
    assert other.features is own.features


def test_to_changes_the_dtype_of_features_and_cond_only():
    half = tokens().to(torch.bfloat16)
    assert half.features.dtype == half.cond.dtype == torch.bfloat16
    assert half.cells.origin.dtype == torch.int32
    moved = tokens().replace(cond=None).to("meta")
    assert moved.features.device.type == moved.cells.level.device.type == "meta"
    assert moved.cond is None


def test_pytree_round_trip():
    for own in (tokens(), tokens().replace(cond=None)):
        leaves, spec = pytree.tree_flatten(own)
        assert len(leaves) == 6
        assert leaves[-1] is own.cond
        again = pytree.tree_unflatten(leaves, spec)
        assert again.features is own.features
        assert again.cells.sizes == own.cells.sizes
        assert (again.cond is None) == (own.cond is None)
        doubled = pytree.tree_map_only(torch.Tensor, lambda x: x * 2, own)
        assert torch.equal(doubled.features, own.features * 2)


# ---- fields


def test_a_field_without_time_has_one_frame():
    x = torch.rand(2, 3, 8, 9)
    assert torch.equal(as_field(x, 2), x[:, None])
    assert as_field(x[:, None], 2, 3).shape == (2, 1, 3, 8, 9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_a_field_is_floating_point(dtype):
    with pytest.raises(ValueError, match=f"floating-point tensor, got a {dtype} tensor"):
        as_field(torch.ones(2, 1, 1, 4, 4, dtype=dtype), 2)


def test_a_field_is_a_tensor():
    with pytest.raises(ValueError, match=r"got a numpy array: torch\.from_numpy"):
        as_field(torch.rand(2, 1, 1, 4, 4).numpy(), 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4), (1, 1, 1, 1, 4, 4)])
def test_a_wrong_rank_shows_what_is_accepted(shape):
    with pytest.raises(
        ValueError, match=r"2 space dimension\(s\) is \(b, t, c, \*space\)"
    ) as error:
        as_field(torch.rand(shape), 2)
    assert str(shape) in str(error.value)


def test_another_number_of_channels():
    with pytest.raises(ValueError, match=r"built for 3 channel\(s\), the field has 4"):
        as_field(torch.rand(1, 1, 4, 8, 8), 2, 3)


@pytest.mark.parametrize("shape", [(0, 1, 1, 4), (1, 0, 1, 4), (1, 1, 1, 0)])
def test_an_empty_field(shape):
    with pytest.raises(ValueError, match="the field is empty"):
        as_field(torch.rand(shape), 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named_by_sample_and_channel(value):
    x = torch.rand(3, 2, 4, 5, 6)
    x[1, 0, 2, 3, 4] = value
    x[2, 1, 3, 0, 0] = value
    with pytest.raises(ValueError, match="not finite") as error:
        as_field(x, 2)
    text = str(error.value)
    assert "sample 1, frame 0, channel 2 at grid point (3, 4)" in text
    assert str(value) in text


def test_infinities_that_cancel_are_found_and_a_large_sum_is_no_error():
    x = torch.zeros(1, 1, 1, 4)
    x[..., 0], x[..., 1] = float("inf"), -float("inf")
    with pytest.raises(ValueError, match="not finite"):
        as_field(x, 1)
    assert as_field(torch.full((1, 1, 1, 64), 3e38), 1).shape == (1, 1, 1, 64)


def test_values_are_not_read_where_that_would_sync():
    """On another device than the CPU nothing is read back (the meta device has no values)."""
    assert as_field(torch.empty(1, 1, 1, 4, device="meta"), 1).shape == (1, 1, 1, 4)


def test_half_precision_has_room_for_sums():
    cells = adaptok.create_tokenizer("uniform", ndim=2, in_channels=1, dim=8, size=16).cells(
        torch.zeros(1, 1, 1, 256, 256)
    )
    many = TokenSet(torch.full((len(cells), 8), 300.0).half(), cells)  # sums above 65504
    for weight in (None, "volume"):
        assert many.pool(weight=weight).equal(torch.full((1, 8), 300.0).half())


def test_weights_are_a_number_per_token():
    some = tokens()
    wide = some.replace(payload={"part": torch.rand(len(some), 2)})
    with pytest.raises(ValueError, match="weight 'part' is one number per token"):
        wide.pool(weight="part")
    unknown = some.replace(payload={"weight": torch.full((len(some),), torch.nan)})
    with pytest.raises(ValueError, match="weight is a number of at least 0"):
        unknown.weight  # noqa: B018


def test_no_tokens_are_zeros_on_the_grid():
    some = tokens(budgets=(20, 20))
    none = some.select(torch.zeros(len(some), dtype=torch.bool))
    assert none.dense().shape == some.dense().shape
    assert not none.dense().any()


def test_channels_that_come_last_are_named():
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=3, dim=8, budget=16)
    x = torch.randn(2, 16, 16, 3)
    message = r"the field has 16; channels come before space: field\.movedim\(-1, -3\)"
    with pytest.raises(ValueError, match=message):
        tokenizer(x)
    assert len(tokenizer(x.movedim(-1, -3)))


@pytest.mark.parametrize("boundary", ["periodic", 2, torch.zeros(2, 2), torch.zeros(3, 2).long()])
def test_boundaries_of_another_form_are_refused_with_the_codes(boundary):
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=1, dim=8, budget=16)
    with pytest.raises(ValueError, match=r"\(2, 2\) or \(b, 2, 2\).*wall 0, open 1, periodic 2"):
        tokenizer(torch.randn(2, 1, 16, 16), boundary=boundary)
