"""Patch jitter: what a model does to a shifted domain, shifted back."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adaptok
from adaptok.models.baselines import create_baseline
from adaptok.models.jitter import Jitter, jitter_at, periodic_on_host, shifted, shifted_back
from adaptok.training.optim import Optim
from adaptok.training.surrogate_module import SurrogateModule

CPU = torch.device("cpu")
PERIODIC, CHANNEL = [[2, 2], [2, 2]], [[2, 2], [0, 1]]  # a channel has walls along one axis


def model_of(tokenizer="iap", **changes) -> adaptok.Surrogate:
    """A small model with weights far from the start, in double precision."""
    torch.manual_seed(0)
    knobs = {"name": "iap", "budget": 40, "max_size": 8} if tokenizer == "iap" else tokenizer
    made = {"ndim": 2, "in_channels": 2, "dim": 12, "depth": 1, "heads": 1, "tokenizer": knobs}
    model = adaptok.create_surrogate(**made | changes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.double().eval()


def draw(batch=2, shape=(16, 24)) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 1, 2, *shape, dtype=torch.float64).cumsum(-1)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_periodic_axes_roll_and_others_get_a_margin(data):
    ndim = data.draw(st.integers(1, 3))
    shape = data.draw(st.tuples(*[st.integers(1, 7)] * ndim))
    coarsest = data.draw(st.tuples(*[st.integers(1, 5)] * ndim))
    periodic = data.draw(st.tuples(*[st.booleans()] * ndim))
    offset = data.draw(st.tuples(*[st.integers(0, 9)] * ndim))
    x = torch.arange(2 * torch.Size(shape).numel(), dtype=torch.float64).view(2, 1, 1, *shape)
    jitter = Jitter(torch.tensor(offset), periodic)
    expected = x
    for axis, size in enumerate(coarsest):
        u, place = offset[axis] % size, axis + 3
        if periodic[axis]:
            expected = expected.roll(u, place)
        else:
            first, last = (expected.narrow(place, k, 1) for k in (0, shape[axis] - 1))
            parts = [first] * u + [expected] + [last] * (size - u)
            expected = torch.cat(parts, place)
    moved = shifted(x, jitter, coarsest)
    assert torch.equal(moved, expected)
    assert torch.equal(shifted_back(moved, jitter, coarsest), x)


def test_offsets_follow_from_seed_and_step_alone():
    def draws(seed, steps):
        made = (jitter_at(seed, (step,), 2, CPU, periodic=(True, True)) for step in range(steps))
        return [tuple((each.offset % 8).tolist()) for each in made]

    assert draws(3, 40)[20:] == [
        tuple((jitter_at(3, (step,), 2, CPU).offset % 8).tolist()) for step in range(20, 40)
    ]
    assert draws(3, 40) != draws(4, 40)
    assert {axis for offset in draws(3, 60) for axis in offset} == set(range(8))
    given = jitter_at([3, 5], (9,), 2, CPU, boundary=torch.tensor(CHANNEL))
    assert given.offset.tolist() == [3, 5]
    assert given.periodic == (True, False)
    assert periodic_on_host(None, 2) == (False, False)


class PointDecoder(nn.Module):
    """A stencil of the field, whatever the tokens: equivariant on periodic axes."""

    reads_field = True

    def __init__(self, spec, out_channels):
        super().__init__()

    def forward(self, tokens, *, field, **_):
        return field.roll(1, -1) - 2 * field + field.roll(-1, -2)


def test_an_equivariant_model_does_not_notice():
    model, field = model_of(decoder=PointDecoder), draw()
    boundary, whole = torch.tensor(PERIODIC), model(field, boundary=torch.tensor(PERIODIC))
    for offset in ([3, 5], [7, 1]):
        torch.testing.assert_close(model(field, boundary=boundary, jitter=offset), whole)
    tokens = model_of()(field, boundary=boundary)  # one that does
    assert not torch.allclose(model_of()(field, boundary=boundary, jitter=[3, 5]), tokens)


def test_the_mean_over_offsets_of_cell_means_is_a_triangular_filter():
    """Cells that hold their mean, at every offset once: the filter with which it is equivariant."""
    uniform = {"name": "uniform", "size": 4}
    plain = {"ndim": 1, "in_channels": 1, "normalise": "none", "predict": "state", "dim": 1}
    model = adaptok.create_surrogate(
        **plain, tokenizer=uniform, processor=nn.Identity(), decoder="linear"
    ).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(0 if "bias" in name else 1 / 4 if "tokenizer" in name else 1)
    x, boundary = torch.randn(1, 1, 1, 16, dtype=torch.float64), torch.tensor([[2, 2]])
    mean = torch.stack([model(x, boundary=boundary, jitter=[u]) for u in range(4)]).mean(0)
    expected = sum((4 - abs(k)) / 16 * x.roll(k, -1) for k in range(-3, 4))
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize(
    "tokenizer",
    [
        "iap",
        pytest.param({"name": "ckm", "patch_sizes": [4, 8]}, marks=pytest.mark.slow),
        pytest.param({"name": "csm", "patch_sizes": [4, 8]}, marks=pytest.mark.slow),
    ],
)
def test_a_step_is_that_of_the_shifted_domain(tokenizer):
    """By hand, on a channel: roll one axis, pad the other, predict, cut out and roll back."""
    model, field, boundary = model_of(tokenizer, normalise="none"), draw(), torch.tensor(CHANNEL)
    made = model(field, boundary=boundary, jitter=[3, 5])
    wide = nn.functional.pad(field.flatten(0, 1), (5, 3, 0, 0), mode="replicate")
    wide = wide.unflatten(0, (2, 1)).roll(3, -2)
    change = (model(wide, boundary=boundary) - wide)[..., 5:-3].roll(-3, -2)
    torch.testing.assert_close(made, field + change)
    torch.testing.assert_close(
        model(field, boundary=boundary, jitter=None), model(field, boundary=boundary)
    )


def test_domains_that_grow_to_one_shape_keep_their_samples():
    model, codes = model_of(), torch.tensor([PERIODIC, [[0, 0], [0, 0]]])
    fields = [draw(1, (24, 24))[0], draw(1, (16, 16))[0]]  # walls: 16 grows by a cell of 8
    together = model(fields, boundary=codes, jitter=[3, 5])
    for field, code, made in zip(fields, codes, together, strict=True):
        torch.testing.assert_close(made, model(field[None], boundary=code, jitter=[3, 5])[0])


@pytest.mark.slow
def test_rollouts_draw_a_new_offset_in_every_step():
    model, field, boundary = model_of(lookahead=0.5), draw(), torch.tensor([CHANNEL, CHANNEL])
    rolled = model.rollout(field, 3, boundary=boundary, jitter=7)
    by_settings = {"name": "fixed", "settings": [{"jitter": 7}]}
    assert torch.equal(rolled, model.rollout(field, 3, boundary=boundary, settings=by_settings))
    window = field
    for step in range(3):
        offset = jitter_at(7, (step,), 2, CPU, boundary=boundary)
        window = model(window, boundary=boundary, jitter=offset).detach()
        torch.testing.assert_close(rolled[:, step : step + 1], window)
    listed = model.rollout(list(field), 3, boundary=boundary, jitter=7)
    torch.testing.assert_close(torch.stack(listed), rolled)
    cells = model.cells(field, boundary=boundary, jitter=[3, 5]).validate()
    assert cells.shape == (1, 16, 32)
    system = adaptok.create_multiphysics(
        ndim=2, fields=["u", "v"], tokenizer={"name": "iap", "budget": 40, "max_size": 8},
        dim=12, depth=1, heads=1,
    ).system(["u", "v"]).double()  # fmt: skip
    assert system.cells(field, boundary=boundary, jitter=[3, 5]).shape == (1, 16, 32)
    assert system.rollout(field, 2, boundary=boundary, jitter=7).shape == (2, 2, 2, 16, 24)


@pytest.mark.slow
def test_gradients_flow_and_samples_do_not_meet():
    model, field, boundary = model_of(), draw(), torch.tensor(CHANNEL)
    made = model(field.requires_grad_(), boundary=boundary, jitter=[3, 5])
    (slope,) = torch.autograd.grad(made[0].square().sum(), field)
    assert slope[0].abs().max() > 0
    assert slope[1].abs().max() == 0
    torch.testing.assert_close(model(field[1:], boundary=boundary, jitter=[3, 5]), made[1:])


def test_training_draws_by_step():
    model, field = model_of(), draw()
    schedule = adaptok.create_schedule({"name": "fixed", "settings": [{"jitter": 5}]})
    module = SurrogateModule(model, Optim(unroll=2), schedule)
    batch = {"input": field, "boundary": torch.tensor([CHANNEL, CHANNEL])}
    batch["target"] = field.repeat(1, 2, 1, 1, 1)
    assert module.periodic_axes(batch) == (True, False)
    made = module.predict(batch, 4, ahead=2)
    offset = jitter_at(5, (4, 2), 2, CPU, periodic=(True, False))
    assert torch.equal(made, model(field, boundary=batch["boundary"], jitter=offset))
    assert not torch.equal(made, module.predict(batch, 4))
    assert module.loss(batch, 4).isfinite()


@pytest.mark.parametrize(
    ("jitter", "message"),
    [(-1, "whole number"), (True, "whole number"), ([1], "2 whole numbers"), ("3", "got '3'")],
)
def test_bad_jitter(jitter, message):
    with pytest.raises(ValueError, match=message):
        model_of()(draw(), jitter=jitter)


def test_what_cannot_be_shifted():
    field = draw()
    mixed = torch.tensor([PERIODIC, CHANNEL])
    with pytest.raises(ValueError, match="same periodic axes"):
        model_of()(field, boundary=mixed, jitter=3)
    with pytest.raises(ValueError, match="has none"):
        create_baseline("persistence", ndim=2, in_channels=2)(field, jitter=3)
    given = adaptok.create_surrogate(
        ndim=2, in_channels=2, tokenizer={"name": "given"}, dim=12, depth=1, heads=1
    )
    with pytest.raises(ValueError, match="given stay"):
        given(field, jitter=3)


@pytest.mark.slow
def test_compiled_once_for_all_offsets():
    model, field, boundary = model_of(), draw(), torch.tensor(CHANNEL)
    graph = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    counters = torch._dynamo.utils.counters["stats"]
    made, graphs = [], []
    for offset in itertools.islice(itertools.product(range(8), range(3)), 5):
        jitter = jitter_at(list(offset), (0,), 2, CPU, boundary=boundary)
        made.append((graph(field, boundary=boundary, jitter=jitter), jitter))
        graphs.append(counters["unique_graphs"])
    assert graphs[0] == graphs[-1]
    for one, jitter in made:
        torch.testing.assert_close(one, model(field, boundary=boundary, jitter=jitter))
