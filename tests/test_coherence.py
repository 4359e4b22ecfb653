"""Cells that cohere in time: hysteresis, buffers, regridding, and the flicker that is left."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptok
from adaptok.evaluation.tilings import flicker
from adaptok.tokenizers.coherence import ancestors, favoured, present, spread
from adaptok.tree import Tree, existing

SIZES = {
    "name": "composed",
    "min_size": 2,
    "max_size": 8,
    "marking": {"name": "budget", "budget": 60},
}
PERIODIC = torch.full((2, 2), 2)
REFINE = {"name": "refine", "width": 4}


def tokenizer_of(knobs=SIZES, ndim=2):
    return adaptok.create_tokenizer(knobs, ndim=ndim, in_channels=1, dim=4)


def moving(step: int, n: int = 32) -> torch.Tensor:
    """A bump that moves by a point per step, and another one in its second sample."""
    x, y = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    centres = [(8 + step, 12), (20, 5 + step)]
    bumps = [torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 12.0) for a, b in centres]
    return torch.stack(bumps).view(2, 1, 1, n, n)


def boxes(cells, sample: int) -> set:
    one = cells.samples(sample, sample + 1)
    return {(*o, *s) for o, s in zip(one.origin.tolist(), one.size.tolist(), strict=True)}


@pytest.mark.parametrize(
    ("knobs", "shape", "frames"),
    [
        (SIZES, (24, 16), 1),
        (SIZES | {"per_frame": True}, (16, 16), 2),
        (SIZES, (21, 13), 2),
        (SIZES | {"border": "split"}, (21, 13), 1),
        (SIZES | {"max_size": 4, "marking": {"name": "threshold", "thresholds": 5.0}}, (45,), 1),
        (SIZES | {"max_size": 4}, (8, 8, 8), 1),
        ({"name": "matey", "mode": "add", "sizes": [4, 8], "gamma": 0.3}, (16, 24), 1),
        ({"name": "apf", "budget": 40}, (32, 24), 1),
    ],
)
def test_what_was_split_is_read_off_the_cells(knobs, shape, frames):
    torch.manual_seed(0)
    tokenizer = tokenizer_of(knobs, len(shape))
    refined = tokenizer._refine(torch.randn(2, frames, 1, *shape), None, {})
    tree, split = refined.tree, refined.split
    happened = split & existing(split, tree)[..., : tree.inner]
    happened = happened & ~tree.nodes(split.device).outside
    cell = present(refined.cells, tree, split.shape[1], 1)
    assert torch.equal(ancestors(cell, tree) & ~tree.nodes(split.device).outside, happened)


@given(st.integers(0, 10_000), st.floats(0, 4), st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_parents_stay_ahead_of_their_children(seed, hysteresis, reach):
    generator = torch.Generator().manual_seed(seed)
    tree = Tree((12, 20), ((8, 8), (4, 4), (2, 2)))
    split = torch.rand(1, 2, tree.inner, generator=generator) < 0.5
    split &= existing(split, tree)[..., : tree.inner]
    coarse = 4 * torch.rand(1, 2, tree.offsets[1], generator=generator) - 2
    less = torch.rand(1, 2, tree.inner - tree.offsets[1], generator=generator)
    scores = torch.cat([coarse, tree.expand(coarse, 0) - less], -1)
    for changed in (favoured(scores, split, hysteresis), spread(scores, tree, PERIODIC, reach)):
        above, below = tree.per_level(changed)
        assert (tree.expand(above, 0) >= below).all()
    assert torch.equal(spread(scores, tree, PERIODIC, 0), scores)
    kept = favoured(scores, split, hysteresis)
    assert torch.equal(kept[~split], scores[~split])
    assert (kept[split] >= scores[split]).all()
    positive = split & (scores > 0)
    torch.testing.assert_close(kept[positive], scores[positive] * (1 + hysteresis))


@pytest.mark.parametrize("codes", [[[2, 2], [0, 1]], [[1, 1], [2, 2]]])
def test_a_buffer_takes_the_largest_neighbour(codes):
    """Node by node; the last node of an axis that does not divide has neighbours too."""
    torch.manual_seed(0)
    tree = Tree((12, 21), ((4, 4), (2, 2)))
    scores = torch.randn(2, 1, tree.inner)
    got = spread(scores, tree, torch.tensor(codes), 1).unflatten(-1, tree.grids[0])
    own = scores.unflatten(-1, tree.grids[0])
    rows, columns = 3, 6
    for i, j in itertools.product(range(rows), range(columns)):
        near = []
        for di, dj in itertools.product((-1, 0, 1), repeat=2):
            a, b = i + di, j + dj
            a = a % rows if codes[0][0] == 2 else min(max(a, 0), rows - 1)
            b = b % columns if codes[1][0] == 2 else min(max(b, 0), columns - 1)
            near.append(own[:, :, a, b])
        assert torch.equal(got[:, :, i, j], torch.stack(near).amax(0))


def test_without_hysteresis_nothing_changes_and_with_much_nothing_moves():
    tokenizer = tokenizer_of()
    before, field = tokenizer.cells(moving(0)), moving(3)
    plain = tokenizer.cells(field)
    for past in ({"previous": before, "hysteresis": 0}, {"previous": None, "hysteresis": 0.5}):
        assert torch.equal(tokenizer.cells(field, **past).origin, plain.origin)
    shares = []
    for hysteresis in (0, 0.25, 2, 1e6):
        cells = tokenizer.cells(field, previous=before, hysteresis=hysteresis).validate()
        assert cells.lengths == plain.lengths
        shares.append(flicker(cells, before))
    shares = torch.stack(shares)
    assert (shares[0] > 0.1).all()
    assert (shares.diff(dim=0) <= 0).all()
    still = tokenizer.cells(0.5 * before_and_after(), previous=before, hysteresis=1e6)
    assert (flicker(still, before) == 0).all()
    tokens = tokenizer(field, previous=before, hysteresis=0.25)
    assert torch.equal(
        tokens.cells.origin, tokenizer.cells(field, previous=before, hysteresis=0.25).origin
    )


def before_and_after() -> torch.Tensor:
    """A field that scores wherever the bumps were and will be."""
    torch.manual_seed(0)
    return moving(0) + 0.1 * torch.rand(2, 1, 1, 32, 32)


def test_samples_and_lists_have_their_own_past():
    tokenizer = tokenizer_of()
    before, field = tokenizer.cells(moving(0)), moving(2)
    both = tokenizer.cells(field, previous=before, hysteresis=0.5, buffer=1, boundary=PERIODIC)
    listed = tokenizer.cells(
        list(field), previous=before, hysteresis=0.5, buffer=1, boundary=PERIODIC
    )
    assert torch.equal(listed.origin, both.origin)
    for i in range(2):
        past = {"previous": before.samples(i, i + 1), "hysteresis": 0.5, "buffer": 1}
        alone = tokenizer.cells(field[i : i + 1], **past, boundary=PERIODIC)
        assert boxes(alone, 0) == boxes(both, i)


@pytest.mark.slow
def test_flicker_is_the_share_of_new_boxes():
    tokenizer = tokenizer_of()
    before, after = tokenizer.cells(moving(0)), tokenizer.cells(moving(2), budget=48)
    expected = [len(boxes(after, i) - boxes(before, i)) / len(boxes(after, i)) for i in range(2)]
    assert flicker(after, before).tolist() == pytest.approx(expected)
    assert flicker(after, after).tolist() == [0, 0]
    beyond = tokenizer.cells(moving(0, 21), budget=45)  # some fill the number up, beyond the border
    assert (beyond.volume == 0).any() or beyond.overhang
    assert flicker(beyond, beyond).tolist() == [0, 0]
    with pytest.raises(ValueError, match="same samples"):
        flicker(after, before.samples(0, 1))


def test_cells_that_passed_before_pass_again():
    """Cells over one another: those of the step before are favoured, whatever lies in them."""
    knobs = {"name": "amr", "mode": "passing", "indicators": ["vorticity"], "max_size": 8}
    tokenizer = adaptok.create_tokenizer(knobs, ndim=2, in_channels=2, dim=4)
    flows = [torch.cat([moving(step), moving(step + 2)], 2) for step in range(2)]
    before = tokenizer.cells(flows[0])
    kept = tokenizer.cells(flows[1], previous=before, hysteresis=1e9)
    plain = tokenizer.cells(flows[1])
    for i in range(2):
        assert boxes(before, i) <= boxes(kept, i)
        assert not boxes(before, i) <= boxes(plain, i)


def rolled(**changes) -> adaptok.Surrogate:
    torch.manual_seed(0)
    made = {"ndim": 2, "in_channels": 1, "tokenizer": SIZES, "dim": 8, "depth": 1, "heads": 1}
    return adaptok.create_surrogate(**made | {"normalise": "none"} | changes).double().eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"lookahead": 0.6}, marks=pytest.mark.slow),
        pytest.param({"lookahead": 0.6, "decoder": REFINE}, marks=pytest.mark.slow),
    ],
)
def test_rollouts_hand_on_the_cells_of_the_step_before(changes):
    model, field = rolled(**changes), moving(0).double()
    known = {"boundary": PERIODIC, "budget": 48}
    made = model.rollout(field, 3, **known, hysteresis=0.5, buffer=1)
    window, cells = field, None
    for step in range(3):
        cells = model.cells(window, **known, previous=cells, hysteresis=0.5, buffer=1)
        window = model(window, **known, cells=cells).detach()
        torch.testing.assert_close(made[:, step : step + 1], window)
    plain = model.rollout(field, 3, **known)
    for name in ("hysteresis", "buffer"):
        assert torch.equal(model.rollout(field, 3, **known, **{name: 0}), plain)


def test_the_first_pass_of_a_rollout_has_its_share_of_the_budget_that_is_asked_for():
    """Where its change is also what points are refined for."""
    few = {"name": "near_best", "budget": 200, "min_size": 2, "max_size": 8}
    refine = {"name": "refine", "share": 0.1}
    model, field = rolled(tokenizer=few, decoder=refine, lookahead=0.4), moving(0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    plain = model.rollout(field, 2, budget=40)
    for name, value in (("hysteresis", 0.0), ("buffer", 0), ("regrid", 1)):
        assert torch.equal(model.rollout(field, 2, budget=40, **{name: value}), plain)
    assert not torch.equal(model.rollout(field, 2), plain)


@pytest.mark.slow
def test_regridding_keeps_cells_in_between():
    model, field = rolled(), moving(0).double()
    made = model.rollout(field, 4, settings={"name": "fixed", "settings": [{"regrid": 3}]})
    window, cells = field, None
    for step in range(4):
        cells = model.cells(window) if step % 3 == 0 else cells
        window = model(window, cells=cells).detach()
        torch.testing.assert_close(made[:, step : step + 1], window)
    assert torch.equal(model.rollout(field, 2, regrid=1), model.rollout(field, 2))
    assert torch.equal(model(field, regrid=3, hysteresis=1.0), model(field))
    system = adaptok.create_multiphysics(
        ndim=2, fields=["u"], tokenizer=SIZES, dim=8, depth=1, heads=1
    ).system(["u"])
    assert system.rollout(moving(0), 2, regrid=2, hysteresis=0.5).isfinite().all()


@pytest.mark.parametrize(
    ("past", "message"),
    [
        ({"previous": 3}, "previous cells are those"),
        ({"previous": "samples"}, "the field is"),
        ({"previous": "shape"}, "the field is"),
        ({"previous": "sizes"}, "previous cells have the sizes"),
        ({"hysteresis": -0.1}, "hysteresis must be"),
        ({"hysteresis": float("nan")}, "hysteresis must be"),
        ({"buffer": -1}, "buffer must be"),
        ({"buffer": 0.5}, "buffer must be"),
    ],
)
def test_bad_pasts(past, message):
    tokenizer, field = tokenizer_of(), moving(0)
    made = {
        "samples": tokenizer.cells(field[:1]),
        "shape": tokenizer.cells(moving(0, 24)),
        "sizes": tokenizer_of({**SIZES, "max_size": 4}).cells(field, budget=64),
    }
    previous = made.get(past.get("previous"), past.get("previous"))
    past = {"hysteresis": 0.5} | past | {"previous": previous}
    with pytest.raises(ValueError, match=message):
        tokenizer.cells(field, **past)


def test_who_has_no_past():
    field = moving(0).double()
    with pytest.raises(ValueError, match="one or the other"):
        rolled().rollout(field, 2, jitter=0, hysteresis=0.5)
    with pytest.raises(ValueError, match="not a list"):
        rolled().rollout(list(field), 2, regrid=2)
    with pytest.raises(ValueError, match="regrid must be"):
        rolled().rollout(field, 2, regrid=0)
    with pytest.raises(ValueError, match="has none"):
        rolled(tokenizer={"name": "uniform", "size": 4}).rollout(field, 2, hysteresis=0.5)
    with pytest.raises(ValueError, match="unknown control 'previous'"):
        tokenizer_of({"name": "uniform", "size": 4}).cells(field, previous=None)


@pytest.mark.slow
def test_coherent_cells_in_a_compiled_step():
    model, field = rolled(), moving(0).double()
    cells = model.cells(field)
    graph = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    for past in ({"cells": cells}, {"previous": cells, "hysteresis": 0.5, "buffer": 1}):
        torch.testing.assert_close(graph(field, **past), model(field, **past))
