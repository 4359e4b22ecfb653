"""Boxes of any place and size: cells, embedding, decoders, groups against rasters, loop by loop."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adaptok
from adaptok import TokenizerSpec, TokenSet, cells_from_boxes
from adaptok.layers.boxes import coverage, crop, paint
from adaptok.patches import gather_boxes, paint_boxes, rows_of_levels

SIZES = {1: ((2, 8), (1, 4)), 2: ((2, 6, 4), (1, 3, 2)), 3: ((2, 4, 4, 2), (1, 2, 2, 1))}


@st.composite
def boxes(draw, inside: bool = False):
    """Random boxes of two samples, over the border too unless `inside`."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(3, 9)) for _ in range(ndim + 1))
    largest = SIZES[ndim][0]
    origin, size, lengths = [], [], []
    for _ in range(2):
        count = draw(st.integers(1, 4))
        for _ in range(count):
            size.append(
                [draw(st.integers(1, min(m, n))) for m, n in zip(largest, shape, strict=True)]
            )
            low = 0 if inside else -2
            origin.append(
                [
                    draw(st.integers(low, n - (s if inside else 1)))
                    for n, s in zip(shape, size[-1], strict=True)
                ]
            )
        lengths.append(count)
    return cells_from_boxes(origin, size, lengths, shape=shape, sizes=SIZES[ndim])


def points_of(cells, row):
    """Grid points of a cell inside the domain."""
    ranges = [
        range(max(0, o), min(n, o + s))
        for o, s, n in zip(
            cells.origin[row].tolist(), cells.size[row].tolist(), cells.shape, strict=True
        )
    ]
    return list(itertools.product(*ranges))


def random_field(cells, channels=2):
    generator = torch.Generator().manual_seed(0)
    shape = (cells.batch_size, cells.shape[0], channels, *cells.shape[1:])
    return torch.randn(shape, generator=generator)


def parts_of(origin, size, part, points):
    return [
        (o + s * i / p, o + s * (i + 1) / p)
        for o, s, i, p in zip(origin, size, part, points, strict=True)
    ]


def overlap(low, high, point):
    axes = zip(low, high, point, strict=True)
    return math.prod(max(0.0, min(b, i + 1) - max(a, i)) for a, b, i in axes)


@given(boxes())
def test_crops_are_means_over_parts_and_painting_is_their_transpose(cells):
    points = (2, *[3, 2, 1][: cells.ndim])
    x = random_field(cells).double()
    values = crop(x, cells.sample, cells.origin, cells.size, points)
    for row, (sample, origin, size) in enumerate(
        zip(cells.sample.tolist(), cells.origin.tolist(), cells.size.tolist(), strict=True)
    ):
        for part in itertools.product(*map(range, points)):
            low, high = zip(*parts_of(origin, size, part, points), strict=True)
            total = torch.zeros(2, dtype=torch.float64)
            for at in points_of(cells, row):
                total += overlap(low, high, at) * x[(sample, at[0], slice(None), *at[1:])]
            volume = math.prod(b - a for a, b in zip(low, high, strict=True))
            torch.testing.assert_close(values[(row, slice(None), *part)], total / volume)
    other = torch.randn_like(values)
    box = (cells.sample, cells.origin, cells.size, cells.batch_size, cells.shape)
    volume = cells.volume.double().view(-1, *[1] * (other.ndim - 1)) / math.prod(points)
    torch.testing.assert_close((values * volume * other).sum(), (x * paint(other, *box)).sum())


@given(boxes())
def test_coverage_counts_boxes(cells):
    counts = torch.zeros(cells.batch_size, *cells.shape, dtype=torch.int64)
    for row, sample in enumerate(cells.sample.tolist()):
        for at in points_of(cells, row):
            counts[(sample, *at)] += 1
    box = (cells.sample, cells.origin, cells.size, cells.batch_size, cells.shape)
    assert torch.equal(coverage(*box), counts)


