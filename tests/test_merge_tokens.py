"""Merged tokens: beside a cell-by-cell recursion, and averages to begin with."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

import adaptok
from adaptok.layers.positions import sinusoid
from adaptok.registry import EMBEDDINGS


def randomise(embedding):
    for merge in embedding.merges:
        nn.init.normal_(merge.weight)
        nn.init.normal_(merge.bias)


def token_by_hand(embedding, x, shape, origin, level):
    """Token of one cell of one sample (t, c, *space), which the domain holds or x is padded to."""
    size = embedding.sizes[level]
    if level == len(embedding.sizes) - 1:
        patch = torch.zeros(x.shape[1], *size, dtype=x.dtype)
        box = [slice(o, o + s) for o, s in zip(origin, size, strict=True)]
        values = x[(box[0], slice(None), *box[1:])].movedim(1, 0)
        patch[tuple(map(slice, values.shape))] = values
        center = torch.tensor([[o + s / 2 for o, s in zip(origin, size, strict=True)]])
        token = embedding.patch(patch.flatten())
        place = sinusoid(center, shape, size, len(token))[0] if embedding.positions else 0
        return token + place
    ratio = [c // f for c, f in zip(size, embedding.sizes[level + 1], strict=True)]
    children = [
        [o + i * s for o, i, s in zip(origin, index, embedding.sizes[level + 1], strict=True)]
        for index in itertools.product(*map(range, ratio))
    ]
    parts = [token_by_hand(embedding, x, shape, child, level + 1) for child in children]
    return embedding.merges[level](torch.cat(parts))


CASES = [
    ({"name": "composed", "min_size": 2, "max_size": 8, "marking": "random"}, (44,), 1),
    ({"name": "composed", "min_size": (1, 2), "max_size": (4, 8), "border": "split"}, (9, 10), 1),
    ({"name": "matey", "sizes": [1, 2, 4], "mode": "add"}, (8, 8), 2),
    ({"name": "matey", "sizes": [2, 4], "frame_size": 2, "per_frame": True}, (8, 8), 4),
    ({"name": "meshtok", "sizes": [1, 2, 4], "ratio": 0.5}, (6, 8), 2),
    ({"name": "composed", "min_size": 2, "max_size": 4}, (4, 8, 6), 1),
]


@pytest.mark.filterwarnings("ignore:budget")
@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize(("part", "shape", "frames"), CASES)
def test_tokens_equal_a_recursion(part, shape, frames, positions):
    embedding = {"name": "merge_tokens", "positions": positions}
    wired = {"ndim": len(shape), "in_channels": 2, "dim": 9}
    tokenizer = adaptok.create_tokenizer({**part, "embedding": embedding}, **wired).double()
    randomise(tokenizer.embedding)
    x = torch.randn(2, frames, 2, *shape).double().cumsum(-1)
    control = {"budget": 16} if "budget" in tokenizer.controls else {}
    tokens = tokenizer(x, **control)
    cells = tokens.cells
    assert len(set(cells.level.tolist())) > 1
    whole = cells.extended()
    padded = adaptok.layers.boundary.pad_beyond(x, whole.shape[1:], None)
    for row in range(len(cells)):
        at, level = cells.origin[row].tolist(), int(cells.level[row])
        sample = padded[int(cells.sample[row])]
        wanted = token_by_hand(tokenizer.embedding, sample, whole.shape, at, level)
        torch.testing.assert_close(tokens.features[row], wanted)


def test_it_begins_with_averages_of_convolved_patches():
    embedding = EMBEDDINGS.create("merge_tokens", 3, 8, ((1, 8, 8), (1, 4, 4), (1, 2, 2)))
    plain = EMBEDDINGS.create(
        "merge_tokens", 3, 8, ((1, 8, 8), (1, 4, 4), (1, 2, 2)), positions=False
    )
    plain.load_state_dict(embedding.state_dict())
    x, make = torch.randn(1, 1, 3, 16, 16), {"ndim": 2, "in_channels": 3, "dim": 8}
    cells = adaptok.create_tokenizer("composed", **make, min_size=2, max_size=8).cells(x, budget=10)
    fine = conv2d(x[:, 0], plain.patch.weight.view(8, 3, 2, 2), plain.patch.bias, stride=2)
    features = plain(x, cells)
    for row, (_, y, z) in enumerate((cells.origin // 2).tolist()):
        side = int(cells.size[row, 1]) // 2
        mean = fine[0, :, y : y + side, z : z + side].mean((1, 2))
        torch.testing.assert_close(features[row], mean)
    assert not torch.allclose(embedding(x, cells), features)
    embedding(x, cells).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in embedding.parameters())


def test_bad_input():
    with pytest.raises(ValueError, match="sinusoid positions on 3 axes need a dim of at least 6"):
        EMBEDDINGS.create("merge_tokens", 1, 5, ((1, 4, 4, 4), (1, 2, 2, 2)))
    made = EMBEDDINGS.create("merge_tokens", 1, 8, ((1, 4, 4), (1, 2, 2)))
    field = torch.randn(1, 1, 1, 8, 8)
    cells = adaptok.create_tokenizer("uniform", ndim=2, in_channels=1, dim=8, size=4).cells(field)
    with pytest.raises(ValueError, match="built for cells of sizes"):
        made(field, cells)
