"""The margin around each cell, against a loop over the points of every cell's window."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adaptok
from adaptok import (
    TOKENIZERS,
    CellTokenizer,
    TokenizerSpec,
    TreeTokenizer,
    cells_from_boxes,
    create_tokenizer,
)
from adaptok.testing import check_tokenizer
from adaptok.tokenizers import UniformTokenizer, with_halo
from adaptok.tokenizers.embeddings import BoxEmbedding, LinearEmbedding

WALL, OPEN, PERIODIC = 0, 1, 2


def windows(extent, halo):
    """Offsets of all points of a window from the first point of its cell."""
    frames, *space = extent
    return list(itertools.product(range(frames), *(range(-halo, n + halo) for n in space)))


def is_inside(offset, extent):
    return all(0 <= k < n for k, n in zip(offset, extent, strict=True))


def window_by_hand(x, cells, row, offsets, extent, codes):
    """All channels at some points of the window of a cell, (points, c)."""
    values, shape = x.numpy(), cells.shape
    origin, size = cells.origin[row].tolist(), cells.size[row].tolist()
    sample, out = int(cells.sample[row]), np.zeros((len(offsets), x.shape[2]))
    for number, offset in enumerate(offsets):
        point: list[int] = []
        for axis, (k, n, width) in enumerate(zip(offset, shape, extent, strict=True)):
            if k >= width:
                at = origin[axis] + size[axis] + (k - width)
            elif k < size[axis]:
                at = origin[axis] + k
            else:
                break  # a smaller cell ends before
            if axis and codes[axis - 1][0] == PERIODIC:
                at = at % n
            elif axis:
                at = min(max(at, 0), n - 1)
            elif not 0 <= at < n:
                break
            point.append(at)
        if len(point) == len(shape):
            out[number] = values[(sample, point[0], slice(None), *point[1:])]
    return torch.from_numpy(out)


def halo_by_hand(tokenizer, x, cells, codes):
    """One row per cell: the weights of its size times the points around it, one at a time."""
    out, sizes = [], list(tokenizer.halo.extents)
    for row in range(len(cells)):
        size = cells.sizes[int(cells.level[row])]
        extent = tokenizer.halo.extents[size]
        around = [k for k in windows(extent, tokenizer.halo.width) if not is_inside(k, extent)]
        own = codes[int(cells.sample[row])]
        values = window_by_hand(x, cells, row, around, extent, own)
        out.append(tokenizer.halo.levels[sizes.index(size)].weight @ values.flatten())
    return torch.stack(out)


def inside_alone(tokenizer, x, cells, boundary):
    """Features of the same tokenizer without what lies around its cells."""
    halo, tokenizer.halo = tokenizer.halo, None
    features = tokenizer.embed(x, cells, boundary=boundary).features
    tokenizer.halo = halo
    return features


@st.composite
def cases(draw):
    ndim = draw(st.integers(1, 3))
    most = {1: 20, 2: 8, 3: 4}[ndim]
    shape = draw(st.tuples(*[st.integers(3, most)] * ndim))
    code = st.sampled_from([[WALL, OPEN], [OPEN, WALL], [PERIODIC, PERIODIC]])
    codes = draw(st.lists(st.lists(code, min_size=ndim, max_size=ndim), min_size=2, max_size=2))
    return shape, codes, draw(st.integers(1, 3)), draw(st.sampled_from(["clip", "split"]))


@settings(max_examples=6)
@given(cases())
def test_a_linear_embedding_with_a_halo_is_one_linear_map_of_the_window(case):
    shape, codes, halo, border = case
    boundary, frames = torch.tensor(codes), 2
    make = {"ndim": len(shape), "in_channels": 2, "dim": 3, "frame_size": frames, "halo": halo}
    marking = {"name": "fraction", "ratio": 0.5}
    knobs = {"marking": marking, "min_size": 2, "max_size": 4, "border": border}
    tokenizer = create_tokenizer("composed", **make, **knobs).double()
    x = torch.randn(2, frames, 2, *shape).double()
    tokens = tokenizer(x, boundary=boundary)
    cells, rows = tokens.cells, []
    for row in range(len(cells)):
        level = int(cells.level[row])
        extent = cells.sizes[level]
        inside, ring = tokenizer.embedding.levels[level], tokenizer.halo.levels[level].weight
        window = windows(extent, halo)
        weights = torch.zeros(3, len(window), 2).double()
        mine = torch.tensor([is_inside(k, extent) for k in window])
        weights[:, mine] = inside.weight.unflatten(1, (2, -1)).transpose(1, 2)
        weights[:, ~mine] = ring.unflatten(1, (-1, 2))
        own = codes[int(cells.sample[row])]
        values = window_by_hand(x, cells, row, window, extent, own)
        rows.append(weights.flatten(1) @ values.flatten() + inside.bias)
    torch.testing.assert_close(tokens.features, torch.stack(rows))


LEVELS = torch.arange(13 * 17).view(13, 17) % 3
EVERY = [
    ("amr", {"min_size": 2, "max_size": 8, "mode": "passing"}, {}),
    ("uniform", {"size": 4}, {}),
    ("uniform", {"size": 4, "patch_sizes": [2, 4]}, {"patch_size": 2}),
    ("iap", {"min_size": 2, "max_size": 8, "budget": 20}, {}),
    ("apt", {"min_size": 2}, {}),
    ("given", {"min_size": 2, "max_size": 8}, {"levels": LEVELS}),
    ("msvit", {"sizes": [2, 4]}, {}),
    ("near_best", {"min_size": 2, "max_size": 8, "tolerance": 0.9}, {}),
    ("quadformer", {"min_size": 2, "max_size": 8, "budget": 20}, {}),
    ("focus", {"min_size": 2, "max_size": 8, "budget": 20}, {}),
    ("patch_dropout", {"size": 4}, {"seed": 2}),
    ("radial", {"min_size": 2, "max_size": 8, "budget": 20}, {}),
    ("rlt", {"size": 4, "longest": 1}, {}),  # longer runs: test_rlt.py
    ("random", {"min_size": 2, "max_size": 8, "budget": 20}, {}),
    ("matey", {"sizes": [2, 4], "mode": "add"}, {}),
    ("matey", {"sizes": [4, 8], "embedding": "hmlp"}, {}),
    ("composed", {"min_size": 2, "max_size": 8, "embedding": "boxes"}, {"budget": 10}),
    ("meshtok", {"sizes": [2, 4]}, {"ratio": 0.5}),
    ("coarse_fine", {"size": 4}, {}),
    ("ckm", {"patch_sizes": [4, 8]}, {"patch_size": 4}),
    ("ckm", {"patch_sizes": [8], "size": 12}, {}),
    ("csm", {"patch_sizes": [4, 8]}, {"patch_size": 4}),
]
REFUSING = {"apf", "dart"}  # sizes that follow the domain, or any


def test_every_tokenizer_is_among_those_below():
    assert {name for name, *_ in EVERY} == set(TOKENIZERS.names()) - REFUSING


@pytest.mark.parametrize(("name", "knobs", "control"), EVERY)
def test_every_tokenizer_adds_what_lies_around_its_cells(name, knobs, control):
    tokenizer = create_tokenizer(name, ndim=2, in_channels=1, dim=8, halo=2, **knobs).double()
    x = torch.randn(2, 1, 1, 13, 17).double()
    codes = [[[2, 2], [0, 1]], [[0, 0], [2, 2]]]
    boundary = torch.tensor(codes)
    tokens = tokenizer(x, boundary=boundary, **control)
    added = tokens.features - inside_alone(tokenizer, x, tokens.cells, boundary)
    torch.testing.assert_close(added, halo_by_hand(tokenizer, x, tokens.cells, codes))
    wanted = tokenizer.embed(x[1:], tokens.cells.samples(1, 2), boundary=boundary[1:]).features
    torch.testing.assert_close(tokens.split()[1], wanted)
    tokens.features.square().sum().backward()
    assert all(p.grad is not None for p in tokenizer.halo.parameters())


def test_a_halo_keeps_the_promises_of_a_tokenizer():
    make = {"ndim": 2, "in_channels": 2, "dim": 6, "halo": 3, "budget": 20}
    check_tokenizer(create_tokenizer("iap", **make, min_size=2, max_size=8))


@pytest.mark.parametrize("embedding", [LinearEmbedding, BoxEmbedding])
def test_given_boxes_of_any_place(embedding):
    sizes = ((1, 4, 4), (1, 2, 2))
    origin = [[0, -2, 3], [0, 5, 0], [0, 1, 1], [0, 4, 4]]
    size = [[1, 4, 3], [1, 3, 4], [1, 1, 2], [1, 2, 1]]
    cells = cells_from_boxes(origin, size, [3, 1], shape=(1, 6, 7), sizes=sizes, tiling=False)

    class Given(CellTokenizer):
        controls = ()

    spec = TokenizerSpec(2, 2, 5, sizes, tiling=False)
    tokenizer = with_halo(Given(spec, embedding(2, 5, sizes)), halo=2).double()
    x, codes = torch.randn(2, 1, 2, 6, 7).double(), [[[0, 0], [2, 2]], [[2, 2], [1, 1]]]
    boundary = torch.tensor(codes)
    features = tokenizer.embed(x, cells, boundary=boundary).features
    added = features - inside_alone(tokenizer, x, cells, boundary)
    torch.testing.assert_close(added, halo_by_hand(tokenizer, x, cells, codes))


def blocks_by_hand(x, block):
    """The mean of each block of points (b, t, c, *blocks), at the end of those that there are."""
    shape = [-(-n // k) for n, k in zip(x.shape[3:], block, strict=True)]
    out = x.new_zeros(*x.shape[:3], *shape)
    for place in itertools.product(*map(range, shape)):
        spans = (slice(k * i, k * i + k) for i, k in zip(place, block, strict=True))
        out[(..., *place)] = x[(..., *spans)].flatten(3).mean(-1)
    return out


@pytest.mark.parametrize(
    ("shape", "knobs"),
    [
        ((37,), {"border": "clip", "halo": 3}),
        ((13, 17), {"border": "split", "halo": 2}),
        ((16, 21), {"border": "clip", "halo": 3, "min_size": (4, 2), "max_size": (16, 8)}),
        ((8, 9, 8), {"border": "clip", "halo": 1}),
    ],
)
def test_a_pooled_margin_is_the_margin_of_means(shape, knobs):
    """That of larger cells on the grid of means, block by block; that of the finest as it is."""
    ndim, ends, ring = len(shape), [WALL, OPEN], [PERIODIC, PERIODIC]
    make = {"ndim": ndim, "in_channels": 2, "dim": 3, "min_size": 2, "max_size": 8} | knobs
    marking = {"name": "fraction", "ratio": 0.6}
    tokenizer = create_tokenizer("composed", **make, marking=marking, halo_pooled=True).double()
    x = torch.randn(2, 1, 2, *shape).double()
    codes = [[ends, ring, ring][:ndim], [ring, ends, ring][:ndim]]
    tokens = tokenizer(x, boundary=torch.tensor(codes))
    cells, expected = tokens.cells, []
    added = tokens.features - inside_alone(tokenizer, x, cells, torch.tensor(codes))
    block = cells.sizes[-1]
    pooled = blocks_by_hand(x, block[1:])
    for row in range(len(cells)):
        level = int(cells.level[row])
        finest = level == len(cells.sizes) - 1
        pitch = (1,) * (ndim + 1) if finest else block
        down = [n // k for n, k in zip(cells.sizes[level], pitch, strict=True)]
        width = [-(-knobs["halo"] // k) for k in pitch[1:]]
        step = torch.tensor(pitch)
        on_blocks = SimpleNamespace(
            shape=[-(-n // k) for n, k in zip(cells.shape, pitch, strict=True)],
            origin=cells.origin // step,
            size=(cells.size + step - 1) // step,
            sample=cells.sample,
        )
        spans = (range(-k, n + k) for n, k in zip(down[1:], width, strict=True))
        window = list(itertools.product([0], *spans))
        around = [place for place in window if not is_inside(place, down)]
        field, own = x if finest else pooled, codes[int(cells.sample[row])]
        values = window_by_hand(field, on_blocks, row, around, down, own)
        expected.append(tokenizer.halo.levels[level].weight @ values.flatten())
    assert len({*cells.level.tolist()}) > 1
    torch.testing.assert_close(added, torch.stack(expected))


def test_a_pooled_margin_needs_grids():
    make = {"ndim": 2, "in_channels": 1, "dim": 8, "halo": 2, "halo_pooled": True}
    with pytest.raises(ValueError, match="of CsmTokenizer need not lie on the grids"):
        create_tokenizer("csm", **make)
    one = create_tokenizer("uniform", **make, size=4)  # one size, so nothing is coarse
    assert one.halo.levels[0].weight.shape == (8, 8 * 8 - 4 * 4)


@pytest.mark.parametrize("name", ["iap", "ckm", "uniform"])
def test_static_rows_give_the_same(name, monkeypatch):
    tokenizer = create_tokenizer(name, ndim=2, in_channels=2, dim=8, halo=2)
    x = torch.randn(2, 1, 2, 40, 52)
    tokens = tokenizer(x)
    monkeypatch.setattr("adaptok.patches.reads_are_free", lambda values: False)
    torch.testing.assert_close(tokenizer.embed(x, tokens.cells).features, tokens.features)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pooled"), [("iap", False), ("iap", True), ("csm", False)])
def test_compiled_without_a_break(name, pooled):
    tokenizer = create_tokenizer(name, ndim=2, in_channels=2, dim=8, halo=2, halo_pooled=pooled)
    x, boundary = torch.randn(2, 1, 2, 40, 52), torch.tensor([[2, 2], [0, 1]])
    compiled = torch.compile(tokenizer, backend="aot_eager", fullgraph=True)
    wanted = tokenizer(x, boundary=boundary).features
    torch.testing.assert_close(compiled(x, boundary=boundary).features, wanted)


def test_fields_of_different_size_in_one_list():
    knobs = {"min_size": 2, "max_size": 8, "budget": 30, "halo": 3}
    tokenizer = create_tokenizer("iap", ndim=2, in_channels=1, dim=4, **knobs)
    fields = [torch.randn(1, 16, 20), torch.randn(1, 11, 9)]
    codes = torch.tensor([[[2, 2], [2, 2]], [[0, 0], [2, 2]]])
    parts = tokenizer(fields, boundary=codes).split()
    for field, code, part in zip(fields, codes, parts, strict=True):
        torch.testing.assert_close(tokenizer(field[None], boundary=code).features, part)


def test_half_precision_by_autocast():
    tokenizer = create_tokenizer("uniform", ndim=2, in_channels=1, dim=4, size=4, halo=2)
    x = torch.randn(1, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half = tokenizer(x).features
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), tokenizer(x).features, atol=0.05, rtol=0.05)


def test_none_is_the_tokenizer_of_before():
    torch.manual_seed(0)
    before = UniformTokenizer(2, 1, 4, size=4)
    torch.manual_seed(0)
    after = create_tokenizer("uniform", ndim=2, in_channels=1, dim=4, size=4, halo=0)
    assert [*before.state_dict()] == [*after.state_dict()]
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(before(x).features, after(x).features)


def test_a_model_with_a_halo_is_saved_and_has_the_boundary(tmp_path):
    tokenizer = {"name": "iap", "budget": 16, "max_size": 8, "halo": 2}
    options = {"ndim": 2, "in_channels": 1, "dim": 12, "depth": 1, "heads": 2}
    model = adaptok.create_surrogate(**options, tokenizer=tokenizer).eval()
    adaptok.save_pretrained(model, tmp_path)
    again, x = adaptok.from_pretrained(tmp_path), torch.randn(1, 1, 1, 16, 16)
    periodic = torch.tensor([[2, 2], [2, 2]])
    assert torch.equal(again(x, boundary=periodic), model(x, boundary=periodic))
    cells = model.cells(x)
    seen = [model.tokenizer.embed(x[:, 0], cells, boundary=b).features for b in (None, periodic)]
    assert not torch.equal(*seen)


class OwnEmbed(UniformTokenizer):
    """A tokenizer that embeds on its own."""

    def embed(self, x, cells, *, boundary=None):
        return super().embed(x, cells, boundary=boundary)


class Protocol(nn.Module):
    """A tokenizer by its members alone."""

    spec, controls, cells, embed = TokenizerSpec(2, 1, 4, ((1, 4, 4),)), (), None, None


@pytest.mark.parametrize(
    ("name", "halo", "message"),
    [
        ("iap", -1, "halo must be a whole number of at least 0, got -1"),
        ("iap", 1.5, "halo must be a whole number"),
        (
            lambda ndim, in_channels, dim: OwnEmbed(ndim, in_channels, dim),
            1,
            "OwnEmbed has its own",
        ),
        (Protocol, 1, "Protocol does not derive from CellTokenizer"),
    ],
)
def test_halos_that_cannot_be(name, halo, message):
    with pytest.raises(ValueError, match=message):
        create_tokenizer(name, ndim=2, in_channels=1, dim=4, halo=halo)


def test_fields_and_cells_that_a_halo_does_not_fit():
    make = {"ndim": 2, "in_channels": 1, "dim": 4}
    tokenizer = create_tokenizer("uniform", **make, size=4, halo=6)
    with pytest.raises(ValueError, match=r"halo of 6 .* space axis 1 of the field, which has 5"):
        tokenizer(torch.randn(1, 1, 6, 5))
    ckm = create_tokenizer("ckm", **make, patch_sizes=[4], halo=1)
    with pytest.raises(ValueError, match=r"sizes \(4, 4\), these are of \(8, 8\)"):
        ckm(torch.randn(1, 1, 16, 16), patch_size=8)


def test_a_ready_tree_gets_one_by_hand():
    made = create_tokenizer("iap", ndim=2, in_channels=1, dim=4, budget=20, max_size=8)
    ready = TreeTokenizer(made.spec, made.indicator, made.marking, made.embedding)
    x = torch.randn(1, 1, 16, 16)
    plain = ready(x).features
    assert with_halo(ready, halo=2) is ready
    assert not torch.equal(ready(x).features, plain)
