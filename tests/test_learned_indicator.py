"""The indicator that learns from what comes next: its start, targets, loss and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import Forest

import adaptok
from adaptok import create_tokenizer
from adaptok.testing import check_indicator
from adaptok.tokenizers import indicator_loss
from adaptok.tokenizers.indicators import GradientIndicator, LearnedIndicator
from adaptok.tokenizers.indicators.learned import FLOOR, true_errors
from adaptok.training.optim import Optim
from adaptok.training.surrogate_module import SurrogateModule
from adaptok.tree import Tree
from adaptok.utils.auxiliary import collect_auxiliary

SIZES = ((1, 8, 8), (1, 4, 4), (1, 2, 2))
TREE = Tree((16, 24), tuple(size[1:] for size in SIZES))


def learned(channels: int = 2, *, shaken: bool = True, **knobs) -> LearnedIndicator:
    """Far from its start, so that the network matters."""
    made = LearnedIndicator(channels, SIZES, width=6, **knobs)
    with torch.no_grad():
        for parameter in made.parameters() if shaken else ():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def tokenizer_of(indicator="learned", *, ndim=2, channels=2, **knobs):
    marking = {"name": "budget", "budget": 64}
    knobs = {"min_size": 2, "max_size": 8, "marking": marking, **knobs}
    make = {"ndim": ndim, "in_channels": channels, "dim": 8}
    return create_tokenizer("composed", **make, indicator=indicator, **knobs)


@pytest.mark.parametrize(("ndim", "side"), [(1, 64), (2, 32), (2, 29), (3, 8)])
def test_it_starts_as_the_gradient(ndim, side):
    field = torch.randn(2, 1, 2, *[side] * ndim).cumsum(-1)
    start, gradient = (tokenizer_of(name, ndim=ndim) for name in ("learned", "gradient"))
    scores, tree = start.scores(field)
    wanted = gradient.scores(field)[0]
    points = tree.nodes(field.device).points[: tree.inner]
    whole = tree.per_level(wanted)[0].sum(-1, keepdim=True) / (side**ndim)
    torch.testing.assert_close(scores, wanted / whole + FLOOR * points, rtol=1e-4, atol=1e-4)
    same = start.cells(field).origin == gradient.cells(field).origin
    assert same.all(1).float().mean() > 0.95


def test_the_network_keeps_the_promises_of_an_indicator():
    check_indicator(learned().eval())


@settings(max_examples=8)
@given(st.integers(1, 2), st.sampled_from(["change", "error"]), st.data())
def test_true_errors_box_by_box(ndim, target, data):
    shape = tuple(data.draw(st.integers(2, 13)) for _ in range(ndim))
    sizes = tuple((size,) * ndim for size in (8, 4, 2))
    outcome, tree, forest = torch.randn(2, 3, *shape), Tree(shape, sizes), Forest(shape, sizes)
    expected = []
    for node in forest.inner():
        _, origin, size = forest.box(node)
        box = tuple(slice(o, o + s) for o, s in zip(origin, size, strict=True))
        values = outcome.numpy()[(slice(None), slice(None), *box)].reshape(2, 3, -1)
        mean = values.mean(2, keepdims=True) * (target == "change")
        expected.append(np.square(values - mean).sum((1, 2)))
    inside = ~tree.nodes(outcome.device).outside
    errors = true_errors(outcome, tree, target)[:, inside]
    torch.testing.assert_close(errors, torch.from_numpy(np.stack(expected, 1)).float())


def test_the_loss_is_least_for_the_truth():
    """Written out for the start of the network, and zero for a network that is right."""
    made, field, outcome = learned(shaken=False), torch.randn(2, 1, 2, 16, 24), None
    outcome = torch.randn(2, 3, 16, 24)
    true, total = true_errors(outcome, TREE, "change"), 0.0
    start = made(field, TREE)
    points = TREE.nodes(field.device).points[: TREE.inner].float()
    for sample in range(2):
        mean = TREE.per_level(true)[0][sample].sum() / (16 * 24)
        for level in range(2):
            e, own, n = (TREE.per_level(x)[level] for x in (true[sample], start[sample], points))
            p, q = e / e.sum(), own / own.sum()
            density = (e / n / mean + FLOOR).log()
            square = ((own / n).log() - density).square().mean()
            total += ((p * (p / q).log()).sum() + 0.1 * square) / 4
    loss = made.loss(field, TREE, outcome)
    torch.testing.assert_close(loss, torch.as_tensor(total), rtol=1e-3, atol=1e-4)
    assert made.loss(field, TREE, torch.zeros(2, 3, 16, 24)) == 0  # nothing happens


def test_it_learns_what_the_gradient_cannot_see():
    """Steep bumps stand still, and what moves is flat: on the half where channel 1 is low."""

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        steep = torch.randn(count, 1, 1, 32, 32)
        left = (torch.rand(count, 1, 1, 1, 1) < 0.5).float()
        side = torch.zeros(1, 1, 1, 32, 32)
        side[..., :16] = 1
        moving = left * side + (1 - left) * (1 - side)
        field = torch.cat([steep * (1 - moving), 0.1 * moving.expand_as(steep)], 2)
        return field, torch.randn(count, 1, 1, 32, 32) * moving

    tokenizer = tokenizer_of({"name": "learned", "width": 8})
    optimizer = torch.optim.Adam(tokenizer.indicator.parameters(), 1e-2)
    torch.manual_seed(0)
    for _ in range(30):
        loss = indicator_loss(tokenizer, *draw(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    field, change = draw(8)
    inside = []
    for each in (tokenizer, tokenizer_of("gradient")):
        cells = each.cells(field, budget=88)
        fine = cells.select(cells.level == 2).replace(layout=None)
        rows = fine.origin[:, 1:].long()
        inside.append(change[:, 0, 0].abs()[fine.sample, rows[:, 0], rows[:, 1]].gt(0).float())
    assert inside[0].mean() > 0.95
    assert inside[1].mean() < 0.2


def test_a_periodic_domain_has_no_border():
    made, field = learned().eval(), torch.randn(2, 1, 2, 16, 24)
    codes = torch.tensor([[[2, 2], [2, 2]], [[0, 1], [0, 0]]])
    scores = made(field, TREE, boundary=codes)
    moved = made(field.roll((8, -8), (3, 4)), TREE, boundary=codes)
    whole, other = (TREE.per_level(x)[1].unflatten(1, (4, 6)) for x in (scores, moved))
    pairs = zip(whole, other, strict=True)
    same = [torch.allclose(o, w.roll((2, -2), (0, 1)), rtol=1e-4) for w, o in pairs]
    assert same == [True, False]
    alone = made(field[1:], TREE, boundary=codes[1:])
    torch.testing.assert_close(alone[0], scores[1], rtol=1e-4, atol=1e-4)


def test_ignored_channels_are_seen_by_the_network_alone():
    tokenizer = tokenizer_of("learned", ignore=[1])
    field = torch.randn(1, 1, 2, 16, 16)
    other = field.clone()
    other[:, :, 1] = torch.randn(16, 16)
    before = [tokenizer.scores(x)[0] for x in (field, other)]
    assert torch.equal(*before)
    torch.nn.init.ones_(tokenizer.indicator.heads[0].weight)
    after = [tokenizer.scores(x)[0] for x in (field, other)]
    assert not torch.equal(*after)


@pytest.mark.parametrize(
    ("target", "form"),
    [
        ("change", {}),
        ("error", {"history_mode": "frames"}),
        ("change", {"history_mode": "frames", "per_frame": True}),
    ],
)
def test_training_reports_its_loss(target, form):
    part = {"name": "composed", "indicator": {"name": "learned", "target": target}, "max_size": 8}
    part |= {"per_frame": form.get("per_frame", False), "marking": "budget"}
    mode = {"history_mode": form.get("history_mode", "fold")}
    options = {"ndim": 2, "in_channels": 2, "history": 2, "constant_channels": 1, **mode}
    sizes = {"dim": 12, "depth": 1, "heads": 2}
    model = adaptok.create_surrogate(**options, **sizes, tokenizer=part)
    module = SurrogateModule(model, Optim(), adaptok.create_schedule({"name": "fixed"}))
    batch = {"input": torch.randn(2, 2, 2, 16, 16), "target": torch.randn(2, 1, 2, 16, 16)}
    batch |= {"constants": torch.randn(2, 1, 16, 16), "boundary": torch.tensor([[2, 2], [0, 1]])}
    with collect_auxiliary() as found:
        loss = module.loss(batch, 0)
    assert set(found.losses) == {"indicator"}
    parameters = list(model.tokenizer.indicator.parameters())
    own = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in own)  # cells are piecewise constant
    found.total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
    assert any(p.grad.abs().sum() > 0 for p in parameters)
    torch.testing.assert_close(found.losses["indicator"], 0.1 * found.figures["indicator"])


@pytest.mark.parametrize("mode", ["fold", "frames"])
def test_it_learns_which_points_to_refine(mode, tmp_path):
    """Its loss is that of a tokenizer of such cells per frame; its model is saved with it."""
    part = {"name": "learned", "width": 6}
    decoder = {"name": "refine", "indicator": part, "width": 4}
    options = {"ndim": 2, "in_channels": 2, "history": 2, "constant_channels": 1}
    sizes = {"dim": 12, "depth": 1, "heads": 2, "history_mode": mode, "tokenizer": "iap"}
    model = adaptok.create_surrogate(**options, **sizes, decoder=decoder)
    choice = model.decoder.choice
    with torch.no_grad():
        for weight in choice.indicator.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    channels = 5 if mode == "fold" else 3
    blocks = {"min_size": 1, "max_size": 2, "per_frame": True}
    alike = tokenizer_of(part, channels=channels, **blocks, ignore=[channels - 1])
    alike.indicator.load_state_dict(choice.indicator.state_dict())
    module = SurrogateModule(model, Optim(), adaptok.create_schedule({"name": "fixed"}))
    frames, walls = torch.randn(2, 3, 2, 16, 16), torch.randn(2, 1, 16, 16)
    codes = torch.tensor([[[2, 2], [0, 1]], [[1, 1], [2, 2]]])
    batch = {"input": frames[:, :2], "target": frames[:, 2:], "constants": walls, "boundary": codes}
    with collect_auxiliary() as found:
        module.loss(batch, 0)
    change = frames.diff(dim=1)[:, -1:] if mode == "fold" else frames.diff(dim=1)
    scored, unit = model.scored(frames[:, :2], walls), model.scale(frames[:, :2])
    expected = indicator_loss(alike, scored, change / unit, boundary=codes)
    assert set(found.losses) == {"indicator_of_points"}
    torch.testing.assert_close(found.figures["indicator_of_points"], expected.detach())
    found.total().backward()
    expected.backward()
    for own, other in zip(choice.parameters(), alike.indicator.parameters(), strict=True):
        torch.testing.assert_close(own.grad, 0.1 * other.grad)
    scores = alike.scores(scored, boundary=codes)[0].flatten(0, 1)
    torch.testing.assert_close(choice.scores(scored, codes)[0], scores)
    adaptok.save_pretrained(model, tmp_path)
    again = adaptok.from_pretrained(tmp_path).decoder.choice
    assert torch.equal(again(scored, codes).index, choice(scored, codes).index)


def test_it_is_saved_with_its_model(tmp_path):
    tokenizer = tokenizer_of("learned")
    torch.nn.init.normal_(tokenizer.indicator.heads[0].weight)
    adaptok.save_pretrained(tokenizer, tmp_path)
    field = torch.randn(1, 1, 2, 32, 32)
    again = adaptok.from_pretrained(tmp_path)
    assert torch.equal(again.scores(field)[0], tokenizer.scores(field)[0])


@pytest.mark.slow
def test_compiled_without_a_break():
    tokenizer, field = tokenizer_of("learned"), torch.randn(2, 1, 2, 32, 32)
    compiled = torch.compile(tokenizer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(field).features, tokenizer(field).features)


def test_without_a_training_signal_it_is_refused():
    with pytest.raises(ValueError, match=r"chooses between cell sizes, and has .* alone"):
        tokenizer_of(max_size=2)
    with pytest.raises(ValueError, match="target must be one of change, error, got 'next'"):
        tokenizer_of({"name": "learned", "target": "next"})
    part = {"name": "composed", "indicator": "learned"}
    make = {"ndim": 2, "fields": ["u"], "dim": 12, "heads": 2}
    points = {"name": "refine", "indicator": "learned"}
    for chosen in ({"tokenizer": part}, {"decoder": points}):
        with pytest.raises(ValueError, match="a network of one set of fields"):
            adaptok.create_multiphysics(**make, **chosen)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 1, 3, 16, 8), "its samples, grid points"), ((2, 2, 3, 16, 16), "or one frame, got")],
)
def test_outcomes_that_do_not_fit(shape, message):
    field = torch.randn(2, 1, 2, 16, 16)
    with pytest.raises(ValueError, match=message):
        indicator_loss(tokenizer_of(), field, torch.randn(shape))
    with pytest.raises(ValueError, match="GradientIndicator does not learn from what happens"):
        indicator_loss(tokenizer_of(GradientIndicator()), field, field)
    with pytest.raises(ValueError, match=r"built for 2 channel\(s\) .* scores 3 channel"):
        tokenizer_of().cells(torch.randn(1, 1, 3, 16, 16))
