"""Quadformer: scores, cells and tokens of its own code; blur and sinusoids beside slow ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

import adaptok
from adaptok.registry import INDICATORS
from adaptok.tokenizers.marking import BudgetMarking
from adaptok.tree import Tree, cells_from_splits

MAKE = {"ndim": 2, "in_channels": 3, "dim": 24, "min_size": 8, "max_size": 32}
MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}


def meta_of(cells, sample):
    """(x, y, log2 of the size) of each token in finest cells, and its row; sorted as upstream."""
    rows = (cells.sample == sample).nonzero().squeeze(1)
    place = cells.center[rows][:, [2, 1]] / 8
    meta = torch.cat([place, (cells.size[rows, 1:2] / 8).log2()], 1).numpy()
    order = np.lexsort((meta[:, 0], meta[:, 1], meta[:, 2]))
    return meta[order], rows[torch.from_numpy(order)]


@pytest.fixture
def upstream(golden):
    return {k: torch.from_numpy(v) for k, v in golden("quadformer_tree128").items()}


@pytest.fixture
def tokenizer(upstream):
    made = adaptok.create_tokenizer("quadformer", **MAKE, budget=40)
    made.embedding.patch.load_state_dict(
        {"weight": upstream["proj_weight"].flatten(1), "bias": upstream["proj_bias"]}
    )
    return made


def test_golden_scores_and_cells(upstream, tokenizer):
    scores, tree = tokenizer.scores(upstream["images"])
    for size, level in zip((32, 16), tree.per_level(scores[:, 0]), strict=True):
        torch.testing.assert_close(level, -upstream[f"blur_score_p{size}"], atol=1e-5, rtol=0)
    for budget in (16, 40, 64, 100):
        cells = tokenizer.cells(upstream["images"], budget=budget).validate()
        for sample in range(2):
            assert np.array_equal(meta_of(cells, sample)[0], upstream[f"meta_M{budget}"][sample])


def test_golden_cells_of_given_importance(upstream):
    """Their precomputed scorer: one map per size, averaged over the patches."""
    tree = Tree((128, 128), ((32, 32), (16, 16), (8, 8)))
    pooled = [
        nn.functional.adaptive_avg_pool2d(upstream["importance_maps"][:, k], 128 // size).flatten(1)
        for k, size in ((1, 32), (0, 16))
    ]
    scores = torch.cat(pooled, 1)[:, None]
    for budget in (40, 64):
        marks = BudgetMarking(budget=budget)(scores, tree)
        cells = cells_from_splits(marks.split, tree, frames=1, lengths=marks.lengths)
        for sample in range(2):
            wanted = upstream[f"pre_meta_M{budget}"][sample]
            assert np.array_equal(meta_of(cells, sample)[0], wanted)


def test_golden_tokens_with_positions(upstream, tokenizer):
    """Upstream's order is that of a Z-curve, so tokens are compared by their place."""
    tokens = tokenizer(upstream["images"])
    processor = adaptok.create_processor(
        "vit", tokenizer.spec, depth=0, heads=1, positions="sinusoid"
    )
    placed, _ = processor.positions(tokens.features, tokens.cells, tokens.cells.center)
    for sample in range(2):
        rows = meta_of(tokens.cells, sample)[1]
        theirs = upstream["meta_zorder_unsorted_M40"][sample].numpy()
        order = np.lexsort((theirs[:, 0], theirs[:, 1], theirs[:, 2]))
        wanted = upstream["tokens_z_M40"][sample, 1:][torch.from_numpy(order)]
        torch.testing.assert_close(placed[rows], wanted, atol=1e-5, rtol=0)
    dense = tokens.replace(features=placed).dense()[:, 0, :, ::8, ::8]
    torch.testing.assert_close(dense, upstream["reverse_M40"], atol=1e-5, rtol=0)


# ---- the score of any node


