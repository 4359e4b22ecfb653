"""Tokenizers that do not see the field: resolution by chance, and by the distance from a point."""

from __future__ import annotations

import itertools

import pytest
import torch
from references import boxes

import adaptok
from adaptok.registry import INDICATORS
from adaptok.tree import Tree


def tokens(name: str, ndim: int = 2, **knobs):
    return adaptok.create_tokenizer(name, ndim=ndim, in_channels=1, dim=4, **knobs)


@pytest.mark.parametrize("name", ["random", "radial"])
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
