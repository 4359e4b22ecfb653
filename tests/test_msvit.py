"""MSViT: gates beside a loop over cells, straight-through gradients, and the loss on their rate."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.functional import gelu

import adaptok
from adaptok.layers.boundary import pad_beyond
from adaptok.tokenizers.embeddings.learned_table import pooled_positions, resample_positions
from adaptok.tokenizers.indicators import GateIndicator
from adaptok.tree import Tree
from adaptok.utils.auxiliary import collect_auxiliary
from adaptok.utils.magnitude import standardised


def msvit(ndim=2, **knobs):
    torch.manual_seed(0)
    make = {"ndim": ndim, "in_channels": 2, "dim": 12, "sizes": (2, 4)}
    return adaptok.create_tokenizer("msvit", **(make | knobs))


def differing(tokenizer, field):
    """Moves the bias, so that about half of the gates split."""
    with torch.no_grad():
        bias = tokenizer.indicator.heads[0][2].bias
        bias -= tokenizer.eval().scores(field)[0].logit().median()
    return tokenizer


def gates_by_hand(indicator, field, tree, boundary):
    """The probability of each node, one at a time."""
    x = standardised(field, (1, *range(3, field.ndim)))
    whole = [n * s for n, s in zip(tree.grids[0], tree.sizes[0], strict=True)]
    x = pad_beyond(x, whole, boundary)
    out = []
    for sample in x:
        gates = []
        for level, (frame, *size) in enumerate(indicator.sizes[:-1]):
            for place in itertools.product(*map(range, tree.grids[level])):
                spans = [slice(p * s, p * s + s) for p, s in zip(place, size, strict=True)]
                parts = [
                    sample[(slice(t, t + frame), c, *spans)].flatten()
                    for t in range(0, sample.shape[0], frame)
                    for c in range(sample.shape[1])
                ]
                hidden = [gelu(indicator.points[level](part)) for part in parts]
                gates.append(indicator.heads[level](torch.stack(hidden).mean(0)).sigmoid())
        out.append(torch.cat(gates))
    return torch.stack(out)


@pytest.mark.parametrize(
    ("space", "sizes", "code"),
    [((13,), (2, 4, 8), 1), ((8, 12), (2, 4), 0), ((7, 9), (2, 8), 2), ((5, 8, 4), (2, 4), 2)],
)
def test_gates_equal_those_of_a_loop_over_cells(space, sizes, code):
    ndim = len(space)
    levels = tuple((2, *(s,) * ndim) for s in reversed(sizes))
    indicator = GateIndicator(levels, width=5).double()
    field = torch.randn(2, 4, 3, *space).double()
    boundary = torch.full((ndim, 2), code)
    tree = Tree(space, tuple(size[1:] for size in levels), border="clip")
    expected = gates_by_hand(indicator, field, tree, boundary)
    torch.testing.assert_close(indicator(field, tree, boundary=boundary), expected)
    with pytest.raises(ValueError, match="scores a tree of"):
        indicator(field, Tree(space, ((2,) * ndim, (1,) * ndim)))


@pytest.mark.parametrize("per_frame", [False, True])
def test_open_gates_split_and_a_budget_takes_the_highest(per_frame):
    field = torch.randn(3, 2, 2, 16, 24).cumsum(-1)
    tokenizer = differing(msvit(per_frame=per_frame), field)
    scores, _ = tokenizer.scores(field)
    cells = tokenizer.cells(field)
    assert cells.validate().tiling
    frames = 1 if per_frame else 2
    opened = (scores >= 0.5).sum((1, 2))
    assert cells.lengths == tuple((2 * 24 + frames * 3 * opened).tolist())
    assert len({*cells.lengths}) > 1
    fixed = tokenizer.cells(field, budget=100)
    assert msvit(budget=100, per_frame=per_frame).cells(field).lengths == fixed.lengths
    count = (100 - 48) // (3 * frames)
    assert fixed.lengths == (48 + 3 * frames * count,) * 3
    finest = fixed.level.view(3, -1).sum(1) // (4 * frames)  # cells that split
    assert finest.tolist() == [count] * 3
    chosen = tokenizer(field, budget=100).payload["score"]
    for sample, own in enumerate(scores.flatten(1)):
        of_children = chosen[(fixed.sample == sample) & (fixed.level == 1)]
        assert of_children.min() == own.sort(descending=True).values[count - 1]
    with pytest.raises(ValueError, match="budget 10 is below the 48 cells"):
        tokenizer.cells(field, budget=10)


def test_gradients_reach_the_gates_straight_through():
    """Of sum(w * features): each token adds its own product, by the gate that chose it."""
    field = torch.randn(2, 1, 2, 8, 12).double()
    tokenizer = differing(msvit().double(), field)
    tokens = tokenizer(field)
    assert torch.equal(tokens.features, tokenizer.embed(field, tokens.cells).features)
    w = torch.randn_like(tokens.features)
    scores, _ = tokenizer.scores(field)
    parameters = list(tokenizer.indicator.parameters())
    given = torch.autograd.grad((w * tokens.features).sum(), parameters)
    share = torch.zeros_like(scores)
    for row, value in enumerate((w * tokens.features).sum(1).tolist()):
        place = tokens.cells.origin[row, 1:] // 4
        sign = 1 if tokens.cells.level[row] else -1
        share[tokens.cells.sample[row], 0, place[0] * 3 + place[1]] += sign * value
    expected = torch.autograd.grad(scores, parameters, share)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other)
    tokenizer.indicator.requires_grad_(False)
    assert "score" not in tokenizer(field).payload


def test_the_loss_on_the_rate():
    field = torch.randn(4, 1, 2, 16, 16)
    tokenizer = differing(msvit(target=0.25, weight=3.0), field)
    with collect_auxiliary() as quiet:
        tokenizer(field)
    split = (tokenizer.scores(field)[0] >= 0.5).float().mean()
    torch.testing.assert_close(quiet.figures["gate_share"], split)
    torch.testing.assert_close(quiet.losses["gate_rate"], 3 * (split - 0.25).square())
    (slope,) = torch.autograd.grad(quiet.total(), tokenizer.indicator.heads[0][2].bias)
    scores = tokenizer.scores(field)[0]
    expected = 6 * (split - 0.25) * (scores * (1 - scores)).mean()
    torch.testing.assert_close(slope, expected.detach()[None])
    with collect_auxiliary() as fixed:
        tokenizer(field, budget=40)
    assert not fixed.losses
    torch.testing.assert_close(fixed.figures["gate_share"], torch.tensor(8 / 16))


@pytest.mark.slow
def test_training_the_rate_alone_reaches_it():
    tokenizer = msvit(target=0.25)
    field = torch.randn(4, 1, 2, 32, 32)
    optimizer = torch.optim.Adam(tokenizer.indicator.parameters(), 2e-2)
    for _ in range(25):
        with collect_auxiliary() as found:
            tokenizer(field)
        optimizer.zero_grad()
        found.total().backward()
        optimizer.step()
    assert float(found.figures["gate_share"]) == pytest.approx(0.25, abs=0.08)


def test_noise_belongs_to_training():
    tokenizer, field = msvit(), torch.randn(1, 1, 2, 16, 16)
    plain = tokenizer.scores(field)[0]
    assert torch.equal(tokenizer.scores(field)[0], plain)
    with collect_auxiliary():
        drawn = tokenizer.scores(field.expand(400, -1, -1, -1, -1))[0]
        assert torch.equal(tokenizer.eval().scores(field)[0], plain)
    rate = (drawn > 0.5).float().mean(0)  # a gate opens with its probability
    torch.testing.assert_close(rate, plain[0].detach(), atol=0.12, rtol=0)


@pytest.mark.parametrize(
    ("space", "table"), [((10,), (5,)), ((8, 14), (4, 3)), ((4, 8, 5), (2, 2, 2))]
)
def test_coarse_positions_are_means_of_fine_ones(space, table):
    sizes = tuple((1, *(s,) * len(space)) for s in (8, 4, 2))
    table = torch.randn(*table, 3)
    finest = resample_positions(table, space, sizes[-1:])
    grid = [-(-n // 2) for n in space]
    finest = finest.unflatten(0, grid)
    expected = []
    for block in (4, 2, 1):
        for place in itertools.product(*(range(-(-g // block)) for g in grid)):
            spans = tuple(slice(p * block, (p + 1) * block) for p in place)
            expected.append(finest[spans].flatten(0, -2).mean(0))
    torch.testing.assert_close(pooled_positions(table, space, sizes), torch.stack(expected))


def test_a_learned_table_is_added_to_the_tokens():
    plain, placed = msvit(), msvit(positions=4)
    placed.load_state_dict(
        {k.replace("embedding.", "embedding.embedding."): v for k, v in plain.state_dict().items()},
        strict=False,
    )
    field = torch.randn(2, 1, 2, 16, 16)
    cells = plain.cells(field)
    added = placed.embed(field, cells).features - plain.embed(field, cells).features
    torch.testing.assert_close(added, placed.embedding.positions(cells))
    placed(field).features.square().sum().backward()
    assert placed.embedding.positions.table.grad.any()


@pytest.mark.parametrize("target", [0, 1, 1.5, -0.1, float("nan")])
def test_a_rate_that_leaves_a_size_without_tokens_is_refused(target):
    with pytest.raises(ValueError, match="target must be a number above 0 and below 1"):
        msvit(target=target)


def test_sizes_to_choose_between():
    with pytest.raises(ValueError, match="a gate chooses between cell sizes"):
        msvit(sizes=(4,))
    with pytest.raises(ValueError, match="sizes go from fine to coarse"):
        msvit(sizes=(4, 6))