@given(boxes())
def test_patches_hold_the_values_of_their_cells_and_are_painted_there(cells):
    x = random_field(cells)
    painted = torch.zeros_like(x)
    for level, rows in enumerate(rows_of_levels(cells)):
        patches = gather_boxes(x, cells, level, rows)
        painted += paint_boxes(patches, cells, level, rows)
        for row, patch in zip(rows.tolist(), patches, strict=True):
            values = patch.unflatten(0, (2, *cells.sizes[level]))
            expected = torch.zeros_like(values)
            for at in points_of(cells, row):
                inside = [a - o for a, o in zip(at, cells.origin[row].tolist(), strict=True)]
                sample = int(cells.sample[row])
                expected[(slice(None), *inside)] = x[(sample, at[0], slice(None), *at[1:])]
            assert torch.equal(values, expected)
    box = (cells.sample, cells.origin, cells.size, cells.batch_size, cells.shape)
    torch.testing.assert_close(painted, x * coverage(*box).unsqueeze(2))


@given(boxes())
def test_features_on_the_grid_are_those_of_the_smallest_cell(cells):
    tokens = TokenSet(torch.randn(len(cells), 3), cells)
    expected = torch.zeros(cells.batch_size, *cells.shape, 3)
    for row in sorted(range(len(cells)), key=lambda r: (-int(cells.volume[r]), -r)):
        for at in points_of(cells, row):
            expected[(int(cells.sample[row]), *at)] = tokens.features[row]
    assert torch.equal(tokens.dense(), expected.movedim(-1, 2))


@given(boxes(), st.data())
def test_groups_of_any_boxes_are_bounded(cells, data):
    fixed = data.draw(st.lists(st.integers(0, cells.ndim), unique=True, max_size=cells.ndim))
    groups = cells.groups(fixed)
    assert groups.cu_seqlens.diff().max() <= cells.max_seqlen
    assert cells._most(fixed, [1] * len(fixed), [0] * len(fixed), False) >= max(groups.lengths)


@given(boxes())
def test_every_decoder_and_embedding_for_boxes_follows_its_token(cells):
    """A token that changes changes the field inside of its own box and, for decoders that only
    paint, nowhere else.
    """
    torch.manual_seed(0)
    spec = TokenizerSpec(cells.ndim, 2, 8, cells.sizes, tiling=False)
    x = torch.randn(len(cells), 8)
    for name in ("linear", "boxes", "cross_attention"):
        knobs = {"heads": 1} if name == "cross_attention" else {}
        decoder = adaptok.create_decoder(name, spec, 1, **knobs)
        before = decoder(TokenSet(x, cells))
        other = x.clone()
        other[0] += 1.0
        difference = (decoder(TokenSet(other, cells)) - before).abs()[:, :, 0]
        change = difference > 1e-5  # sums over rectangles round
        own = torch.zeros_like(change)
        for at in points_of(cells, 0):
            own[(0, *at)] = True
        if name != "cross_attention":  # its latents see all tokens of the sample
            assert not (change & ~own).any()
        assert not change[1].any()
    field = random_field(cells)
    for name in ("linear", "boxes"):
        embedding = adaptok.EMBEDDINGS.create(name, 2, 8, cells.sizes)
        out = embedding(field, cells)
        changed = field.clone()
        for at in points_of(cells, 0):
            changed[(0, at[0], slice(None), *at[1:])] += 1.0
        assert points_of(cells, 0) == [] or not torch.equal(embedding(changed, cells)[0], out[0])
        assert torch.equal(embedding(changed, cells)[cells.sample == 1], out[cells.sample == 1])


def test_a_box_decoder_paints_a_tiling_with_the_values_of_its_parts():
    tokenizer = adaptok.create_tokenizer("iap", ndim=2, in_channels=1, dim=8, budget=40)
    cells = tokenizer.cells(torch.randn(2, 1, 1, 32, 32))
    decoder = adaptok.create_decoder("boxes", tokenizer.spec, 1, points=1)
    tokens = TokenSet(torch.randn(len(cells), 8), cells)
    extent = cells.size.float().log2()
    values = decoder.head(torch.cat([tokens.features, extent], 1))[:, 0]
    torch.testing.assert_close(decoder(tokens)[:, :, 0], values[cells.owner_map()])


