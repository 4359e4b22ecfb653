"""DART: the authors' arrays and their gradients, samples one by one, and its boxes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adaptok
from adaptok.layers.boundary import pad_around
from adaptok.layers.strip import (
    Strip,
    StripCells,
    average_table,
    boxes_of_strip,
    make_strip,
    quantiles,
    sample_strip,
    to_points,
)
from adaptok.patches import patchify
from adaptok.tokenizers.density import Density


@pytest.fixture
def arrays(golden):
    return {name: torch.from_numpy(value) for name, value in golden("dart_tokenizer_a").items()}


def test_golden_quantiles(arrays):
    own = quantiles(arrays["q_pdf"], 7)[:, 1:-1]
    torch.testing.assert_close(arrays["q_p"], torch.arange(1, 7) / 7)
    torch.testing.assert_close(own, arrays["q_out"], atol=1e-5, rtol=0)


def test_golden_tokens_and_gradients(arrays):
    score = arrays["score"].clone().requires_grad_()
    strip = make_strip(score.view(1, 14, 14), (14,), 196)
    rows, edges = strip.bands[0][:, 0].diff() * 16, strip.edges * 16
    torch.testing.assert_close(rows, arrays["a_row_heights"], atol=1e-4, rtol=0)
    torch.testing.assert_close(edges, arrays["a_new_edges"], atol=1e-3, rtol=0)
    position = average_table(arrays["pos_embed"].view(14, 14, 12), strip, (14, 14))
    torch.testing.assert_close(position, arrays["a_pos"], atol=1e-4, rtol=0)
    # upstream's float32 coordinates are exact to a few 1e-4 points
    inside = sample_strip(arrays["image"][:, None], strip, (16, 16), 16, None, zeros=True)[:, 0]
    patches = inside[:, ::7].unflatten(2, (1, 16, 16))
    torch.testing.assert_close(patches, arrays["a_patches"], atol=2e-4, rtol=0)
    x = inside @ arrays["proj_weight"].flatten(1).T + arrays["proj_bias"]
    torch.testing.assert_close(x, arrays["a_x"], atol=2e-4, rtol=0)
    row = (strip.edges / 14).floor()
    crosses = row[:, :-1] != ((strip.edges[:, 1:] - 1e-4) / 14).floor()
    assert torch.equal(crosses, arrays["a_straddle"])
    assert int(crosses.sum()) == 13
    drawn = [np.random.RandomState(i).randn(2, *y.shape[1:]) for i, y in ((1, x), (2, position))]
    w, v = (torch.from_numpy(y.astype(np.float32))[1:] for y in drawn)
    ((x * w).sum() + (position * v).sum()).backward()
    torch.testing.assert_close(score.grad, arrays["a_grad_score"], atol=2e-3, rtol=1e-4)


class Same(nn.Module):
    """Features that are given."""

    def forward(self, field, boundary=None):
        return field[:, 0]


@pytest.mark.parametrize(("name", "version"), [("v1", "points"), ("v2", "channels")])
def test_golden_score_networks(arrays, name, version):
    for statistics in ("sample", "batch"):
        knobs = {"hidden": 6, "version": version, "statistics": statistics}
        density = Density(Same(), (1, 1), 8, **knobs)
        weights = {k.rpartition("net.")[2]: v for k, v in arrays.items() if f"{name}_spn" in k}
        density.mlp.load_state_dict(weights)
        features = nn.functional.interpolate(arrays["spn_feat"], (14, 14), mode="nearest")[:, None]
        density.features.forward = lambda field, boundary: arrays["spn_feat"][: len(field)]
        both = density(features).flatten(1)
        alone = density(features[:1]).flatten(1)
        torch.testing.assert_close(alone, arrays[f"spn_{name}_score_first_only"])
        expected = arrays[f"spn_{name}_score"]
        if statistics == "batch":
            torch.testing.assert_close(both, expected)
        else:  # as if each sample was alone
            torch.testing.assert_close(both[:1], alone)
            assert not torch.allclose(both, expected, atol=1e-3)


# ---- one by one


SPACES = [
    ((12,), (4,)),
    ((14,), (4,)),
    ((12, 8), (4, 2)),
    ((13, 10), (4, 4)),
    ((8, 6, 9), (4, 2, 3)),
]


def draw_strip(space, size, count, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    grid = [-(-n // s) for n, s in zip(space, size, strict=True)]
    density = torch.rand(batch, *grid, generator=generator, dtype=torch.float64) ** 2 + 0.05
    return make_strip(density, [max(1, g - 1) for g in grid[:-1]], count), density


def in_points(u, s, n):
    whole = -(-n // s) - 1
    return u * s if u < whole else whole * s + (u - whole) * (n - whole * s)


def column_by_hand(x, strip, b, row, column, part, points, size):
    """A value of the strip: (D - 1)-linear in the band, at one point of the last axis."""
    at, outer = [], row
    for axis in reversed(range(x.ndim - 1)):
        ends = strip.bands[axis][b]
        outer, band = divmod(outer, ends.shape[1] - 1)
        begin, end = ends[outer, band : band + 2].tolist()
        place = begin + (end - begin) * part[axis] / points
        at.insert(0, in_points(place, size[axis], x.shape[axis] - 1))
    value = 0.0
    for corner in itertools.product((0, 1), repeat=len(at)):
        low = [min(math.floor(u), n - 2) for u, n in zip(at, x.shape, strict=False)]
        shares = [u - k if side else 1 - u + k for u, k, side in zip(at, low, corner, strict=True)]
        index = [k + side for k, side in zip(low, corner, strict=True)]
        value += math.prod(shares) * float(x[(*index, column)])
    return value


@pytest.mark.parametrize(("space", "size"), SPACES)
@pytest.mark.parametrize("code", [0, 2, None])
def test_samples_equal_those_of_a_loop(space, size, code):
    ndim, points, count = len(space), 2, 7
    strip, _ = draw_strip(space, size, count)
    x = torch.randn(2, 1, 2, *space, dtype=torch.float64)
    boundary = None if code is None else torch.full((ndim, 2), code)
    found = sample_strip(x, strip, size, points, boundary, zeros=code is None)
    padded = pad_around(x, [(0, 1)] * ndim, boundary)
    if code is None:
        padded = nn.functional.pad(x, [0, 1] * ndim)
    cells, n = -(-space[-1] // size[-1]), space[-1]
    for b, j in itertools.product(range(2), range(count)):
        expected = []
        low, high = strip.edges[b, j : j + 2].tolist()
        for c, part in itertools.product(range(2), itertools.product(range(points), repeat=ndim)):
            at = low + (high - low) * part[-1] / points
            row = min(int(at // cells), strip.rows - 1)
            at = in_points(at - row * cells, size[-1], n)
            left = min(math.floor(at), n - 1)
            right = (row, left + 1)
            if left + 1 == n and row + 1 < strip.rows:
                right = (row + 1, 0)  # the next band follows
            given = (part, points, size)
            one = column_by_hand(padded[b, 0, c], strip, b, row, left, *given)
            other = column_by_hand(padded[b, 0, c], strip, b, *right, *given)
            expected.append(one * (left + 1 - at) + other * (at - left))
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(found[b, 0, j], expected)


@pytest.mark.parametrize(("space", "size"), SPACES)
def test_gradients_equal_differences(space, size):
    grid = [-(-n // s) for n, s in zip(space, size, strict=True)]
    x = torch.randn(1, 1, 1, *space, dtype=torch.float64)
    bands = [max(1, g - 1) for g in grid[:-1]]

    def tokens(density):
        strip = make_strip(density, bands, 5)
        return sample_strip(x, strip, size, 2, None)

    density = torch.rand(1, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(tokens, (density + 0.3).requires_grad_(), eps=1e-7)


@given(seed=st.integers(0, 999), count=st.integers(1, 12), case=st.sampled_from(SPACES))
@settings(max_examples=20, deadline=None)
def test_tokens_have_equal_mass_and_boxes_that_meet(seed, count, case):
    space, size = case
    strip, density = draw_strip(space, size, count, seed)
    if len(space) == 1:  # mass is that of the density itself
        mass = density / density.sum(1, keepdim=True)
        for j in range(count):
            low, high = (strip.edges[:, k, None] for k in (j, j + 1))
            cell = torch.arange(density.shape[1])
            inside = (torch.minimum(high, cell + 1) - torch.maximum(low, cell)).clamp(min=0)
            share = (mass * inside).sum(1)
            torch.testing.assert_close(share, torch.full_like(share, 1 / count), atol=1e-5, rtol=0)
    assert (strip.edges.diff(dim=1) > 0).all()
    assert strip.edges[:, -1].eq(strip.rows * -(-space[-1] // size[-1])).all()
    origin, extent = boxes_of_strip(strip, size, space)
    assert (origin >= 0).all()
    assert (extent >= 1).all()
    assert (origin + extent <= torch.tensor(space)).all()
    covered = torch.zeros(2, *space, dtype=torch.long)
    for b, j in itertools.product(range(2), range(count)):
        box = zip(origin[b, j].tolist(), extent[b, j].tolist(), strict=True)
        covered[(b, *(slice(o, o + e) for o, e in box))] += 1
    if count >= 4 * strip.rows:  # else a token may span a whole band
        assert (covered > 0).all()
    if (covered == 1).all():
        assert extent.prod(2).sum(1).tolist() == [math.prod(space)] * 2


def dart(ndim=2, **knobs):
    torch.manual_seed(0)
    return adaptok.create_tokenizer(
        "dart", ndim=ndim, in_channels=2, dim=12, **({"size": 4} | knobs)
    )


def test_an_even_density_gives_patches():
    tokenizer = dart().double()
    tokenizer.density.forward = lambda field, boundary: torch.ones(len(field), 4, 6).double()
    field = torch.randn(2, 1, 2, 16, 24).double()
    tokens = tokenizer(field)
    expected = tokenizer.embedding(patchify(field, (1, 4, 4))).flatten(0, 1)
    torch.testing.assert_close(tokens.features, expected, atol=1e-5, rtol=1e-5)
    uniform = adaptok.create_tokenizer("uniform", ndim=2, in_channels=2, dim=12, size=4)
    cells = uniform.cells(field)
    assert torch.equal(tokens.cells.origin, cells.origin)
    assert torch.equal(tokens.cells.size, cells.size)
    assert tokens.cells.owner_map().unique().numel() == 48


def test_what_tokens_are_good_for_trains_the_density():
    tokenizer = dart(positions=5, budget=20)
    tokens = tokenizer(torch.randn(2, 1, 2, 16, 24).cumsum(-1))
    assert tokens.cells.lengths == (20, 20)
    tokens.features.square().mean().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_cells_keep_their_strip_by_samples_alone():
    tokenizer, field = dart(), torch.randn(3, 2, 2, 16, 13)
    cells = tokenizer.cells(field)
    assert cells.validate().lengths == (2 * 16,) * 3
    assert isinstance(cells, StripCells)
    features = tokenizer.embed(field, cells).features
    own = tokenizer.embed(field[1:], cells.samples(1, 3)).features
    torch.testing.assert_close(own, features[32:])
    assert isinstance(cells.to("cpu").strip, Strip)
    for plain in (cells.replace(), cells.select(torch.arange(96))):
        with pytest.raises(ValueError, match="these cells have no strip"):
            tokenizer.embed(field, plain)
    listed = tokenizer([field[0], field[1, :, :, :8]])
    assert listed.cells.lengths == (32, 16)
    torch.testing.assert_close(listed.features[:32], features[:32], atol=1e-4, rtol=0)
    assert tokenizer(field).dense().shape == (3, 2, 12, 16, 13)


def test_boxes_follow_the_density():
    tokenizer = dart(ndim=1, budget=8)
    tokenizer.density.forward = lambda field, boundary: torch.tensor([[1.0, 1.0, 4.0, 2.0]])
    cells = tokenizer.cells(torch.randn(1, 1, 2, 16))
    assert cells.origin[:, 1].tolist() == [0, 4, 8, 9, 10, 11, 12, 14]
    assert cells.size[:, 1].tolist() == [4, 4, 1, 1, 1, 1, 2, 2]


def test_a_shorter_last_cell_has_less_mass():
    strip = dart(ndim=1, budget=7).cells(torch.zeros(1, 1, 2, 14)).strip  # 3.5 cells
    ends = to_points(strip.edges, 4, 14)
    torch.testing.assert_close(ends, torch.arange(0.0, 15, 2)[None], atol=1e-4, rtol=0)


def test_statistics_of_a_batch_mix_its_samples():
    field = torch.randn(2, 1, 2, 16, 16).cumsum(-1)
    for statistics in ("sample", "batch"):
        tokenizer = dart(statistics=statistics)
        one = tokenizer.cells(field[:1]).strip.edges
        assert torch.allclose(tokenizer.cells(field).strip.edges[:1], one) == (
            statistics == "sample"
        )


@pytest.mark.parametrize(
    ("knobs", "control", "message"),
    [
        ({}, {"budget": 1}, r"budget 1 leaves no token in each of 2 frame\(s\)"),
        ({}, {"budget": [10, 12]}, "one budget for all samples"),
        ({"bands": [2, 2]}, {}, r"bands are 1 number\(s\)"),
        ({"halo": 2}, {}, "cells of DartTokenizer have any size"),
        ({"ignore": [0, 1]}, {}, "every channel is ignored"),
        ({"version": "v3"}, {}, "version"),
        ({"statistics": "all"}, {}, "statistics"),
    ],
)
def test_bad_input(knobs, control, message):
    with pytest.raises(ValueError, match=message):
        dart(**knobs).cells(torch.randn(2, 2, 2, 16, 16), **control)


def test_decoders():
    spec = dart().spec
    assert type(adaptok.create_decoder("auto", spec, 1)).__name__ == "BoxDecoder"
    for name in ("linear", "cross_attention", "refine"):
        with pytest.raises(ValueError, match=r"boxes|paired"):
            adaptok.create_decoder(name, spec, 1)
    model = adaptok.create_surrogate(
        ndim=2, in_channels=1, tokenizer={"name": "dart", "size": 4}, dim=12, depth=1, heads=1
    )
    field = torch.randn(2, 1, 1, 16, 20)
    assert model.rollout(field, 2, budget=18).isfinite().all()


def test_tokens_move_with_the_field():
    """Their places are differentiable, so that derivatives go through the density."""
    torch.manual_seed(0)
    tokenizer = adaptok.create_tokenizer("dart", ndim=2, in_channels=3, dim=24, size=4).double()
    x, v = torch.randn(2, 2, 1, 3, 16, 24, dtype=torch.float64).unbind()

    def features(field):
        return tokenizer(field).features

    _, along = torch.func.jvp(features, (x,), (v,))
    _, of_density = torch.func.jvp(tokenizer.density, (x,), (v,))
    assert of_density.abs().max() > 0
    step = 1e-6
    difference = (features(x + step * v) - features(x - step * v)) / (2 * step)
    torch.testing.assert_close(along, difference, rtol=1e-4, atol=1e-5)


def test_pinned_cells_keep_their_strip(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # it needs CUDA
    tokenizer = adaptok.create_tokenizer("dart", ndim=2, in_channels=1, dim=8, budget=16)
    x = torch.randn(1, 1, 1, 16, 16)
    cells = tokenizer.cells(x)
    kept = tokenizer.embed(x, cells.pin_memory())
    assert torch.equal(kept.features, tokenizer.embed(x, cells).features)
