"""Two passes: the cells of a prediction are made for the change that a cheaper one predicts."""

from __future__ import annotations

import copy
import math

import pytest
import small_runs
import torch

import adaptok
from adaptok.config.build import build_data, build_surrogate
from adaptok.config.menu import compose, plain
from adaptok.config.unread import unread
from adaptok.evaluation.cost import cost_of
from adaptok.evaluation.tilings import certificate_of
from adaptok.tasks.surrogate import config_at_budget
from adaptok.training.optim import Optim
from adaptok.training.surrogate_module import SurrogateModule

BEST = {"name": "near_best", "min_size": 2, "max_size": 8, "budget": 64}


def pair(*, shape=(16, 24), **changes) -> tuple[adaptok.Surrogate, adaptok.Surrogate]:
    """A model and the same one looking ahead, with statistics and weights far from the start."""
    make = {"ndim": len(shape), "in_channels": 2, "tokenizer": BEST, "dim": 24, "depth": 1}
    make |= {"heads": 1, "normalise": "dataset", "lookahead": 0.25, **changes}
    torch.manual_seed(0)
    ahead = adaptok.create_surrogate(**make)
    once = adaptok.create_surrogate(**make | {"lookahead": None})
    known = {"mean": [1.0, -2.0], "std": [2.0, 0.5], "delta_std": [0.1, 0.3]}
    ahead.set_statistics(**{name: torch.tensor(value) for name, value in known.items()})
    with torch.no_grad():
        for weight in ahead.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    once.load_state_dict(ahead.state_dict())
    return once.double(), ahead.double()


def draw(*, batch: int = 2, t: int = 1, shape=(16, 24)) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, t, 2, *shape, dtype=torch.float64).cumsum(-1)


