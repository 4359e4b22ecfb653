"""Goals: what a functional of the prediction feels, and cells that follow it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptok
from adaptok.evaluation.tilings import certificate_of
from adaptok.models.baselines import create_baseline
from adaptok.models.goals import Goal
from adaptok.tokenizers.coherence import weighed
from adaptok.tree import Tree

NEAR_BEST = {"name": "near_best", "max_size": 8, "budget": 40}
SENSOR = {"region": [3, [4, 8]], "channels": [1]}


def model_of(tokenizer=NEAR_BEST, **changes) -> adaptok.Surrogate:
    """A small model with weights far from the start, in double precision."""
    torch.manual_seed(0)
    made = {"ndim": 2, "in_channels": 2, "dim": 8, "depth": 1, "heads": 1, "tokenizer": tokenizer}
    model = adaptok.create_surrogate(**made | changes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.double().eval()


def draw(batch=2, shape=(16, 16), history=1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    field = torch.randn(batch, history, 2, *shape, dtype=torch.float64, generator=generator)
    return field.cumsum(-1)


@pytest.mark.parametrize(
    "changes",
    [
        {"history": 2},
        pytest.param({"normalise": "dataset", "predict": "state"}, marks=pytest.mark.slow),
        pytest.param({"lookahead": 0.6}, marks=pytest.mark.slow),
        pytest.param({"decoder": {"name": "refine", "width": 4}}, marks=pytest.mark.slow),
    ],
)
def test_what_is_felt_is_the_gradient_of_a_rollout(changes):
    model = model_of(**changes)
    field = draw(history=model.history).requires_grad_()
    with torch.no_grad():
        got = model.sensitivity(field, {**SENSOR, "ahead": 2})
    rolled = model.rollout(field, 2, grad=True)
    unit = field.detach().std((1, 3, 4), keepdim=True, correction=0)
    unit = unit if model.normalise == "sample" else torch.ones_like(unit)
    measured = (rolled / unit)[:, :, 1, 3, 4:8].mean((1, 2)).sum()
    (slope,) = torch.autograd.grad(measured, field)
    square = (slope * unit).square().sum((1, 2))
    torch.testing.assert_close(got, square / square.mean((1, 2), keepdim=True), rtol=1e-6, atol=0)
    assert not got.requires_grad


@given(st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_scores_are_weighed_by_what_lies_in_a_node(seed):
    generator = torch.Generator().manual_seed(seed)
    tree = Tree((12, 20), ((8, 8), (4, 4), (2, 2)))
    felt = torch.rand(2, 12, 20, generator=generator) ** 8
    coarse = 4 * torch.rand(2, 1, tree.offsets[1], generator=generator) - 2
    less = torch.rand(2, 1, tree.inner - tree.offsets[1], generator=generator)
    scores = torch.cat([coarse, tree.expand(coarse, 0) - less], -1)
    got = weighed(scores, felt, tree)
    above, below = tree.per_level(got)
    assert (tree.expand(above, 0) >= below).all()
    expected = []
    for size, grid in zip(tree.sizes[:2], tree.grids[:2], strict=True):
        for i, j in itertools.product(*map(range, grid)):
            block = felt[:, i * size[0] : (i + 1) * size[0], j * size[1] : (j + 1) * size[1]]
            expected.append(block.sum((1, 2)) / 64)
    weight = torch.stack(expected, -1)[:, None].clamp(min=torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(got, torch.where(scores < 0, scores / weight, scores * weight))


def test_rollouts_feel_anew_every_few_steps():
    model, field, boundary = model_of(), draw(), torch.tensor([[2, 2], [0, 1]])
    goal = {**SENSOR, "every": 2}
    calls: list[int] = []
    with model.processor.register_forward_pre_hook(lambda *_: calls.append(1)):
        made = model.rollout(field, 3, goal=goal, boundary=boundary, hysteresis=0.25, budget=36)
    assert len(calls) == 3  # what is felt is found beside them
    window, cells, felt = field, None, None
    for step in range(3):
        if step % 2 == 0:
            felt = model.sensitivity(window, goal, boundary=boundary, budget=36)
        past = {"previous": cells, "hysteresis": 0.25, "sensitivity": felt, "budget": 36}
        cells = model.cells(window, boundary=boundary, **past)
        window = model(window, boundary=boundary, cells=cells).detach()
        torch.testing.assert_close(made[:, step : step + 1], window)


def test_a_single_step_takes_a_goal_and_samples_have_their_own():
    model, field, goal = model_of(), draw(), Goal(**SENSOR)
    with torch.inference_mode():
        made = model(field, goal=goal)
    felt = model.sensitivity(field, goal)
    torch.testing.assert_close(made, model(field, sensitivity=felt).detach())
    alone = model.sensitivity(field[1:], goal)
    torch.testing.assert_close(alone, felt[1:])
    cells = model.cells(field, goal=goal)
    assert torch.equal(cells.origin, model.cells(field, sensitivity=felt).origin)
    assert not torch.equal(cells.origin, model.cells(field).origin)
    held = certificate_of(model, field, goal=goal)
    expected = model.tokenizer.certificate(model.scored(field), sensitivity=felt)
    torch.testing.assert_close(held, expected)


def test_nothing_felt_is_no_weight():
    model, field = model_of(predict="state"), draw()
    felt = model.sensitivity(field, {"functional": lambda frames: 0 * frames.sum((1, 2, 3, 4))})
    assert torch.equal(felt, torch.ones(2, 16, 16, dtype=torch.float64))
    shared = model.sensitivity(field, {"functional": lambda frames: frames[:, -1].mean((1, 2, 3))})
    everywhere = model.sensitivity(field, Goal())
    assert shared.shape == everywhere.shape
    assert not torch.equal(shared, everywhere)  # in physical units, and in those of the channels


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (3, r"a goal is a mapping .*, got 3"),
        ({"regions": [3, 4]}, "no 'regions'.*; it has region"),
        ({"region": [3]}, "does not lie inside the domain"),
        ({"region": [3, [8, 4]]}, "does not lie inside the domain"),
        ({"region": [3, [8, 17]]}, "does not lie inside the domain"),
        ({"region": [3, -1]}, "region must"),
        ({"channels": [2]}, r"channel 2, but the model predicts 2 channels \(0 to 1\)"),
        ({"channels": []}, "channels must"),
        ({"ahead": 0}, "ahead must"),
        ({"every": 1.5}, "every must"),
        ({"functional": 3}, "functional must"),
        ({"functional": torch.sum, "channels": [1]}, "or the mean"),
        ({"functional": torch.sum}, "a number per sample"),
    ],
)
def test_bad_goals(goal, message):
    with pytest.raises(ValueError, match=message):
        model_of()(draw(1), goal=goal)


def test_who_feels_nothing():
    field, model = draw(), model_of()
    with pytest.raises(ValueError, match="needs the gradient of a surrogate"):
        model.tokenizer.cells(field, goal=SENSOR)
    uniform = model_of({"name": "uniform", "size": 4})
    for other in (uniform, create_baseline("persistence", ndim=2, in_channels=2)):
        with pytest.raises(ValueError, match="goal is about cells of a tree"):
            other.rollout(field, 2, goal=SENSOR)
    with pytest.raises(ValueError, match="goal is about cells of a tree"):
        uniform(field, goal=SENSOR)
    for call in (model, lambda *given, **more: model.rollout(*given, 2, **more)):
        with pytest.raises(ValueError, match="a goal lies where it is"):
            call(field, goal=SENSOR, jitter=0)
    with pytest.raises(ValueError, match="list"):
        model(list(field), goal=SENSOR)
    for wrong in (torch.ones(2, 16), -torch.ones(2, 16, 16), torch.full((2, 16, 16), torch.inf), 3):
        with pytest.raises(ValueError, match="sensitivity"):
            model.cells(field, sensitivity=wrong)
