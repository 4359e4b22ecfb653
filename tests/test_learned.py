"""Indicators that learn: gradients from an auxiliary loss and through the scores of the tokens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import adaptok
from adaptok.tree import sum_pyramid
from adaptok.utils.auxiliary import collect_auxiliary, report_loss


class Learned(nn.Module):
    """A sum over the cell of a learned map; reports its mean."""

    def __init__(self, *, channels=2):
        super().__init__()
        self.map = nn.Conv2d(channels, 1, 3, padding=1)
        self.config = {"channels": channels}

    def forward(self, field, tree, *, boundary=None):
        scores = sum_pyramid(self.map(field.mean(1)).sigmoid(), tree)[:, 0]
        report_loss("rate", scores.mean(), weight=0.5)
        return scores


class Gated(nn.Module):
    """Multiplies tokens by the score of their cells."""

    def forward(self, tokens):
        gate = tokens.payload["score"].sigmoid()[:, None]
        return tokens.replace(features=tokens.features * gate)


def tokenizer(indicator, **knobs):
    part = {"name": "composed", "indicator": indicator, "marking": {"name": "budget", "budget": 40}}
    return adaptok.create_tokenizer(part, ndim=2, in_channels=2, dim=24, **knobs)


def test_an_auxiliary_loss_reaches_it():
    learned = tokenizer(Learned)
    with collect_auxiliary() as found:
        learned(torch.randn(2, 1, 2, 16, 16))
    assert set(found.losses) == {"rate"}
    found.total().backward()
    assert learned.indicator.map.weight.grad.abs().sum() > 0


def test_what_multiplies_tokens_by_their_score_trains_it():
    model = adaptok.Surrogate(tokenizer(Learned()), Gated())
    out = model(torch.randn(2, 1, 2, 16, 16))
    out.square().sum().backward()
    assert model.tokenizer.indicator.map.weight.grad.abs().sum() > 0
    assert model.tokenizer.indicator.map.bias.grad.abs().sum() > 0


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("space", [(16, 24), (13, 18)])
def test_the_score_of_a_token_is_that_of_its_cell_or_of_its_parent(per_frame, space):
    learned = tokenizer(Learned, per_frame=per_frame, min_size=2, max_size=8)
    x = torch.randn(2, 2, 2, *space)
    tokens = learned(x, budget=120)
    scores, tree = learned.scores(x)
    cells = tokens.cells
    for row in range(len(cells)):  # the slow reference looks the node up in its level's grid
        level = min(int(cells.level[row]), tree.n_levels - 2)
        t, *place = cells.origin[row].tolist()
        where = tuple(p // s for p, s in zip(place, tree.sizes[level], strict=True))
        own = tree.per_level(scores)[level][int(cells.sample[row]), t if per_frame else 0]
        assert tokens.payload["score"][row] == own.view(tree.grids[level])[where]


def test_the_cells_are_the_same_and_carry_no_graph():
    learned = tokenizer(Learned)
    frozen = tokenizer(learned.indicator)
    x = torch.randn(2, 1, 2, 16, 16, requires_grad=True)
    cells = learned.cells(x)
    assert learned.scores(x)[0].requires_grad
    with torch.no_grad():
        assert not learned(x).payload["score"].requires_grad
    learned.indicator.requires_grad_(False)
    assert not frozen.scores(x)[0].requires_grad
    assert not frozen(x).payload
    for name in ("origin", "size", "level", "cu_seqlens"):
        assert not getattr(cells, name).requires_grad
        assert torch.equal(getattr(cells, name), getattr(frozen.cells(x), name))


def test_only_what_learns_has_a_graph():
    class Plain:
        learned = False

        def __call__(self, field, tree, *, boundary=None):
            assert not torch.is_grad_enabled()
            return sum_pyramid(field.square().mean((1, 2))[:, None], tree)[:, 0]

    class Asks(Plain):
        learned = True

        def __call__(self, field, tree, *, boundary=None):
            return sum_pyramid(field.square().mean((1, 2))[:, None], tree)[:, 0]

    x = torch.randn(2, 1, 2, 16, 16, requires_grad=True)
    assert not tokenizer(Plain())(x).payload
    (slope,) = torch.autograd.grad(tokenizer(Asks)(x).payload["score"].sum(), x)
    assert slope.abs().sum() > 0


def test_samples_of_different_size_carry_their_scores():
    learned = tokenizer(Learned)
    fields = [torch.randn(1, 2, 16, 16), torch.randn(1, 2, 16, 32)]
    both = learned(fields).payload["score"]
    alone = torch.cat([learned(x[None]).payload["score"] for x in fields])
    torch.testing.assert_close(both, alone)


@pytest.mark.slow
def test_compiled_whole_it_gives_the_same_gradients():
    learned = tokenizer(Learned)
    x = torch.randn(2, 1, 2, 16, 16)

    def loss(x):
        tokens = learned(x)
        return (tokens.features.square().sum(1) * tokens.payload["score"]).sum()

    weight = learned.indicator.map.weight
    (eager,) = torch.autograd.grad(loss(x), weight)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    (graph,) = torch.autograd.grad(compiled(x), weight)
    torch.testing.assert_close(graph, eager)