def seen_ahead(once, field, first: int, **given) -> torch.Tensor:
    """What the indicator sees in the second pass, from whole calls of a model without one."""
    frames = once.history_mode == "frames"
    with torch.no_grad():
        after = once(field, all_frames=frames, budget=first, **given)
    change = after - (field if frames else field[:, -1:])
    if once.score_on == "normalised":
        unit = once.delta_std if once.predict == "delta" else once.std
        change = change / unit.view(-1, *[1] * once.ndim)
    if not frames:
        change = torch.cat([change] * once.history, 2)
    static = change.new_zeros(*change.shape[:2], once.constant_channels, *change.shape[3:])
    return torch.cat([change, static], 2)


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((16, 24), {}),
        ((16, 24), {"history": 2, "constant_channels": 1, "predict": "state"}),
        ((16, 24), {"history": 2, "history_mode": "frames", "constant_channels": 1}),
        ((16, 24), {"score_on": "raw", "decoder": {"name": "refine", "width": 4}}),
        ((16, 24), {"score_on": "raw", "predict": "state", "lookahead": 0.6}),
        ((45,), {"tokenizer": {"name": "iap", "max_size": 8, "budget": 17}}),
        ((8, 8, 8), {"tokenizer": {**BEST, "budget": 36}, "lookahead": 0.5}),
    ],
)
def test_two_passes_by_hand(shape, changes):
    """Values and gradients; the cells of a prediction are no function of the weights."""
    once, ahead = pair(shape=shape, **changes)
    field, given = draw(t=once.history, shape=shape), {"boundary": torch.full((len(shape), 2), 2)}
    if once.constant_channels:
        given["constants"] = torch.rand(2, 1, *shape, dtype=torch.float64)
    budget = ahead.tokenizer.marking.budget
    frames = once.history if once.history_mode == "frames" else 1
    coarsest = math.prod(-(-n // 8) for n in shape) * frames
    first = max(round(ahead.lookahead * budget), coarsest)
    seen = seen_ahead(once, field, first, **given)
    torch.testing.assert_close(ahead.scored_ahead(field, **given), seen)
    cells = once.tokenizer.cells(seen, boundary=given["boundary"])
    if once.predict == "delta":  # an untrained state differs from the field by the field
        assert not torch.equal(cells.origin, once.cells(field, **given).origin)
    assert torch.equal(cells.origin, ahead.cells(field, **given).origin)

    x = once.prepare(field, given.get("constants"))
    tokens = once.processor(once.tokenizer.embed(x, cells, boundary=given["boundary"]))
    reads = getattr(once.decoder, "reads_field", False)
    more = {"field": x, "scored": seen, "boundary": given["boundary"]} if reads else {}
    decoded = once.decoder(tokens, **more)[:, -1:]
    unit = once.delta_std if once.predict == "delta" else once.std
    start = field[:, -1:] if once.predict == "delta" else once.mean.view(-1, *[1] * len(shape))
    expected = start + unit.view(-1, *[1] * len(shape)) * decoded
    made = ahead(field, **given)
    torch.testing.assert_close(made, expected)
    made.square().sum().backward()
    expected.square().sum().backward()
    for own, other in zip(ahead.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_samples_lists_and_rollouts():
    _, ahead = pair()
    ahead.eval()
    field, other = draw(), draw(batch=1, shape=(16, 16))[0]
    made = ahead(field)
    torch.testing.assert_close(ahead(field[1:]), made[1:])
    listed = ahead([field[0], other, field[1]])
    for one, whole in zip(listed, (made[0], ahead(other[None])[0], made[1]), strict=True):
        torch.testing.assert_close(one, whole)
    steps = ahead.rollout(field, 2, settings={"name": "cyclic", "settings": [{}, {"budget": 40}]})
    torch.testing.assert_close(steps, torch.cat([made, ahead(made.detach(), budget=40)], 1))


def test_the_first_pass_has_its_share_of_any_budget():
    _, ahead = pair()
    found, embed = [], ahead.tokenizer.embed

    def count(x, cells, **given):
        found.append(cells.lengths)
        return embed(x, cells, **given)

    ahead.tokenizer.embed = count
    for budget in (64, 96, [40, 96], torch.tensor([40, 96]), 8, None):
        ahead(draw(), budget=budget)
    first, second = found[::2], found[1::2]
    assert first == [(15, 15), (24, 24), (9, 24), (9, 24), (6, 6), (15, 15)]  # 3 at a time, from 6
    for wrong in ("many", 2.5, True, [None, 40], [40], -1):
        with pytest.raises(ValueError, match="budget"):
            ahead(draw(), budget=wrong)
    assert second == [(63, 63), (96, 96), (39, 96), (39, 96), (6, 6), (63, 63)]


def test_both_passes_count_the_first_as_the_cost_of_cells():
    once, ahead = pair()
    field = draw(batch=1)
    whole, quarter, both = (
        cost_of(model, lambda model=model, more=more: model(field, **more), [field]).flops
        for model, more in ((once, {}), (once, {"budget": 16}), (ahead, {}))
    )
    assert both["processor"] == whole["processor"]
    assert both["decoder"] == whole["decoder"]
    assert both["tokenizer"] == whole["tokenizer"] + quarter["total"]
    error = certificate_of(ahead, field, budget=40)
    seen = ahead.scored_ahead(field, budget=40)
    torch.testing.assert_close(error, once.tokenizer.certificate(seen, budget=40))


def test_it_trains_and_is_saved(tmp_path):
    _, ahead = pair()
    ahead.float()
    module = SurrogateModule(ahead, Optim(unroll=2), lambda step: {"budget": 40})
    frames = draw(t=3).float()
    batch = {"input": frames[:, :1], "target": frames[:, 1:], "boundary": torch.zeros(2, 2).long()}
    module.loss(batch, 0).backward()
    assert module.tokens_per_sample == 39
    adaptok.save_pretrained(ahead, tmp_path)
    again = adaptok.from_pretrained(tmp_path)
    assert again.lookahead == 0.25
    torch.testing.assert_close(again(frames[:, :1]), ahead.eval()(frames[:, :1]))


def test_a_first_pass_that_diverges_is_no_error():
    _, ahead = pair()
    field = draw()
    with torch.no_grad():
        made = ahead(field)
        for weight in ahead.decoder.parameters():
            weight.fill_(torch.inf)
    assert not ahead(field).isfinite().any()
    assert made.isfinite().all()


def test_a_custom_tokenizer_says_its_budget():
    class Own(torch.nn.Module):
        controls = ("budget",)

        def __init__(self):
            super().__init__()
            self.inner = adaptok.create_tokenizer("iap", ndim=2, in_channels=2, dim=24, max_size=8)
            self.spec, self.seen = self.inner.spec, []

        def cells(self, field, *, boundary=None, budget=64):
            self.seen.append((budget, field))
            return self.inner.cells(field, boundary=boundary, budget=budget)

        def embed(self, x, cells, *, boundary=None):
            return self.inner.embed(x, cells, boundary=boundary)

    make = {"ndim": 2, "in_channels": 2, "depth": 1, "heads": 1}
    own = Own()
    with pytest.raises(ValueError, match="has none set"):
        adaptok.create_surrogate(**make, tokenizer=own, lookahead=0.25)
    own.budget = 64
    model = adaptok.create_surrogate(**make, tokenizer=own, lookahead=0.25)
    model(draw().float())
    assert [budget for budget, _ in own.seen] == [16, 64]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "uniform"}, "tokenizer 'uniform' has none; its controls: none"),
        ({"tokenizer": "near_best"}, "tokenizer 'near_best' has none set: tokenizer.budget="),
        ({"tokenizer": "apt"}, "tokenizer 'apt' has none set"),
        ({"lookahead": 1.0}, "lookahead must be .* got 1.0"),
        ({"lookahead": 0}, "lookahead must be .* got 0"),
        ({"lookahead": True}, "lookahead must be .* got True"),
        ({"tokenizer": {"name": "composed", "indicator": "learned"}}, "choose cells by another"),
        ({"decoder": {"name": "refine", "indicator": "learned"}}, "choose points by another"),
        (
            {"out_channels": 1, "predict": "state", "normalise": "none"},
            "1 channels are predicted of 2",
        ),
    ],
)
def test_models_that_cannot_look_ahead(changes, message):
    make = {"ndim": 2, "in_channels": 2, "dim": 24, "depth": 1, "heads": 1, "tokenizer": BEST}
    with pytest.raises(ValueError, match=message):
        adaptok.create_surrogate(**{**make, "lookahead": 0.25, **changes})


def test_the_command_line():
    """The budget of a run is found before there is a first pass."""
    chosen = ["tokenizer=near_best", "budget=40", "lookahead=0.25"]
    config = plain(compose("train", [*small_runs.data(), *small_runs.SIZE, *chosen]))
    data = build_data(config)
    model = build_surrogate(config_at_budget(config, data), data.info)
    assert model.lookahead == 0.25
    assert model.tokenizer.marking.budget == 40
    assert [*unread({"task": "pretrain"}, ["lookahead"])] == [
        "lookahead is not read: a model of several sets runs once per step"
    ]


@pytest.mark.slow
def test_both_passes_are_compiled_as_one_graph():
    _, ahead = pair(decoder={"name": "refine", "width": 4})
    ahead, field = ahead.float(), draw().float()
    compiled = copy.deepcopy(ahead)
    expected = ahead(field)
    compiled.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    made = compiled(field)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    for each in (made, expected):
        each.square().sum().backward()
    for own, other in zip(compiled.parameters(), ahead.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-3)
