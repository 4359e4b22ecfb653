"""Tokenizers that do not see the field: resolution by chance and by the distance from places, and
uniform cells that chance drops."""

from __future__ import annotations

import itertools

import pytest
import torch
from references import boxes, halvings

import adaptok
from adaptok.registry import INDICATORS
from adaptok.tree import Tree


def tokens(name: str, ndim: int = 2, **knobs):
    return adaptok.create_tokenizer(name, ndim=ndim, in_channels=1, dim=4, **knobs)


@pytest.mark.parametrize("name", ["random", "radial", "focus"])
@pytest.mark.parametrize("shape", [(200,), (48, 32), (45, 70), (16, 32, 16)])
def test_cells_follow_from_the_shape_alone(name, shape):
    tokenizer = tokens(name, len(shape), budget=60)
    assert tokenizer.static
    fields = torch.randn(2, 1, 1, *shape), torch.ones(3, 1, 1, *shape)
    first, other = (tokenizer.cells(field).validate() for field in fields)
    assert all(boxes(other, i) == boxes(first, 0) for i in range(3))
    assert boxes(first, 0) == boxes(first, 1)
    assert 60 - 2 ** len(shape) < first.lengths[0] <= 60


def test_chance_follows_the_seed():
    field = torch.randn(1, 1, 1, 32, 32)
    tokenizer = tokens("random", budget=40, seed=3)
    again, same = tokens("random", budget=40), boxes(tokenizer.cells(field))
    assert boxes(again.cells(field)) != same == boxes(again.cells(field, seed=3))


@pytest.mark.parametrize("center", [None, (0.1, 0.8)])
def test_scores_equal_the_distance_node_by_node(center):
    tree = Tree((32, 48), ((16, 8), (8, 4), (4, 2)))
    periodic = torch.tensor([[[0, 1], [2, 2]], [[0, 0], [1, 1]]])
    scores = INDICATORS.create("radial", center=center)(
        torch.zeros(2, 1, 1, 32, 48), tree, boundary=periodic
    )
    point = [n * s for n, s in zip((32, 48), center or (0.5, 0.5), strict=True)]
    wanted = []
    for sample in range(2):
        for size, grid in zip(tree.sizes[:-1], tree.grids[:-1], strict=True):
            for index in itertools.product(*map(range, grid)):
                square = 0.0
                for axis, (i, s) in enumerate(zip(index, size, strict=True)):
                    turns = (-48, 0, 48) if axis == 1 and sample == 0 else (0,)
                    gaps = [
                        max(i * s - p, p - i * s - s, 0) for t in turns for p in [point[axis] + t]
                    ]
                    square += (min(gaps) / s) ** 2
                wanted.append(1 / (1 + square**0.5))
    torch.testing.assert_close(scores.flatten(), torch.tensor(wanted))


def test_cells_grow_with_the_distance_from_the_center():
    cells = tokens("radial", budget=100, center=(0.0, 1.0)).cells(torch.zeros(1, 1, 1, 64, 64))
    away = (cells.center[:, 1:] - torch.tensor([0.0, 64.0])).norm(dim=1)
    means = [float(away[cells.level == level].mean()) for level in range(4)]
    assert means == sorted(means, reverse=True)
    for bad in ((0.5,), (0.5, 1.5)):
        with pytest.raises(ValueError, match="center"):
            tokens("radial", center=bad)


# ---- focus


def test_scores_equal_the_distance_from_the_nearest_focus_node_by_node():
    shape, tree = (32, 24), Tree((32, 24), tuple(halvings(2, 8, 2)))
    points, places = [(0.9, 0.1)], [((0.2, 0.3), (0.4, 0.8))]
    periodic = torch.tensor([[[0, 1], [2, 2]], [[0, 0], [1, 1]]])
    indicator = INDICATORS.create("focus", points=points, boxes=places)
    scores = indicator(torch.zeros(2, 1, 1, *shape), tree, boundary=periodic)
    foci, wanted = [*((p, p) for p in points), *places], []

    def gap(sample: int, axis: int, start: int, size: int, low: float, high: float) -> float:
        n = shape[axis]
        turns = (-n, 0, n) if axis == 1 and sample == 0 else (0,)
        return min(max(start - high * n - t, low * n + t - start - size, 0) for t in turns) / size

    for sample in range(2):
        for sizes, grid in zip(tree.sizes[:-1], tree.grids[:-1], strict=True):
            for index in itertools.product(*map(range, grid)):
                away = [
                    sum(
                        gap(sample, a, i * s, s, low[a], high[a]) ** 2
                        for a, (i, s) in enumerate(zip(index, sizes, strict=True))
                    )
                    for low, high in foci
                ]
                wanted.append(1 / (1 + min(away) ** 0.5))
    torch.testing.assert_close(scores.flatten(), torch.tensor(wanted))


