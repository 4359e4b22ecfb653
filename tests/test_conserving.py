"""Conservation: fluxes over the faces of a tiling, and the global fix."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import adaptok
from adaptok.evaluation.changes import changes_of
from adaptok.models.baselines import create_baseline
from adaptok.registry import DECODERS
from adaptok.tokens import TokenSet
from adaptok.utils.auxiliary import collect_auxiliary

IAP = {"name": "iap", "min_size": 2, "max_size": 8, "budget": 40}
GENERATED = ("shear_flow", "euler_multi_quadrants_periodicBC", "supernova_explosion_64")
PERIODIC, CHANNEL, CLOSED = [[2, 2], [2, 2]], [[2, 2], [0, 0]], [[0, 0], [0, 0]]


def shaken(part: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in part.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return part


def tokens_of(shape, sizes=IAP | {"budget": 14}, batch=2):
    torch.manual_seed(0)
    tokenizer = adaptok.create_tokenizer(sizes, ndim=len(shape), in_channels=1, dim=6)
    cells = tokenizer.double().cells(torch.randn(batch, 1, 1, *shape, dtype=torch.float64))
    features = torch.randn(len(cells), 6, dtype=torch.float64)
    return tokenizer.spec, TokenSet(features, cells)


def by_faces(decoder, tokens, codes) -> torch.Tensor:
    """What flows into each cell, one pair of neighbouring grid points after the other."""
    cells, x = tokens.cells, tokens.features
    owner, gained = cells.owner_map()[:, 0], torch.zeros(len(cells), len(decoder.channels)).double()
    for axis in range(cells.ndim):
        n = cells.shape[1 + axis]
        for place in itertools.product(*map(range, owner.shape)):
            sample, at = place[0], place[1 + axis]
            here = int(owner[place])
            ends = decoder.ends[axis](x[here]).unflatten(0, (2, -1))
            if at == 0 and codes[sample][axis][0] == 1:
                gained[here] -= ends[0]
            if at == n - 1 and codes[sample][axis][1] == 1:
                gained[here] -= ends[1]
            if at == n - 1 and codes[sample][axis][0] != 2:
                continue
            next_to = list(place)
            next_to[1 + axis] = (at + 1) % n
            there = int(owner[tuple(next_to)])
            if there != here:
                hidden = decoder.before[axis](x[here]) + decoder.behind[axis](x[there])
                flux = decoder.flux[axis](nn.functional.gelu(hidden))
                gained[here] -= flux
                gained[there] += flux
    return gained


@pytest.mark.parametrize(
    ("shape", "codes", "sizes"),
    [
        ((8, 8), [PERIODIC, [[0, 1], [2, 2]]], IAP | {"max_size": 4, "budget": 10}),
        ((7, 9), [CHANNEL, [[1, 1], [0, 1]]], IAP | {"max_size": 4, "budget": 12}),
        ((13,), [[[2, 2]], [[1, 0]]], IAP | {"budget": 5}),
        pytest.param(
            *((3, 4, 6), [[[2, 2], [0, 0], [1, 1]]] * 2, IAP | {"max_size": 4, "budget": 9}),
            marks=pytest.mark.slow,
        ),
        ((6, 4), [CLOSED, CHANNEL], {"name": "apf", "min_size": 1, "budget": 8}),
    ],
)
def test_cell_means_change_by_what_flows_in(shape, codes, sizes):
    spec, tokens = tokens_of(shape, sizes)
    decoder = shaken(DECODERS.create("conservative", spec=spec, out_channels=2).double())
    with torch.no_grad():
        made = decoder(tokens, boundary=torch.tensor(codes))
        detail = decoder.base(tokens)
        gained = by_faces(decoder, tokens, codes)
    owner = tokens.cells.owner_map()[:, 0]
    for row in owner.unique().tolist():
        sample, inside = int(tokens.cells.sample[row]), owner == row
        points = made[:, 0].movedim(1, -1)[inside]
        mean = gained[row] / inside.sum()
        torch.testing.assert_close(points.mean(0), mean)
        own = detail[:, 0].movedim(1, -1)[inside]
        torch.testing.assert_close(points - points.mean(0), own - own.mean(0))
        assert inside[sample].any()


def test_fluxes_begin_at_zero_and_some_channels_are_left_alone():
    spec, tokens = tokens_of((16, 8))
    decoder = DECODERS.create("conservative", spec=spec, out_channels=3, channels=[2, 0]).double()
    made = decoder(tokens, boundary=torch.tensor(PERIODIC))
    assert made.sum((-1, -2))[:, :, [0, 2]].abs().max() < 1e-10
    assert torch.equal(made[:, :, 1], decoder.base(tokens)[:, :, 1])
    alone = decoder(tokens.samples(1, 2), boundary=torch.tensor(PERIODIC))
    torch.testing.assert_close(alone, made[1:])


@pytest.mark.slow
def test_what_leaves_through_open_ends_is_reported():
    spec, tokens = tokens_of((16, 8))
    decoder = shaken(DECODERS.create("conservative", spec=spec, out_channels=2).double())
    for codes, leaves in ((PERIODIC, False), (CLOSED, False), ([[1, 0], [2, 2]], True)):
        with collect_auxiliary() as reported:
            made = decoder(tokens, boundary=torch.tensor(codes))
        outflow = reported.figures["outflow"]
        torch.testing.assert_close(outflow, -made.detach().mean())
        assert (outflow.abs() > 1e-4) == leaves
    everywhere = torch.full((2, 2), 1)
    assert torch.equal(decoder(tokens), decoder(tokens, boundary=everywhere))


def model_of(tokenizer=IAP, ndim=2, channels=2, dtype=torch.float32, **changes):
    made = {"ndim": ndim, "in_channels": channels, "tokenizer": tokenizer, "dim": 8, "depth": 1}
    made |= {"heads": 1, "normalise": "dataset", "decoder": "conservative"}
    torch.manual_seed(0)
    model = shaken(adaptok.create_surrogate(**made | changes))
    ones = torch.ones(channels)
    model.set_statistics(0 * ones, ones, 0.02 * ones)
    return model.to(dtype).eval()


def drift(model, field, codes, steps, **settings) -> torch.Tensor:
    """Largest change of a sum, relative to the sum of the absolute values, per channel."""
    boundary = torch.tensor(codes)
    out = model.rollout(field, steps, boundary=boundary, **settings)[:, -1].double()
    start, axes = field[:, -1].double(), tuple(range(2, field.ndim - 1))
    assert (out - start).abs().amax(axes).min() > 0.01  # it does move
    change = (out.sum(axes) - start.sum(axes)).abs() / start.abs().sum(axes)
    return change.amax(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["f32", "f64"]
)
@pytest.mark.parametrize(
    "tokenizer", [IAP, {"name": "uniform", "size": 4}, {"name": "apf", "budget": 40}]
)
def test_sums_hold_for_a_hundred_steps(tokenizer, dtype, most):
    torch.manual_seed(1)
    field = torch.randn(1, 1, 2, 16, 16, dtype=dtype) + 1
    model = model_of(tokenizer, dtype=dtype)
    settings = {}
    if "budget" in model.controls:  # another tiling in every step
        cyclic = [{"budget": 40}, {"budget": 22}]
        settings = {"settings": {"name": "cyclic", "settings": cyclic}}
    assert drift(model, field, CHANNEL, 100, **settings).max() < most


def test_sums_hold_for_some_steps():
    field = torch.randn(1, 1, 2, 16, 16) + 1
    cyclic = {"name": "cyclic", "settings": [{"budget": 40}, {"budget": 22}]}
    assert drift(model_of(), field, CHANNEL, 5, settings=cyclic).max() < 1e-7


@pytest.mark.slow
def test_the_global_fix_holds_sums_of_any_model():
    torch.manual_seed(1)
    field = torch.randn(2, 1, 2, 16, 16) + 1
    for changes in ({"conserve": "all"}, {"conserve": [0, 1], "predict": "state"}):
        model = model_of(decoder="linear", **changes)
        assert drift(model, field, PERIODIC, 5).max() < 1e-7
    plain = model_of(decoder="linear")
    assert drift(plain, field, PERIODIC, 2).min() > 1e-4
    one = model_of(decoder="linear", conserve=[1])
    first, second = drift(one, field, CLOSED, 2)
    assert first > 1e-4 > 1e-6 > second
    assert torch.equal(one(field), plain(field))  # open ends
    some = torch.tensor([CLOSED, [[1, 0], [0, 0]]])
    made, whole = one(field, boundary=some), plain(field, boundary=some)
    assert torch.equal(made[1], whole[1])
    shift = made[0, 0, 1] - whole[0, 0, 1]
    torch.testing.assert_close(shift, shift.mean().expand_as(shift), atol=1e-6, rtol=0)
    listed = one(list(field), boundary=some)
    torch.testing.assert_close(torch.stack(listed), made)
    network = create_baseline(
        {"name": "unet", "width": 4}, ndim=2, in_channels=2, conserve="all", normalise="dataset"
    )
    assert drift(shaken(network).eval(), field, PERIODIC, 2).max() < 1e-6


@pytest.mark.slow
def test_autocast_keeps_sums():
    field = torch.randn(1, 1, 2, 16, 16) + 1
    with torch.autocast("cpu", torch.bfloat16):
        assert drift(model_of(), field, CLOSED, 5).max() < 1e-6


def test_jitter_goes_with_periodic_axes_alone():
    model, field = model_of(), torch.randn(1, 1, 2, 16, 16) + 1
    assert drift(model, field, PERIODIC, 5, jitter=0).max() < 1e-6
    with pytest.raises(ValueError, match="jitter pads"):
        model.rollout(field, 1, boundary=torch.tensor(CHANNEL), jitter=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["shear_flow", "euler_multi_quadrants_periodicBC", "supernova_explosion_64"]
)
def test_sums_of_generated_sets_hold(name):
    """In 2D and 3D; with walls in place of open ends."""
    changes = changes_of(name, resolution=16, trajectories=1)
    field, boundary = changes.field[:1] + 1, changes.boundary
    boundary = torch.where(boundary == 1, 0, boundary)
    ndim, channels = len(boundary), field.shape[2]
    knobs = {**IAP, "budget": 2 * max(field[0, 0, 0].numel() // 8**ndim, 20)}
    model = model_of(knobs, ndim, channels)
    assert drift(model, field, boundary.tolist(), 100).max() < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predict": "state"}, "states"),
        ({"normalise": "context", "history": 2}, "mean change of the history"),
        ({"tokenizer": {"name": "csm", "patch_sizes": [4, 8]}}, "faces of a tiling"),
        ({"tokenizer": {"name": "matey", "mode": "add"}}, "faces of a tiling"),
        ({"tokenizer": {"name": "dart"}}, "faces of a tiling"),
        ({"decoder": {"name": "conservative", "channels": [2]}}, "channel 2 does not exist"),
        ({"decoder": {"name": "conservative", "channels": []}}, "channels is empty"),
        ({"decoder": {"name": "conservative", "channels": ["rho"]}}, "channels are numbers"),
        ({"decoder": {"name": "conservative", "base": "refine"}}, "reads the field itself"),
        ({"decoder": {"name": "refine", "base": "conservative"}}, "reads the field itself"),
        ({"decoder": "linear", "conserve": [2]}, "channel 2 does not exist"),
        ({"decoder": "linear", "conserve": "density"}, "conserve must be"),
        ({"decoder": "linear", "conserve": [-1]}, "conserve must be"),
    ],
)
def test_bad_conservation(changes, message):
    made = {"ndim": 2, "in_channels": 2, "dim": 8, "depth": 1, "heads": 1, "tokenizer": IAP}
    with pytest.raises(ValueError, match=message):
        adaptok.create_surrogate(**made | {"decoder": "conservative"} | changes)


def test_models_of_many_systems_have_no_sums_to_keep():
    with pytest.raises(ValueError, match="many systems"):
        adaptok.create_multiphysics(
            ndim=2, fields=["u"], tokenizer=IAP, decoder="conservative", dim=8, depth=1, heads=1
        )


@pytest.mark.slow
def test_the_conservative_step_is_compiled_whole():
    model, field = model_of(), torch.randn(1, 1, 2, 16, 16)
    boundary = torch.tensor(CHANNEL)
    graph = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(graph(field, boundary=boundary), model(field, boundary=boundary))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rollouts_in_half_precision_go_on(dtype):
    """One step is wide, as its sums are; what is fed back has the type of the field."""
    model = model_of(dtype=dtype)
    made = model.rollout(torch.randn(2, 1, 2, 16, 24, dtype=dtype), 2)
    assert made.shape[1] == 2
    assert made.isfinite().all()


def test_holes_are_refused():
    tokenizer = adaptok.create_tokenizer(**IAP, ndim=2, in_channels=1, dim=12)
    tokens = tokenizer(torch.randn(1, 1, 1, 16, 16).cumsum(-1))
    decoder = adaptok.create_decoder("conservative", tokenizer.spec, 1)
    with pytest.raises(ValueError, match="needs a tiling"):
        decoder(tokens.select(tokens.cells.level > 0))
