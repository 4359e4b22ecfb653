"""Tokenizers: cells and features of each, controls, independence of samples, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import Forest, boxes

import adaptok
from adaptok import TOKENIZERS, create_tokenizer
from adaptok.tokens import TokenSet


def embed_by_hand(tokenizer, x: torch.Tensor, cells) -> torch.Tensor:
    """Each cell by itself: cut it out, pad with zeros to the size of its level, one linear map."""
    rows = []
    for row in range(len(cells)):
        level, sample = int(cells.level[row]), int(cells.sample[row])
        box = zip(cells.origin[row].tolist(), cells.size[row].tolist(), strict=True)
        time, *space = (slice(origin, origin + size) for origin, size in box)
        part = x[(sample, time, slice(None), *space)].movedim(1, 0)  # (c, t, *space)
        patch = x.new_zeros(x.shape[2], *cells.sizes[level])
        patch[tuple(slice(n) for n in part.shape)] = part
        linear = tokenizer.embedding.levels[level]
        rows.append(linear.weight @ patch.flatten() + linear.bias)
    return torch.stack(rows)


SMALL = {
    "uniform": {"size": 4},
    "iap": {"min_size": 2, "max_size": 8, "budget": 60, "border": "split"},
    "composed": {
        "min_size": 2,
        "max_size": 8,
        "marking": {"name": "random", "budget": 60},
        "border": "split",
    },
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(16, 24), (15, 22), (40,), (8, 9, 10)])
def test_features_equal_an_embedding_cell_by_cell(name, shape):
    make = {"ndim": len(shape), "in_channels": 3, "dim": 5}
    tokenizer = create_tokenizer(name, **make, **SMALL[name]).double()
    field = torch.randn(2, 1, 3, *shape).double()
    budget = {"budget": {1: 12, 2: 60, 3: 99}[len(shape)]} if name != "uniform" else {}
    tokens = tokenizer(field, **budget)
    tokens.cells.validate()
    torch.testing.assert_close(tokens.features, embed_by_hand(tokenizer, field, tokens.cells))


@pytest.mark.parametrize("name", ["uniform", "iap"])
def test_cells_with_an_extent_in_time(name):
    make = {"ndim": 2, "in_channels": 2, "dim": 5, "frame_size": 2}
    tokenizer = create_tokenizer(name, **make, **SMALL[name]).double()
    field = torch.randn(2, 4, 2, 16, 24).double()
    tokens = tokenizer(field)
    assert tokens.cells.validate().size[:, 0].unique().tolist() == [2]
    torch.testing.assert_close(tokens.features, embed_by_hand(tokenizer, field, tokens.cells))


def test_the_embedded_field_may_differ_from_the_scored_one():
    tokenizer = create_tokenizer("iap", ndim=2, in_channels=3, dim=5, **SMALL["iap"])
    scored, x = torch.randn(2, 1, 3, 16, 24), torch.randn(2, 1, 3, 16, 24)
    cells = tokenizer.cells(scored)
    tokens = tokenizer.embed(x, cells)
    assert tokens.cells is cells
    torch.testing.assert_close(tokens.features, embed_by_hand(tokenizer, x, cells))
    with pytest.raises(ValueError, match=r"cells are for \(b, t, \*space\) = \(2, 1, 16, 24\)"):
        tokenizer.embed(x[:, :, :, :8], cells)
    with pytest.raises(ValueError, match="the field is"):
        tokenizer.embed(x[:1], cells)


@pytest.mark.parametrize("name", TOKENIZERS.names())
@pytest.mark.parametrize("ndim", [2, 3])
def test_every_tokenizer_keeps_its_contract(name, ndim):
    """Also of tokenizers that are registered later: a spec that fits, cells that tile."""
    tokenizer = create_tokenizer(name, ndim=ndim, in_channels=2, dim=12)
    spec = tokenizer.spec
    assert (spec.ndim, spec.in_channels, spec.dim) == (ndim, 2, 12)
    assert all(len(size) == ndim + 1 for size in spec.sizes)
    assert isinstance(tokenizer.controls, tuple)
    field = torch.randn(2, 1, 2, *(32,) * ndim)
    cells = tokenizer.cells(field)
    cells.validate()
    assert (cells.shape, cells.tiling) == ((1, *(32,) * ndim), spec.tiling)
    assert cells.sizes[-len(spec.sizes) :] == spec.sizes
    assert cells.sizes == spec.sizes or spec.rooted
    tokens = tokenizer(field)
    assert isinstance(tokens, TokenSet)
    assert tokens.features.shape == (len(cells), 12)
    assert torch.equal(tokens.cells.origin, cells.origin)
    with pytest.raises(ValueError, match="unknown control 'bugdet'") as error:
        tokenizer.cells(field, bugdet=3)
    for control in tokenizer.controls:
        assert control in str(error.value)


@pytest.mark.parametrize("name", TOKENIZERS.names())
def test_samples_do_not_see_one_another(name):
    """Tokens of sample i are the same whatever is beside it, and alone."""
    tokenizer = create_tokenizer(name, ndim=2, in_channels=2, dim=12)
    field = torch.randn(3, 1, 2, 64, 64)
    tokens = tokenizer(field)
    other = field.clone()
    other[1] = torch.rand(1, 2, 64, 64).cumsum(2) * 100
    perturbed = tokenizer(other)
    for i in (0, 2):
        assert boxes(perturbed.cells, i) == boxes(tokens.cells, i)
        torch.testing.assert_close(perturbed.split()[i], tokens.split()[i])
    for i in range(3):
        alone = tokenizer(field[i : i + 1])
        assert boxes(alone.cells) == boxes(tokens.cells, i)
        torch.testing.assert_close(alone.features, tokens.split()[i])


@pytest.mark.parametrize("name", TOKENIZERS.names())
def test_the_same_seed_gives_the_same_result(name):
    field = torch.randn(2, 1, 2, 64, 64)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        results.append(create_tokenizer(name, ndim=2, in_channels=2, dim=12)(field))
    assert torch.equal(results[0].features, results[1].features)
    assert torch.equal(results[0].cells.origin, results[1].cells.origin)


def test_a_field_without_time_is_one_frame():
    tokenizer = create_tokenizer("iap", ndim=2, in_channels=2, dim=6, **SMALL["iap"])
    field = torch.randn(2, 2, 16, 24)
    assert torch.equal(tokenizer(field).features, tokenizer(field[:, None]).features)


# ---- uniform


@given(st.integers(1, 3), st.data())
def test_uniform_is_a_raster_of_one_size(ndim, data):
    shape = tuple(data.draw(st.integers(1, 12)) for _ in range(ndim))
    size = tuple(data.draw(st.integers(1, 5)) for _ in range(ndim))
    tokenizer = create_tokenizer("uniform", ndim=ndim, in_channels=1, dim=4, size=size)
    cells = tokenizer.cells(torch.rand(2, 1, 1, *shape)).validate()
    forest = Forest(shape, [size])
    expected = [forest.box(root) for root in forest.roots()]
    assert boxes(cells, 0) == boxes(cells, 1) == expected
    assert len(expected) == math.prod(-(-n // p) for n, p in zip(shape, size, strict=True))
    assert cells.lengths == (len(expected),) * 2


def test_uniform_with_several_sizes_chooses_per_call():
    tokenizer = create_tokenizer(
        "uniform", ndim=2, in_channels=1, dim=4, size=4, patch_sizes=[8, 2, 4]
    )
    assert tokenizer.controls == ("patch_size",)
    assert tokenizer.spec.sizes == ((1, 8, 8), (1, 4, 4), (1, 2, 2))
    field = torch.randn(2, 1, 1, 16, 16)
    for size, level in ((8, 0), (4, 1), (2, 2)):
        tokens = tokenizer(field, patch_size=size)
        assert len(tokens.cells) == 2 * (16 // size) ** 2
        assert tokens.cells.validate().level.unique().tolist() == [level]
        hand = embed_by_hand(tokenizer, field, tokens.cells)
        torch.testing.assert_close(tokens.features, hand)
    assert len(tokenizer.cells(field)) == 2 * 16
    with pytest.raises(ValueError, match=r"patch_size \(3, 3\) was not built.*\(8, 8\)"):
        tokenizer.cells(field, patch_size=3)


def test_uniform_of_one_size_has_no_control():
    tokenizer = create_tokenizer("uniform", ndim=2, in_channels=1, dim=4, size=4)
    assert tokenizer.controls == ()
    with pytest.raises(
        ValueError, match=r"unknown control 'budget'; accepted: none; adaptok.at_budget\("
    ):
        tokenizer.cells(torch.rand(1, 1, 1, 8, 8), budget=16)


# ---- iap and composed


def test_iap_is_a_composition():
    field = torch.randn(2, 1, 3, 32, 48)
    knobs = {"min_size": 2, "max_size": 16}
    iap = create_tokenizer(
        "iap", ndim=2, in_channels=3, dim=4, budget=99, splits_per_step=3, k=2, ignore=[1], **knobs
    )
    composed = create_tokenizer(
        "composed",
        ndim=2,
        in_channels=3,
        dim=4,
        indicator={"name": "gradient", "k": 2, "ignore": [1]},
        marking={"name": "budget", "budget": 99, "splits_per_step": 3},
        **knobs,
    )
    assert boxes(iap.cells(field)) == boxes(composed.cells(field))
    assert iap.controls == composed.controls == ("budget",)


def test_the_order_of_composed_tokenizers():
    field = torch.randn(1, 1, 1, 32, 32)
    make = {"ndim": 2, "in_channels": 1, "dim": 4, "marking": {"name": "budget", "budget": 70}}
    depth_first = boxes(create_tokenizer("composed", **make).cells(field))
    level = boxes(create_tokenizer("composed", **make, order="level").cells(field))
    assert level == sorted(depth_first) != depth_first
    with pytest.raises(ValueError, match="got 'morton'"):
        create_tokenizer("composed", **make, order="morton")


def test_anisotropic_cells():
    tokenizer = create_tokenizer(
        "iap", ndim=2, in_channels=1, dim=4, min_size=(1, 2), max_size=(4, 8), budget=50
    )
    cells = tokenizer.cells(torch.randn(1, 1, 1, 16, 32)).validate()
    assert cells.sizes == ((1, 4, 8), (1, 2, 4), (1, 1, 2))
    assert len(cells) == 49


def test_cells_need_no_gradient_and_keep_none():
    tokenizer = create_tokenizer("iap", ndim=2, in_channels=1, dim=4, budget=50)
    field = torch.randn(1, 1, 1, 32, 32, requires_grad=True)
    tokens = tokenizer(field)
    assert not tokens.cells.origin.requires_grad
    tokens.features.sum().backward()
    assert field.grad is not None
    assert torch.isfinite(field.grad).all()


def test_tables_built_in_inference_mode_serve_training_later():
    tokenizer = create_tokenizer("iap", ndim=2, in_channels=1, dim=4, max_size=8, budget=50)
    field = torch.randn(1, 1, 1, 24, 56)  # a shape that no other test uses
    with torch.inference_mode():
        tokenizer(field)
    tokenizer(field).features.sum().backward()


# ---- bad input


def test_an_unknown_tokenizer_lists_close_matches():
    with pytest.raises(ValueError, match=r"unknown tokenizer 'iapp' \(did you mean 'iap'\?\)"):
        create_tokenizer("iapp", ndim=2, in_channels=1, dim=4)


@pytest.mark.parametrize("name", TOKENIZERS.names())
def test_an_unknown_knob_lists_the_valid_ones(name):
    with pytest.raises(ValueError, match=f"tokenizer '{name}' has no knob 'colour'") as error:
        create_tokenizer(name, ndim=2, in_channels=1, dim=4, colour="red")
    for knob in TOKENIZERS.knobs(name):
        assert knob in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ndim": 4}, "ndim must be a whole number .* at most 3, got 4"),
        ({"ndim": 0}, "ndim must be a whole number .* at most 3, got 0"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, got 0"),
        ({"dim": -1}, "dim must be a whole number of at least 1, got -1"),
    ],
)
def test_dimensions_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_tokenizer("iap", **({"ndim": 2, "in_channels": 1, "dim": 4} | arguments))


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("iap", {"min_size": 3, "max_size": 16}, "min_size times one power of two"),
        ("iap", {"min_size": 16, "max_size": 4}, "min_size times one power of two"),
        ("iap", {"min_size": (2, 2), "max_size": (4, 8)}, "min_size times one power of two"),
        ("iap", {"min_size": 0}, "min_size must be a whole number of at least 1 .*, got 0"),
        ("iap", {"max_size": (8, 8, 8)}, "max_size is a positive whole number or 2 of them"),
        ("iap", {"min_size": 2.5}, "min_size must be a whole number.* got 2.5"),
        ("iap", {"max_size": True}, "max_size must be a whole number.* got True"),
        ("iap", {"min_size": "2"}, "min_size must be a whole number.* got '2'"),
        ("iap", {"frame_size": 0}, "frame_size must be a whole number of at least 1, got 0"),
        ("uniform", {"size": 0}, "size must be a whole number of at least 1 .*, got 0"),
        ("uniform", {"size": (4, 4, 4)}, "size is a positive whole number or 2 of them"),
        (
            "uniform",
            {"frame_size": -1},
            "frame_size must be a whole number of at least 1, got -1",
        ),
        ("uniform", {"size": 4, "patch_sizes": [8, 2]}, "patch_sizes must contain size 4"),
        ("uniform", {"size": 4, "patch_sizes": [4, 6]}, "divide one another"),
        ("composed", {"indicator": "gradeint"}, "unknown indicator 'gradeint'.*'gradient'"),
        ("composed", {"marking": {"name": "budget", "bugdet": 3}}, "no knob 'bugdet'.*'budget'"),
        ("composed", {"embedding": "conv"}, "unknown embedding 'conv'"),
        ("composed", {"indicator": {"k": 2}}, "a name or a mapping with 'name'"),
    ],
)
def test_knobs_that_make_no_sense(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        create_tokenizer(name, ndim=2, in_channels=1, dim=4, **knobs)


@pytest.mark.parametrize("name", TOKENIZERS.names())
def test_fields_that_do_not_fit(name):
    tokenizer = create_tokenizer(name, ndim=2, in_channels=2, dim=4)
    good = torch.randn(2, 1, 2, 64, 64)
    tokenizer.cells(good)
    other = torch.randn(2, 1, 3, 64, 64)
    cells = tokenizer.cells(other)  # may see other channels than are embedded
    for call in (tokenizer, lambda field: tokenizer.embed(field, cells)):
        with pytest.raises(ValueError, match=r"built for 2 channel\(s\), the field has 3"):
            call(other)
    for call in (tokenizer.cells, tokenizer):
        with pytest.raises(ValueError, match=r"\(b, t, c, \*space\)"):
            call(torch.randn(64, 64))
        with pytest.raises(ValueError, match=r"floating-point tensor, got a torch\.int64"):
            call(good.long())
        bad = good.clone()
        bad[1, 0, 1, 3, 4] = math.nan
        with pytest.raises(ValueError, match="nan in sample 1, frame 0, channel 1"):
            call(bad)


def test_scores_that_are_no_map():
    options = {"min_size": 2, "max_size": 8, "budget": 16}
    with pytest.raises(ValueError, match=r"a score map is \(b, \*space\) with 1 to 3 axes"):
        adaptok.cells_from_score(torch.rand(8), **options)
    with pytest.raises(ValueError, match="1 to 3 axes"):
        adaptok.cells_from_score(torch.rand(1, 1, 8, 8, 8), **options)
    with pytest.raises(ValueError, match="floating-point"):
        adaptok.cells_from_score(torch.ones(1, 8, 8, dtype=torch.int32), **options)
    score = torch.rand(2, 8, 8)
    score[1, 2, 3] = math.inf
    with pytest.raises(ValueError, match="inf in sample 1"):
        adaptok.cells_from_score(score, **options)


def test_score_maps_per_point():
    field = torch.randn(2, 1, 2, 32, 32)
    iap = create_tokenizer("iap", ndim=2, in_channels=2, dim=4)
    assert iap.score_map(field).shape == (2, 32, 32)
    assert np.isfinite(iap.score_map(field).numpy()).all()
