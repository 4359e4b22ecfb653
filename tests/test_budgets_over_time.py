"""Budgets over the steps of a rollout: equal totals by a ramp, and by a price that is held."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptok
from adaptok.tokenizers import PriceController

IAP = {"name": "iap", "max_size": 8, "budget": 64}
PRICED = {"name": "near_best", "price": 1e-3, "max_size": 8}


def model_of(tokenizer=IAP, **changes) -> adaptok.Surrogate:
    torch.manual_seed(0)
    made = {"ndim": 2, "in_channels": 1, "dim": 8, "depth": 1, "heads": 1, "tokenizer": tokenizer}
    return adaptok.create_surrogate(**made | changes).double().eval()


def pulses(batch=2, n=32) -> torch.Tensor:
    x, y = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    widths = [4.0**k for k in range(1, batch + 1)]
    return torch.stack([torch.exp(-((x - 9) ** 2 + (y - 13) ** 2) / w) for w in widths]).view(
        batch, 1, 1, n, n
    )


def tokens_of(model, field, steps, **control):
    """Tokens per step and sample, and what the rollout predicts."""
    counts: list[torch.Tensor] = []
    with model.processor.register_forward_pre_hook(
        lambda _, given: counts.append(given[0].cells.cu_seqlens.diff())
    ):
        made = model.rollout(field, steps, **control)
    return torch.stack(counts), made


@given(st.integers(0, 300), st.integers(0, 300), st.integers(2, 40), st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_a_ramp_spends_the_mean(first, last, steps, unit):
    pair = [{"budget": first, "gain": 1.0}, {"budget": last, "gain": 2.0}]
    ramp = adaptok.create_schedule(
        {"name": "ramp", "settings": pair, "steps": steps, "unit": unit, "seed": 3}
    )
    budgets = [ramp(step)["budget"] for step in range(steps)]
    even = [first + Fraction((last - first) * step, steps - 1) for step in range(steps)]
    assert abs(sum(budgets) - sum(even)) <= Fraction(unit, 2)
    assert all((budget - first) % unit == 0 or budget == last for budget in budgets)
    assert all(abs(n - m) <= 2 * unit for n, m in zip(budgets, even, strict=True))
    assert ramp(steps) == ramp(10**9) == pair[1]
    assert sum(ramp(step)["gain"] for step in range(steps)) == pytest.approx(1.5 * steps)


def test_a_ramp_takes_what_can_be_between():
    lists = [{"thresholds": [1.0, 4], "name": "a"}, {"thresholds": (3.0, 8), "name": "a"}]
    ramp = adaptok.create_schedule({"name": "ramp", "settings": lists, "steps": 3})
    assert ramp(1) == {"thresholds": [2.0, 6], "name": "a"}
    one = adaptok.create_schedule({"name": "ramp", "settings": [{"budget": 7}]})
    assert one(0) == one(10**6) == {"budget": 7}


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"settings": [{}, {}, {}]}, "from one setting to another, got 3"),
        ({"settings": [{"budget": 3}, {"price": 3}]}, "the same names"),
        ({"settings": [{"border": "clip"}, {"border": "split"}]}, "cannot go from border='clip'"),
        ({"settings": [{"a": [1, 2]}, {"a": [1, 2, 3]}]}, "cannot go from a="),
        ({"settings": [{"a": True}, {"a": False}]}, "cannot go from a=True"),
        ({"settings": [{}], "steps": 1}, "steps must be"),
        ({"settings": [{}], "unit": 0}, "unit must be"),
    ],
)
def test_bad_ramps(part, message):
    with pytest.raises(ValueError, match=message):
        adaptok.create_schedule({"name": "ramp", **part})


def test_equal_tokens_in_all_and_a_constant_ramp_is_none():
    model, field = model_of(), pulses(1)
    ramp = {"name": "ramp", "steps": 4, "unit": 3}
    falling = ramp | {"settings": [{"budget": 100}, {"budget": 28}]}
    plain, today = tokens_of(model, field, 4)
    counts, _ = tokens_of(model, field, 4, settings=falling)
    assert counts.sum() == plain.sum() == 4 * 64
    assert counts[0, 0] == 100
    assert (counts.diff(dim=0) < 0).all()
    constant = ramp | {"settings": [{"budget": 64}, {"budget": 64}]}
    assert torch.equal(model.rollout(field, 4, settings=constant), today)


@pytest.mark.parametrize(
    "more", [{}, pytest.param({"jitter": 0}, marks=pytest.mark.slow)], ids=["still", "jitter"]
)
def test_the_tokens_of_a_rollout_are_held(more):
    """As by a controller that watches the processor."""
    model, field = model_of(PRICED), pulses(n=16)
    counts, made = tokens_of(model, field, 4, tokens=20, price=1e-2, **more)
    controller = PriceController(1e-2, 20)
    with controller.watch(model.processor):
        by_hand, expected = tokens_of(model, field, 4, settings=controller, **more)
    assert torch.equal(counts, by_hand)
    torch.testing.assert_close(made, expected)


@pytest.mark.slow
def test_what_is_held_comes_closer_and_may_fall():
    model, field = model_of(PRICED), pulses()
    counts, _ = tokens_of(model, field, 8, tokens=60, price=1e-2)
    loose, _ = tokens_of(model, field, 8, price=1e-2)
    assert abs(counts.double().mean() - 60) < abs(loose.double().mean() - 60) / 2
    again, _ = tokens_of(model, field, 8, tokens=60, price=1e-2, hysteresis=0)
    assert torch.equal(counts, again)  # the state is that of one rollout
    ramp = {"name": "ramp", "settings": [{"tokens": 90}, {"tokens": 30}], "steps": 8}
    falling, _ = tokens_of(model, field, 8, settings=ramp, price=1e-2)
    assert falling[1].sum() > falling[-1].sum()
    assert torch.equal(model(field, tokens=60), model(field))  # a single step has nothing to hold


def test_what_cannot_be_held():
    field = pulses()
    with pytest.raises(ValueError, match="held by their price"):
        model_of().rollout(field, 2, tokens=60)
    with pytest.raises(ValueError, match="cells of a tree"):
        model_of({"name": "uniform", "size": 4}).rollout(field, 2, tokens=60)
    priced = model_of(PRICED)
    with pytest.raises(ValueError, match="tokens must be"):
        priced.rollout(field, 2, tokens=-1)
    with pytest.raises(ValueError, match="price must be"):
        priced.rollout(field, 2, tokens=60, price=0.0)
    with pytest.raises(ValueError, match="not a list"):
        priced.rollout(list(field), 2, tokens=60)