@pytest.mark.parametrize("shape", [(20,), (13, 22), (8, 9, 6)])
@pytest.mark.parametrize("power", [None, 0.0, 1.5])
def test_blur_node_by_node(shape, power):
    ndim = len(shape)
    sizes = tuple((size,) * (ndim - 1) + (2 * size,) for size in (4, 2, 1))
    tree, field = Tree(shape, sizes), torch.randn(2, 2, 3, *shape).double().cumsum(-1)
    scores = INDICATORS.create("blur", power=power)(field, tree)
    exponent = 0.5 if power is None else power
    wanted = []
    for size, grid in zip(sizes[:-1], tree.grids[:-1], strict=True):
        factor = size[0] // sizes[-1][0]
        x = field.flatten(0, 1)
        for axis, s in enumerate(size):  # edges are repeated
            last = x.narrow(2 + axis, x.shape[2 + axis] - 1, 1)
            x = torch.cat([x, *[last] * (-x.shape[2 + axis] % (s // sizes[-1][axis]))], 2 + axis)
        small = [n // factor for n in x.shape[2:]]
        blurred = interpolate(x, size=small, mode=MODE[ndim])
        blurred = interpolate(blurred, size=x.shape[2:], mode=MODE[ndim])
        inside = (blurred - x)[(..., *map(slice, shape))].unflatten(0, (2, 2))
        for index in itertools.product(*map(range, grid)):
            box = tuple(slice(i * s, i * s + s) for i, s in zip(index, size, strict=True))
            part = inside[(..., *box)].flatten(1)
            weight = math.prod(size) ** (exponent / ndim)
            wanted.append(part.square().mean(1).sqrt() * weight if part.shape[1] else part.sum(1))
    torch.testing.assert_close(scores, torch.stack(wanted, 1))


class Halves(nn.Module):
    """Strided features with running statistics, which must not run."""

    def __init__(self, channels: int = 2, width: int = 5):
        super().__init__()
        self.convolution = nn.Conv2d(channels, width, 2, 2)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.norm(self.convolution(x))


def test_features_node_by_node():
    torch.manual_seed(0)
    module = Halves()
    indicator = INDICATORS.create("blur", features=module).train()
    tree, field = Tree((16, 16), ((8, 8), (4, 4), (2, 2))), torch.randn(3, 2, 2, 16, 16)
    scores = indicator(field, tree)
    assert not scores.requires_grad
    assert int(module.norm.num_batches_tracked) == 0
    wanted = []
    for size in (8, 4):
        x = field.flatten(0, 1)
        blurred = interpolate(x, scale_factor=2 / size, mode="bilinear")
        blurred = interpolate(blurred, scale_factor=size // 2, mode="bilinear")
        error = (module(blurred) - module(x)).square().mean(1).unflatten(0, (3, 2)).mean(1)
        blocks = error.unfold(1, size // 2, size // 2).unfold(2, size // 2, size // 2)
        wanted.append(blocks.mean((-1, -2)).sqrt().flatten(1))
    torch.testing.assert_close(scores, torch.cat(wanted, 1))


def test_the_field_as_its_own_features_is_the_plain_blur():
    tree, field = Tree((12, 16), ((4, 4), (2, 2), (1, 1))), torch.randn(2, 1, 2, 12, 16)
    own = INDICATORS.create("blur", features=nn.Identity(), power=0.5)(field, tree)
    torch.testing.assert_close(own, INDICATORS.create("blur")(field, tree))


def test_features_by_class_are_saved_with_the_tokenizer(tmp_path):
    make = {"ndim": 2, "in_channels": 2, "dim": 8, "min_size": 2, "max_size": 8, "budget": 40}
    part = {"name": Halves, "width": 3}
    tokenizer = adaptok.create_tokenizer("quadformer", **make, features=part)
    tokenizer.indicator.features.norm.running_var.fill_(2.0)
    adaptok.save_pretrained(tokenizer, tmp_path)
    again = adaptok.from_pretrained(tmp_path, parts={"features": Halves})
    field = torch.randn(2, 1, 2, 16, 24)
    assert torch.equal(again(field).features, tokenizer(field).features)
    trained = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trained == {"embedding.patch.weight", "embedding.patch.bias"}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("resnet18", "features must be"),
        (nn.Flatten(), "features of .* are one tensor"),
        ({"width": 3}, "a name or a mapping with 'name'"),
    ],
)
def test_features_that_are_none(features, message):
    with pytest.raises(ValueError, match=message):
        adaptok.create_tokenizer("quadformer", **MAKE, features=features)(torch.randn(1, 3, 32, 32))


# ---- positions


@pytest.mark.parametrize(
    ("shape", "frames", "dim"),
    [((16,), 1, 9), ((16, 24), 1, 16), ((16, 1), 2, 13), ((8, 8, 8), 2, 20)],
)
def test_sinusoids_channel_by_channel(shape, frames, dim):
    tokenizer = adaptok.create_tokenizer(
        "uniform", ndim=len(shape), in_channels=1, dim=dim, size=[min(2, n) for n in shape]
    )
    cells = tokenizer.cells(torch.zeros(1, frames, 1, *shape))
    positions = adaptok.create_processor(
        "vit", tokenizer.spec, depth=0, heads=1, positions="sinusoid"
    ).positions
    found, rotate = positions(torch.zeros(len(cells), dim), cells, cells.center)
    assert rotate is None
    axes = [axis for axis in (3, 2, 1, 0) if axis <= len(shape) and (frames, *shape)[axis] > 1]
    pairs = dim // 2 // len(axes)
    wanted = np.zeros((len(cells), dim))
    for number, axis in enumerate(axes):
        place = cells.center[:, axis].numpy() / cells.sizes[-1][axis]
        for k in range(pairs):
            angle = place * 1e-4 ** (k / max(pairs - 1, 1))
            wanted[:, 2 * pairs * number + k] = np.sin(angle)
            wanted[:, 2 * pairs * number + pairs + k] = np.cos(angle)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_a_dim_that_is_too_small_for_sinusoids():
    make = {"ndim": 3, "in_channels": 1, "tokenizer": "uniform", "depth": 1, "heads": 1}
    processor = {"name": "vit", "positions": "sinusoid"}
    with pytest.raises(ValueError, match="sinusoid positions on 3 axes need a dim of at least 6"):
        adaptok.create_surrogate(**make, dim=5, processor=processor)