def test_one_point_is_radial_and_every_focus_is_fine():
    field = torch.zeros(1, 1, 1, 64, 64)
    one = tokens("focus", budget=100, points=[(0.1, 0.8)]).cells(field)
    assert boxes(one) == boxes(tokens("radial", budget=100, center=(0.1, 0.8)).cells(field))
    middle = tokens("radial", budget=50).cells(field)
    assert boxes(tokens("focus", budget=50).cells(field)) == boxes(middle)
    places = {"points": [(0.1, 0.1)], "boxes": [((0.6, 0.7), (0.7, 0.9))]}
    cells = tokens("focus", budget=250, **places).cells(field)
    owner = cells.owner_map()[0, 0]
    for x, y in ((6, 6), (39, 46), (44, 57), (41, 50)):
        assert int(cells.level[owner[x, y]]) == 3
    assert int(cells.level[owner[63, 0]]) < 2


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"points": [(0.5,)]},
            r"points and boxes have one share .*, 2, got \[\[0.5\]\]",
        ),
        ({"points": [(0.5, 1.5)]}, "points must be a list.* at most 1"),
        ({"boxes": [((0.5, 0.5), (0.4, 0.9))]}, "their first and their last corner"),
        ({"boxes": [((0.5, 0.5),)]}, "their first and their last corner"),
    ],
)
def test_foci_that_make_no_sense(knobs, message):
    with pytest.raises(ValueError, match=message):
        tokens("focus", **knobs)


# ---- patch dropout


@pytest.mark.parametrize("shape", [(40,), (24, 40), (8, 16, 8)])
def test_training_keeps_a_share_of_the_patches_and_evaluation_all(shape):
    dropped = tokens("patch_dropout", len(shape), size=4, drop=0.7)
    field = torch.randn(3, 2, 1, *shape)
    whole = tokens("uniform", len(shape), size=4).cells(field)
    cells = dropped.cells(field).validate()
    assert cells.lengths == (max(1, int(whole.lengths[0] * 0.3)),) * 3
    assert not cells.tiling
    rows = [list(map(tuple, part.origin.tolist())) for part in (cells, whole)]
    kept = [row for row, origin in enumerate(rows[1]) if origin in set(rows[0])]
    assert kept == [i for i in range(len(whole)) if rows[1][i] in set(rows[0][: len(kept) // 3])]
    assert rows[0] == [rows[1][row] for row in kept]  # in raster order, the same for all samples
    assert boxes(dropped.cells(field[1:2])) == boxes(cells)
    features = dropped.embed(field, whole).features[kept]
    torch.testing.assert_close(dropped(field).features, features)
    entire = dropped.eval().cells(field).validate()
    assert entire.tiling
    assert torch.equal(entire.origin, whole.origin)


def covered(cells) -> torch.Tensor:
    """1 where some cell is, (b, t, 1, *space)."""
    return adaptok.TokenSet(torch.ones(len(cells), 1), cells).dense()


def test_the_seed_decides_which_patches():
    field = torch.randn(1, 1, 1, 32, 32)
    zero = tokens("patch_dropout", size=4)
    five = boxes(tokens("patch_dropout", size=4, seed=5).cells(field))
    assert five == boxes(zero.cells(field, seed=5)) != boxes(zero.cells(field))
    counts = sum(covered(zero.cells(field, seed=seed)) for seed in range(24))
    assert 3 <= counts.min() < counts.max() <= 21  # every patch has its turn
    with pytest.raises(ValueError, match="seed must be a whole number"):
        zero.cells(field, seed=0.5)
    assert tokens("patch_dropout", size=16, drop=0.9).cells(field).lengths == (1,)
    assert tokens("patch_dropout", drop=0.0).cells(field).tiling


def test_decoders_fill_holes_or_leave_them_and_a_schedule_draws_anew():
    make = {"ndim": 2, "in_channels": 2, "dim": 24, "depth": 1, "heads": 2, "predict": "state"}
    part = {"name": "patch_dropout", "size": 4, "drop": 0.75}
    schedule = adaptok.create_schedule("seeds")
    field = torch.randn(2, 1, 2, 16, 16)
    for decoder in ("linear", "paste", "hmlp", "cross_attention"):
        model = adaptok.create_surrogate(tokenizer=part, decoder=decoder, normalise="none", **make)
        first, second = (model(field, **schedule(step)) for step in range(2))
        assert torch.isfinite(first).all()
        assert not torch.equal(first, second)
        holes = covered(model.tokenizer.cells(field, **schedule(0))) == 0
        empty = bool((first.masked_select(holes) == 0).all())
        assert empty == (decoder in ("linear", "paste"))
        model.eval()
        assert torch.equal(model(field, **schedule(0)), model(field))
    with pytest.raises(ValueError, match="spacetime_parallel"):
        adaptok.create_surrogate(tokenizer=part, processor="spacetime_parallel", **make)


@pytest.mark.parametrize("name", ["random", "patch_dropout"])
def test_an_exported_program_draws_what_the_seed_says(name):
    knobs = {"budget": 20, "min_size": 2, "max_size": 8} if name == "random" else {"size": 4}
    model = adaptok.create_surrogate(
        ndim=2, in_channels=1, dim=16, depth=1, heads=2, tokenizer={"name": name, **knobs}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(1, 1, 1, 16, 16)
    program = torch.export.export(model, (x,), strict=False).module()
    assert torch.equal(program(x), program(x))
    torch.testing.assert_close(program(x), model(x))