class Windows(adaptok.CellTokenizer):
    """Overlapping windows of 8, every 4 points, off the grid of their level."""

    controls = ()

    def __init__(self, embedding: str = "linear", on_grid: bool = False):
        sizes = ((1, 8, 8),)
        spec = TokenizerSpec(2, 1, 16, sizes, tiling=False, on_grid=on_grid)
        super().__init__(spec, adaptok.EMBEDDINGS.create(embedding, 1, 16, sizes))

    def cells(self, field, *, boundary=None):
        b, *_, h, w = field.shape
        starts = list(itertools.product([0], range(0, h - 7, 4), range(0, w - 7, 4)))
        shape = (field.shape[1], h, w)
        size = [[1, 8, 8]] * (b * len(starts))
        return cells_from_boxes(
            starts * b, size, [len(starts)] * b, shape=shape, sizes=self.spec.sizes, tiling=False
        )


def test_windows_are_embedded_and_painted_where_they_lie():
    tokenizer = Windows()
    field = torch.zeros(1, 1, 1, 32, 32)
    field[..., 4:12, 4:12] = 1
    torch.nn.init.ones_(tokenizer.embedding.levels[0].weight)
    torch.nn.init.zeros_(tokenizer.embedding.levels[0].bias)
    tokens = tokenizer(field)
    row = tokens.cells.origin.tolist().index([0, 4, 4])
    assert tokens.features[row].tolist() == [64.0] * 16
    decoder = adaptok.create_decoder("linear", tokenizer.spec, 1)
    torch.nn.init.ones_(decoder.levels[0].weight)
    torch.nn.init.zeros_(decoder.levels[0].bias)
    x = torch.zeros(len(tokens), 16)
    x[row] = 1
    at = decoder(tokens.replace(features=x))[0, 0, 0].nonzero()
    assert at.amin(0).tolist() == [4, 4]
    assert at.amax(0).tolist() == [11, 11]


def test_parts_that_need_grids_refuse_other_cells_by_name():
    with pytest.raises(ValueError, match="'hmlp'"):
        adaptok.create_decoder("hmlp", Windows().spec, 1)
    for name in ("hmlp", "resize_zero"):
        with pytest.raises(ValueError, match="on_grid"):
            Windows(name)
    field = torch.randn(1, 1, 1, 32, 32)
    for name in ("hmlp", "resize_zero"):  # a spec that lies is found by the cells
        with pytest.raises(ValueError, match=f"'{name}'"):
            Windows(name, on_grid=True)(field)


@pytest.mark.slow
def test_a_compiled_model_of_windows_equals_the_eager_one():
    """The bound of a group off the grid is the length of a sample (it was 4 where 14 is true)."""
    tokenizer = Windows()
    tokens = tokenizer(torch.randn(1, 1, 1, 32, 32))
    processor = adaptok.create_processor("axial", tokenizer.spec, depth=1, heads=2)
    compiled = torch.compile(processor, backend="eager")
    torch.testing.assert_close(compiled(tokens).features, processor(tokens).features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [[1, 0], [1, 4]]}, "at least 1"),
        ({"size": [[1, 9], [1, 4]]}, r"box 0 of size \[1, 9\]"),
        ({"lengths": [3]}, "sum"),
        ({"size": [[1, 4], [1, 3]], "tiling": True}, "hole"),
        ({"origin": [[0, 0], [0, 5]], "tiling": True}, "sticks out"),
        ({"origin": [[0, 0], [0, 3]], "tiling": True}, "overlaps"),
        ({"sizes": [[1, 8], [1, 3]]}, "integer ratios"),
    ],
)
def test_boxes_that_make_no_cells_are_refused(change, message):
    given = {"origin": [[0, 0], [0, 4]], "size": [[1, 4], [1, 4]], "lengths": [2]}
    given |= {"shape": (1, 8), "sizes": ((1, 8), (1, 4)), "tiling": None}
    assert cells_from_boxes(**given).tiling
    with pytest.raises(ValueError, match=message):
        cells_from_boxes(**(given | change))


def test_boxes_do_not_wrap_around():
    far = torch.tensor([[0, 2**32]])
    for origin, size in [(far, [[1, 2]]), ([[0, 0]], far)]:
        with pytest.raises(ValueError, match="has numbers of at most 2147483647"):
            cells_from_boxes(origin, size, [1], shape=(1, 8), sizes=[[1, 4]], tiling=False)


def test_no_samples():
    with pytest.raises(ValueError, match="a number per sample, got none"):
        cells_from_boxes([], [], [], shape=(1, 8), sizes=[[1, 4]])
