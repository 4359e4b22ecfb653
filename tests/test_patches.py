"""Patches: cutting and gluing are inverses, and level grids find the cells they stand for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adaptok
from adaptok.cells import Cells
from adaptok.patches import (
    _bounded_rows,
    grid_index,
    level_grid,
    owner_grid,
    pad_end,
    patchify,
    rows_of_levels,
    scatter_to_grid,
    unpatchify,
)

shapes = st.integers(1, 3).flatmap(
    lambda ndim: st.tuples(
        st.tuples(st.integers(1, 3), *[st.integers(1, 9)] * ndim),
        st.tuples(st.integers(1, 2), *[st.integers(1, 4)] * ndim),
    )
)


@given(shapes, st.integers(1, 3), st.integers(1, 2))
def test_patchify_cuts_and_unpatchify_glues(shape_and_size, channels, batch):
    (t, *space), size = shape_and_size
    x = torch.randn(batch, t, channels, *space)
    patches = patchify(x, size)
    grid = level_grid((t, *space), size)
    assert torch.equal(unpatchify(patches, (t, *space), size), x)
    values = x.movedim(2, 1).numpy()  # (b, c, t, *space)
    for row, place in enumerate(itertools.product(*map(range, grid))):
        expected = np.zeros((batch, channels, *size), dtype=np.float32)
        window = tuple(slice(i * p, (i + 1) * p) for i, p in zip(place, size, strict=True))
        part = values[(slice(None), slice(None), *window)]
        expected[tuple(slice(n) for n in part.shape)] = part  # zeros beyond the border
        np.testing.assert_array_equal(patches[:, row].numpy(), expected.reshape(batch, -1))


def test_pad_end_fills_the_last_axes_up_to_multiples():
    x = torch.arange(1.0, 13).view(2, 1, 2, 3)
    assert pad_end(x, (2, 3)) is x
    padded = pad_end(x, (3, 2))
    assert padded.shape == (2, 1, 3, 4)
    assert torch.equal(padded[..., :2, :3], x)
    assert padded.sum() == x.sum()
    assert torch.equal(pad_end(x, (1, 5), "replicate")[..., 3], x[..., 2])


def cells_of(kind: str, frames: int = 1) -> Cells:
    """Ragged adaptive tilings, some of domains that do not divide."""
    if kind == "uniform":
        tokenizer = adaptok.create_tokenizer("uniform", ndim=2, in_channels=1, dim=8, size=(3, 5))
        return tokenizer.cells(torch.rand(2, frames, 1, 16, 24))
    shape, budgets = {
        "divides": ((16, 24), [20, 60]),
        "clipped": ((13, 19), [50, 70]),
        "3d": ((9, 8, 12), [100, 118]),
        "1d": ((61,), [12, 30]),
    }[kind]
    ndim = len(shape)
    knobs = {"min_size": 2, "max_size": 8, "frame_size": frames, "border": "split"}
    tokenizer = adaptok.create_tokenizer("iap", ndim=ndim, in_channels=1, dim=8, **knobs)
    return tokenizer.cells(torch.rand(2, frames, 1, *shape), budget=budgets)


KINDS = ("uniform", "divides", "clipped", "3d", "1d")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 2])
def test_owner_grid_is_owner_map_at_the_first_points(kind, frames):
    cells = cells_of(kind, frames)
    finest = cells.sizes[-1]
    points = cells.owner_map()[(slice(None), *[slice(None, None, p) for p in finest])]
    assert torch.equal(owner_grid(cells), points.flatten(1))


def test_owner_grid_leaves_holes_and_lets_the_finest_win():
    def cells(rows, sizes) -> Cells:
        origin, size, level = (torch.tensor(column) for column in zip(*rows, strict=True))
        ends = torch.tensor([0, len(rows)], dtype=torch.int32)
        return Cells(
            origin.int(), size.int(), level.to(torch.int8), ends, len(rows), (len(rows),), (1, 8),
            sizes, tiling=False,
        )  # fmt: skip

    sizes = ((1, 4), (1, 2))
    overlapping = cells([([0, 0], [1, 4], 0), ([0, 2], [1, 2], 1)], sizes)
    assert owner_grid(overlapping).tolist() == [[0, 1, -1, -1]]


@pytest.mark.parametrize("kind", KINDS)
def test_grid_index_points_at_the_cell(kind):
    cells = cells_of(kind)
    for level, size in enumerate(cells.sizes):
        grid = level_grid(cells.shape, size)
        for row in (cells.level == level).nonzero().flatten().tolist()[:20]:
            origin, sample = cells.origin[row].tolist(), int(cells.sample[row])
            place = [o // p for o, p in zip(origin, size, strict=True)]
            expected = np.ravel_multi_index((sample, *place), (cells.batch_size, *grid))
            assert int(grid_index(cells, level)[row]) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_levels_and_the_bounded_variant(kind):
    """The variant of static shape lists the same rows, filled up with n."""
    cells = cells_of(kind)
    exact = rows_of_levels(cells)
    assert sorted(torch.cat(exact).tolist()) == list(range(len(cells)))
    for level, rows in enumerate(exact):
        assert cells.level[rows].tolist() == [level] * len(rows)
        bounded = _bounded_rows(cells, level)
        assert bounded[: len(rows)].tolist() == rows.tolist()
        assert bounded[len(rows) :].tolist() == [len(cells)] * (len(bounded) - len(rows))


def test_the_bounded_variant_has_room_for_any_cells():
    """Its length follows from host numbers alone, and no tiling of the domain exceeds it."""
    for budget in (4, 100, 256):
        cells = adaptok.cells_from_score(
            torch.rand(2, 32, 32), min_size=2, max_size=16, budget=budget
        )
        for level in range(4):
            room = len(_bounded_rows(cells, level))
            bound = min(2 * budget, 2 * min(4 * 4**level, budget))
            if level < 3:  # a cell of this level takes the place of so many finest ones
                bound = min(bound, (2 * 256 - len(cells)) // (4 ** (3 - level) - 1))
            assert room == bound
            assert room >= int((cells.level == level).sum())


def test_rows_of_levels_is_static_where_compiled(monkeypatch):
    cells = cells_of("divides")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    lengths = [len(rows) for rows in rows_of_levels(cells)]
    assert lengths == [len(_bounded_rows(cells, level)) for level in range(3)]
    assert lengths[0] == (2 * 8 * 12 - len(cells)) // 15


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_and_linear_decoder_of_the_static_path_equal_the_exact_one(kind, monkeypatch):
    cells = cells_of(kind)
    ndim = cells.ndim
    if kind == "uniform":
        tokenizer = adaptok.create_tokenizer("uniform", ndim=2, in_channels=2, dim=6, size=(3, 5))
    else:
        knobs = {"min_size": 2, "max_size": 8}
        tokenizer = adaptok.create_tokenizer("iap", ndim=ndim, in_channels=2, dim=6, **knobs)
    decoder = adaptok.create_decoder("linear", tokenizer.spec, 3).double()
    tokenizer = tokenizer.double()
    x = torch.randn(cells.batch_size, 1, 2, *cells.shape[1:]).double().requires_grad_()
    parameters = [*tokenizer.parameters(), *decoder.parameters()]

    def run():
        tokens = tokenizer.embed(x, cells)
        field = decoder(tokens)
        return [
            tokens.features,
            field,
            *torch.autograd.grad(field.square().sum(), [x, *parameters]),
        ]

    exact = run()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for static, expected in zip(run(), exact, strict=True):
        torch.testing.assert_close(static, expected)


@pytest.mark.parametrize("kind", ["uniform", "divides", "clipped", "3d", "1d"])
@pytest.mark.parametrize("bounded", [False, True])
def test_values_scattered_to_grids_paint_every_cell_where_it_lies(kind, bounded):
    cells = cells_of(kind)
    values = torch.randn(len(cells), 3)
    painted = torch.zeros(cells.batch_size, *cells.shape, 3)
    for level, size in enumerate(cells.sizes):
        rows = _bounded_rows(cells, level) if bounded else rows_of_levels(cells)[level]
        given = torch.cat([values, torch.full((1, 3), torch.inf)])[rows]  # inf in filler rows
        image = scatter_to_grid(given, cells, level, rows)
        assert image.shape == (cells.batch_size, *level_grid(cells.shape, size), 3)
        for axis, (p, n) in enumerate(zip(size, cells.shape, strict=True)):
            image = image.repeat_interleave(p, dim=axis + 1).narrow(axis + 1, 0, n)
        painted += image
    assert torch.equal(painted, values[cells.owner_map()])


def test_values_of_one_grid_cell_add_up():
    cells = cells_of("divides")
    rows = rows_of_levels(cells)[0]
    once = scatter_to_grid(torch.ones(len(rows), 1), cells, 0, rows)
    twice = scatter_to_grid(torch.ones(2 * len(rows), 1), cells, 0, torch.cat([rows, rows]))
    assert torch.equal(twice, 2 * once)
