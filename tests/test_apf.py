"""APF: edges, trees from the whole domain down, and patches pasted into cells."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from references import box_sum, boxes

import adaptok
from adaptok import create_tokenizer
from adaptok.testing import check_decoder
from adaptok.tokenizers.indicators import EdgesIndicator, canny
from adaptok.tokenizers.rooted import RootedTokenizer
from adaptok.tokens import TokenSet

GOLDEN = np.load(Path(__file__).parent / "golden" / "apf_tree_2d.npz")
PERIODIC, OPEN = 2, 1


class Given(EdgesIndicator):
    """Takes the field for its edge map."""

    def edges(self, field, boundary=None):
        return field > 0.5


def tokenizer(ndim: int, edges: bool = False, **knobs) -> RootedTokenizer:
    made = create_tokenizer("apf", ndim=ndim, in_channels=1, dim=6, **knobs)
    if edges:
        made.indicator = Given(ties="list", above_finest=knobs.get("stop", False))
    return made


# ---- trees


def leaves_of(rows: np.ndarray) -> set:
    """(level, origin, size) of the authors' (x1, x2, y1, y2, score)."""
    return {
        (int(math.log2(64 / (x2 - x1))), (int(y1), int(x1)), (int(y2 - y1), int(x2 - x1)))
        for x1, x2, y1, y2, _ in rows
    }


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("budget", [16, 64, 193])
def test_trees_are_the_authors(budget, stop):
    edges = GOLDEN["edges2d"] > 0
    theirs = leaves_of(GOLDEN[f"nodes_L{budget}"])
    field = torch.tensor(edges, dtype=torch.float32)[None, None]
    ours = set(boxes(tokenizer(2, edges=True, budget=budget, stop=stop).cells(field)))
    if budget == 193:
        assert len(theirs) == 181  # the loop ended early
        assert (ours == theirs) == stop
    else:
        assert ours == theirs


