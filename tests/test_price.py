"""A price of tokens: what it splits, its calibration, and its control in rollouts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import boxes

import adaptok
from adaptok.models.combinations import build
from adaptok.tokenizers import PriceController, at_budget, part_at_budget
from adaptok.tokenizers.marking import PriceMarking
from adaptok.tree import leaves


def pulses(batch: int, seed: int = 0, n: int = 32) -> torch.Tensor:
    """Pulses of different width, (b, 1, 1, n, n): some need many cells, others few."""
    generator = torch.Generator().manual_seed(seed)
    place, width = torch.rand(batch, 2, 1, 1, generator=generator), torch.logspace(-0.5, -2, batch)
    y, x = torch.meshgrid(torch.arange(n) / n, torch.arange(n) / n, indexing="ij")
    square = (y - place[:, 0]).square() + (x - place[:, 1]).square()
    return torch.exp(-square / width.square()[:, None, None])[:, None, None]


def tokenizer(**knobs):
    return adaptok.create_tokenizer("near_best", ndim=2, in_channels=1, dim=4, **knobs)


def test_cells_are_those_above_the_price():
    priced, field = tokenizer(price=1e-3), pulses(4)
    scores, tree = priced.scores(field)
    split = scores > 1e-3
    assert priced.cells(field).lengths == tuple(leaves(split, tree).sum((1, 2)).tolist())
    for marking in (PriceMarking(price=1e-3), PriceMarking()):
        assert torch.equal(marking(scores, tree, price=1e-3).split, split)
    lengths = [len(priced.cells(field, price=price)) for price in (0, 1e-5, 1e-4, 1e-2, 1e9)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 4 * 4  # above all scores: the coarsest tiling
    assert len(priced.cells(torch.ones_like(field), price=0.0)) == 4 * 4
    with pytest.raises(ValueError, match="price must be a finite number"):
        priced.cells(field, price=-1.0)
    with pytest.raises(ValueError, match="give one of them"):
        tokenizer(price=1e-3, budget=64)


@settings(max_examples=5, deadline=None)
@given(st.sampled_from(["near_best", "variance"]), st.integers(0, 100), st.floats(20, 100))
def test_calibration_gives_the_closest_mean_from_below(indicator, seed, wanted):
    priced = adaptok.create_tokenizer(
        "composed", ndim=2, in_channels=1, dim=4, indicator=indicator, marking="price"
    )
    batches = [pulses(3, seed), pulses(2, seed + 1)]
    price = adaptok.calibrate(priced, batches, wanted)
    assert price > 0

    def mean(price: float) -> float:
        return sum(len(priced.cells(x, price=price)) for x in batches) / 5

    assert mean(price) <= wanted
    scores = torch.cat([priced.scores(x)[0].flatten() for x in batches])
    below = scores[(scores > 0) & (scores < price)]
    if indicator == "near_best":  # monotone: one more split would be too much
        assert mean(float(below.max()) * (1 - 1e-5)) > wanted - 1e-6
    with pytest.raises(ValueError, match=r"give 4 to .* tokens per sample"):
        adaptok.calibrate(priced, batches, 3)


def test_a_budget_becomes_a_price():
    field = pulses(6)
    priced = tokenizer(price=1.0)
    found = at_budget(priced, 60, field)
    assert 55 < len(priced.cells(field, **found)) / 6 <= 60
    assert len({*priced.cells(field, **found).lengths}) > 1  # samples share
    part = part_at_budget({"name": "near_best", "price": 1.0}, priced, 60, field)
    assert part == {"name": "near_best", **found}
    fixed = tokenizer(budget=60).certificate(field).square().mean()
    assert priced.certificate(field, **found).square().mean() < fixed


@pytest.mark.parametrize("power", [0.5, 0.8])
def test_the_controller_holds_the_mean_while_the_content_grows(power):
    """Tokens fall with the price like a power of it, as in a tree, and the field drifts."""
    controller = PriceController(price=1e-2, tokens=100.0)
    counts = []
    for step in range(40):
        content = 300 * (1 + step / 10) * (1 + 0.2 * math.sin(step))
        counts.append(content * (controller(step)["price"] / 1e-2) ** -power)
        controller.update(counts[-1])
    assert counts[0] == 300  # three times too many
    assert abs(sum(counts) / 40 - 100) < 5
    unheld = sum(300 * (1 + step / 10) for step in range(40)) / 40
    assert unheld > 800


def test_a_field_at_rest_does_not_wind_the_controller_up():
    """60 steps in which no price gives more than the coarsest cells, or fewer, and none less."""
    controller, counts = PriceController(price=1e-2, tokens=64.0), []
    for step in range(240):
        still = step % 120 < 60
        counts.append(16 if still else min(max(64 * 1e-2 / controller(step)["price"], 16), 256))
        controller.update(counts[-1])
    for start in (60, 180):
        assert abs(sum(counts[start + 30 : start + 60]) / 30 - 64) < 1
        assert counts[start : start + 20].count(256) < 8
    for _ in range(1000):  # more than there can be, or less
        assert math.isfinite(controller.update(256.0))
    assert controller(0)["price"] == pytest.approx(1e2)


def test_the_controller_holds_a_rollout():
    model = build({"tokenizer": "near_best", "processor": "vit", "decoder": "linear"})
    field = pulses(2, n=64).expand(-1, 2, 2, -1, -1).clone()
    model.tokenizer = adaptok.create_tokenizer(
        "near_best", ndim=2, in_channels=4, dim=16, price=1e-3
    )
    controller, counts = PriceController(1e-3, 90.0), []
    seen = model.processor.register_forward_pre_hook(
        lambda _, given: counts.append(len(given[0].cells) / 2)
    )
    watching = controller.watch(model.processor)
    with torch.no_grad():
        rolled = model.rollout(field, 12, settings=controller)
    watching.remove()
    seen.remove()
    assert rolled.shape == (2, 12, 2, 64, 64)
    assert abs(sum(counts) / 12 - 90) < 9
    assert abs(counts[0] - 90) > 9
    first = controller.price
    model(field, price=first)
    assert controller.price == first  # it watches no longer
    with pytest.raises(ValueError, match="tokens must be"):
        controller.update(0.0)


def test_prices_go_with_any_tree():
    field = torch.randn(2, 2, 1, 13, 18)
    for border, per_frame in (("clip", True), ("split", False)):
        cells = tokenizer(price=1e-3, border=border, per_frame=per_frame).cells(field).validate()
        assert int(cells.volume.sum()) == field.numel()
    static = tokenizer(price=1e-3).static
    assert not static
    assert boxes(tokenizer(price=1e-3).cells(field[:1])) == boxes(
        tokenizer(price=1e-3).cells(field)
    )