def loop(edges: np.ndarray, budget: int, stop: bool) -> set:
    """The authors' loop: the first of the fullest boxes of a list splits, and its children take its
    place in it; in 2D those of the higher rows come first.
    """
    ndim, count = edges.ndim, functools.partial(box_sum, edges)
    listed = [(0, (0,) * ndim, edges.shape)]
    while len(listed) + 2**ndim - 1 <= budget:
        candidates = [box for box in listed if stop or box[2][0] > 2]
        best = max(candidates, key=count)  # the first of several
        level, origin, (side, *_) = best
        if side == 2:
            break
        steps = list(itertools.product((0, side // 2), repeat=ndim))
        if ndim == 2:
            steps.sort(key=lambda step: -step[0])
        at = listed.index(best)
        listed[at : at + 1] = [
            (level + 1, tuple(map(sum, zip(origin, step, strict=True))), (side // 2,) * ndim)
            for step in steps
        ]
    return set(listed)


@settings(max_examples=40, deadline=None)
@given(
    ndim=st.sampled_from([1, 2, 2, 3]),
    chance=st.sampled_from([0.0, 0.02, 0.2, 0.6, 1.0]),
    budget=st.integers(1, 140),
    stop=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_trees_are_those_of_the_authors_loop(ndim, chance, budget, stop, seed):
    shape = {1: (128,), 2: (32, 32), 3: (8, 8, 8)}[ndim]
    edges = (np.random.default_rng(seed).random(shape) < chance).astype(float)
    most = math.prod(n // 2 for n in shape)
    field = torch.tensor(edges, dtype=torch.float32)[None, None]
    budget = min(budget, most)
    ours = tokenizer(ndim, edges=True, budget=budget, stop=stop).cells(field)
    assert set(boxes(ours)) == loop(edges, budget, stop)


def test_without_the_stop_finest_cells_are_skipped():
    field = torch.tensor(GOLDEN["edges2d"] > 0, dtype=torch.float32)[None, None]
    assert tokenizer(2, edges=True, budget=193).cells(field).lengths == (193,)


@pytest.mark.parametrize(
    ("space", "roots", "largest"),
    [((64,), 1, 64), ((48, 40), 1, 64), ((32, 130), 5, 32), ((9, 16, 12), 1, 16), ((1, 1), 1, 2)],
)
def test_the_largest_cell_is_the_domain(space, roots, largest):
    tree = tokenizer(len(space)).tree(space)
    assert tree.sizes[0] == (largest,) * len(space)
    assert tree.inside[0] == roots
    assert tree.sizes[-1] == (2,) * len(space)


def test_a_domain_that_does_not_fit_names_those_that_do():
    split = tokenizer(2, border="split")
    with pytest.raises(
        ValueError, match=r"\(32, 64\) and \(64, 64\) fit, the field has \(48, 70\)"
    ):
        split.cells(torch.randn(1, 1, 48, 70))
    for fits in ((32, 64), (64, 64)):
        split.cells(torch.randn(1, 1, *fits), budget=40).validate()
    clipped = tokenizer(2, budget=40).cells(torch.randn(1, 1, 48, 70)).validate()
    assert clipped.tiling
    assert clipped.overhang


def test_samples_of_different_size_are_those_alone():
    made = create_tokenizer("apf", ndim=2, in_channels=2, dim=8, budget=40)
    fields = [torch.randn(1, 2, 30, 30), torch.randn(1, 2, 30, 30), torch.randn(1, 2, 64, 70)]
    tokens = made(fields)
    tokens.cells.validate()
    decoder = adaptok.create_decoder("auto", made.spec, 2)
    painted = decoder(tokens)
    for field, out, features in zip(fields, painted, tokens.split(), strict=True):
        alone = made(field[None])
        torch.testing.assert_close(alone.features, features)
        torch.testing.assert_close(decoder(alone)[0], out)


def test_parts_with_weights_per_size_refuse():
    make = {"ndim": 2, "in_channels": 1, "dim": 12}
    spec = create_tokenizer("apf", **make).spec
    for decoder in ("linear", "hmlp", "cross_attention", "local"):
        with pytest.raises(ValueError, match="sizes of this tokenizer follow the domain; 'paste'"):
            adaptok.create_decoder(decoder, spec, 1)
    with pytest.raises(ValueError, match="halo=2 has weights for each cell size"):
        create_tokenizer("apf", **make, halo=2)
    with pytest.raises(ValueError, match="high is at least low"):
        create_tokenizer("apf", **make, low=9.0, high=3.0)


# ---- edges


def canny_by_hand(image: np.ndarray, low: float, high: float, periodic: tuple) -> np.ndarray:
    """Point by point, as the steps are told in `canny`."""
    shape, ndim = image.shape, image.ndim

    def at(x, index, outside):
        place = []
        for i, n, turns in zip(index, shape, periodic, strict=True):
            if turns:
                i %= n
            elif not 0 <= i < n:
                if outside == 0:
                    return 0.0
                i = min(max(i, 0), n - 1)
            place.append(i)
        return x[tuple(place)]

    steps = list(itertools.product((-1, 0, 1), repeat=ndim))
    points = list(itertools.product(*map(range, shape)))
    slope = np.zeros((ndim, *shape))
    for point in points:
        for axis in range(ndim):
            for step in steps:
                weight = step[axis] * math.prod(
                    1 if a == axis else 2 - abs(s) for a, s in enumerate(step)
                )
                there = [p + s for p, s in zip(point, step, strict=True)]
                slope[(axis, *point)] += weight * at(image, there, "replicate")
    slope *= 4.0 ** (2 - ndim)
    magnitude = np.abs(slope).sum(0)
    weak, strong = set(), set()
    for point in points:
        g = [slope[(axis, *point)] for axis in range(ndim)]
        steepest = max(map(abs, g))
        if magnitude[point] <= low:
            continue
        step = [int(np.sign(v)) * (abs(v) >= math.tan(math.pi / 8) * steepest) for v in g]
        if [s for s in step if s][-1] < 0:  # the same line the other way round
            step = [-s for s in step]
        before, after = (
            at(magnitude, [p + sign * s for p, s in zip(point, step, strict=True)], 0)
            for sign in (-1, 1)
        )
        own, straight = magnitude[point], sum(map(abs, step)) == 1
        if own > before and (own > after or (straight and own == after)):
            weak.add(point)
            if own > high:
                strong.add(point)
    todo = list(strong)
    while todo:
        point = todo.pop()
        for step in steps:
            there = [p + s for p, s in zip(point, step, strict=True)]
            there = tuple(i % n if t else i for i, n, t in zip(there, shape, periodic, strict=True))
            if there in weak and there not in strong:
                strong.add(there)
                todo.append(there)
    out = np.zeros(shape, dtype=bool)
    for point in strong:
        out[point] = True
    return out


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([(12,), (7, 9), (4, 5, 6)]), st.integers(0, 999), st.data())
def test_edges_equal_those_found_point_by_point(shape, seed, data):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 5, shape).astype(float) * 60  # few values, many ties
    periodic = tuple(data.draw(st.booleans()) for _ in shape)
    codes = torch.tensor([[PERIODIC if turns else OPEN] * 2 for turns in periodic])
    wanted = canny_by_hand(image, 150.0, 400.0, periodic)
    x = torch.tensor(image)[None, None, None]
    ours = canny(torch.cat([x, x * 0]), 150.0, 400.0, reach=99, boundary=codes)
    assert np.array_equal(ours[0, 0, 0].numpy(), wanted)
    assert not ours[1].any()


def test_an_edge_is_one_point_wide_and_followed_as_far_as_it_may():
    step = torch.zeros(1, 1, 1, 16, 16)
    step[..., 8:] = torch.linspace(1.0, 0.05, 16)[:, None]  # strong above, weak below
    found = {
        reach: EdgesIndicator(blur=1, reach=reach, low=150.0, high=500.0).edges(step)[0, 0, 0]
        for reach in (0, 3, 99)
    }
    columns = {reach: int(edges.sum()) for reach, edges in found.items()}
    assert 0 < columns[0] < columns[3] == columns[0] + 3 < columns[99]
    assert all(bool((edges.sum(1) <= 1).all()) for edges in found.values())


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_edges_have_no_unit_and_constants_none(ndim):
    indicator, shape = EdgesIndicator(), {1: (64,), 2: (24, 24), 3: (12, 12, 12)}[ndim]
    field = torch.randn(2, 2, 2, *shape).cumsum(-1)
    edges = indicator.edges(field)
    assert edges.any()
    for unit in (2.0**-100, 2.0**60):
        assert torch.equal(indicator.edges(field * unit), edges)
    constant = torch.full_like(field, 0.1) + 1e-8 * torch.rand_like(field)
    assert not indicator.edges(constant).any()
    assert torch.equal(indicator.score_map(field).sum(), edges.sum().float())


def test_gray_bytes_and_thresholds():
    image = torch.rand(1, 1, 3, 16, 16) * 255
    gray, apart = (
        EdgesIndicator(color=color, value_range=(0, 255)) for color in ("gray", "channels")
    )
    assert gray.edges(image).shape == (1, 1, 1, 16, 16)
    assert apart.edges(image).shape == (1, 1, 3, 16, 16)
    counts = [int(EdgesIndicator(low=t, high=t).edges(image).sum()) for t in (0.0, 150.0, 1e4)]
    assert counts[0] > counts[1] > counts[2] == 0


# ---- paste


@pytest.mark.parametrize("resize", ["linear", "nearest"])
@pytest.mark.parametrize("shape", [(24,), (16, 24), (8, 12, 8)])
def test_pasted_patches_equal_torch_resizing_cell_by_cell(resize, shape):
    ndim = len(shape)
    make = {"ndim": ndim, "in_channels": 1, "dim": 5, "border": "split"}
    made = create_tokenizer("iap", **make, budget={1: 6, 2: 30, 3: 30}[ndim], max_size=8)
    tokens = made(torch.randn(2, 1, 1, *shape).cumsum(-1)).detach()
    decoder = adaptok.create_decoder("paste", made.spec, 2, points=3, resize=resize)
    field, cells = decoder(tokens), tokens.cells
    patches = decoder.head(tokens.features).unflatten(1, (1, *[3] * ndim, 2))
    options = {"mode": "nearest-exact"}
    if resize == "linear":
        options = {"mode": ("linear", "bilinear", "trilinear")[ndim - 1], "align_corners": False}
    for row in range(len(cells)):
        size = cells.size[row, 1:].tolist()
        patch = patches[row, 0].movedim(-1, 0)[None]
        wanted = F.interpolate(patch, size=size, **options)[0]
        start = cells.origin[row, 1:].tolist()
        place = (slice(o, o + s) for o, s in zip(start, size, strict=True))
        sample = int(cells.sample[row])
        torch.testing.assert_close(field[(sample, 0, slice(None), *place)], wanted)


def test_paste_shows_the_smallest_cell_and_leaves_holes():
    make = {"ndim": 2, "in_channels": 1, "dim": 5, "sizes": (2, 8), "mode": "add"}
    made = create_tokenizer("matey", **make)
    tokens = made(torch.randn(1, 1, 1, 16, 16)).detach()
    decoder = adaptok.create_decoder("paste", made.spec, 1, points=1)
    field = decoder(tokens)
    values = decoder.head(tokens.features)
    assert tokens.cells.level.unique().tolist() == [0, 1]
    torch.testing.assert_close(field, TokenSet(values, tokens.cells).dense())
    rest = tokens.select(torch.arange(2, len(tokens)))  # without the first root and child
    assert (decoder(rest) == 0).any()
    check_decoder(decoder, made.spec, 1)


def test_a_patch_over_several_frames():
    made = create_tokenizer("apf", ndim=2, in_channels=1, dim=5, budget=20, frame_size=2)
    decoder = adaptok.create_decoder("auto", made.spec, 1)
    assert decoder.points == (2, 4, 4)
    field = decoder(made(torch.randn(2, 4, 1, 16, 16)))
    assert field.shape == (2, 4, 1, 16, 16)
    assert not torch.allclose(field[:, 0], field[:, 1])
