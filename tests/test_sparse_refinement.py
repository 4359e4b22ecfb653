"""The decoder `refine`: against a solver written out point by point, and in every kind of model."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hydra.errors import ConfigCompositionException
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import adaptok
from adaptok import (
    DECODERS,
    INDICATORS,
    MARKINGS,
    TokenizerSpec,
    create_decoder,
    create_surrogate,
)
from adaptok.config.menu import compose, readable_errors
from adaptok.decoders.refine import BlockChoice, block_tree
from adaptok.layers.boundary import pad_around
from adaptok.models.compiling import compile_model
from adaptok.patches import point_owners
from adaptok.tokenizers.indicators import relative_errors

WALL, OPEN, PERIODIC = 0, 1, 2
SMALL = {"width": 5, "smooth": 2}
SPEC = TokenizerSpec(2, 2, 8, ((1, 4, 4),))


def random_weights(module: torch.nn.Module) -> torch.nn.Module:
    """Double precision, and nothing left at zero."""
    module.double()
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return module


def codes(draw_from: list[int], ndim: int) -> torch.Tensor:
    """Codes per sample, the axes of the first sample as given and turned for others."""
    pairs = {0: [WALL, OPEN], 1: [OPEN, OPEN], 2: [PERIODIC, PERIODIC]}
    rows = [[pairs[(k + s) % 3] for k in draw_from[:ndim]] for s in range(2)]
    return torch.tensor(rows)


# ---- the solver by its definition


def moved(x: torch.Tensor, offsets, boundary) -> torch.Tensor:
    """Values of one frame (c, *space) so many points further on, beyond the border continued."""
    for axis, (offset, ends) in enumerate(zip(offsets, boundary, strict=True), start=1):
        n = x.shape[axis]
        at = [p + offset for p in range(n)]
        periodic = ends[0] == PERIODIC
        at = [p % n if periodic else min(max(p, 0), n - 1) for p in at]
        x = x.index_select(axis, torch.tensor(at))
    return x


def solved(solver, x, tokens, owner, boundary) -> torch.Tensor:
    """The solver at all points of one frame, tap by tap."""
    ndim, z = x.ndim - 1, 0
    for conv, spacing in zip(solver.stencils, solver.spacings, strict=True):
        half = spacing // 2
        for tap in itertools.product(range(3), repeat=ndim):
            for near in itertools.product(range(-half, half + 1), repeat=ndim):
                offsets = [(t - 1) * spacing + o for t, o in zip(tap, near, strict=True)]
                weight = conv.weight[(slice(None), slice(None), *tap)] / spacing**ndim
                z = z + torch.tensordot(weight, moved(x, offsets, boundary), 1)
        if conv.bias is not None:
            z = z + conv.bias.view(-1, *[1] * ndim)
    z = z.movedim(0, -1)
    gain, bias = solver.modulation(tokens)[owner.clamp(min=0)].chunk(2, -1)
    z = F.gelu(torch.where((owner >= 0)[..., None], z * (1 + gain) + bias, z))
    for layer in solver.layers:
        z = F.gelu(layer(z))
    return solver.head(z).movedim(-1, 0)


def refined_slowly(decoder, tokens, x, boundary, chosen) -> torch.Tensor:
    """Base, and the solver where `chosen` (b, t, *space) is 1, frame by frame."""
    owner = tokens.cells.owner_map() if tokens.cells.tiling else point_owners(tokens.cells)
    frames = [
        [solved(decoder.solver, y, tokens.features, o, k) for y, o in zip(ys, os, strict=True)]
        for ys, os, k in zip(x, owner, boundary.tolist(), strict=True)
    ]
    added = torch.stack([torch.stack(each) for each in frames])
    return decoder.base(tokens) + added * chosen.unsqueeze(2)


def mask_of(decoder, x, boundary) -> torch.Tensor:
    """1 at the points that a decoder refines, (b, t, *space)."""
    if decoder.choice is None:
        return torch.ones_like(x[:, :, 0])
    blocks = decoder.choice(x, boundary)
    mask = torch.zeros(x.shape[0] * x.shape[1], *blocks.grid).double()
    mask.view(-1)[blocks.index] = 1
    for axis, n in enumerate(x.shape[3:], start=1):
        mask = mask.repeat_interleave(blocks.block, axis).narrow(axis, 0, n)
    return mask.view_as(x[:, :, 0])


@st.composite
def problems(draw, dimensions):
    """A decoder with random weights, tokens, a field and boundary codes, small."""
    ndim = draw(st.sampled_from(dimensions))
    space = tuple(draw(st.integers(2, 13 if ndim == 1 else 7)) for _ in range(ndim))
    frames = draw(st.sampled_from([1, 1, 2]))
    make = {"ndim": ndim, "in_channels": 2, "dim": 6}
    make |= draw(
        st.sampled_from(
            [
                {"name": "iap", "min_size": 1, "max_size": 4, "budget": 70},
                {"name": "iap", "min_size": 2, "max_size": 4, "border": "split", "budget": 70},
                {"name": "uniform", "size": 3},
                {"name": "matey", "sizes": (1, 4), "mode": "add"},
            ]
        )
    )
    knobs = {
        "block": draw(st.sampled_from([2, 3])),
        "stencil": draw(st.sampled_from([(1,), (1, 3), (3, 1)])),
        "depth": draw(st.integers(0, 2)),
        "share": draw(st.sampled_from([0.3, 1.0])),
    }
    torch.manual_seed(draw(st.integers(0, 99)))
    tokenizer = adaptok.create_tokenizer(**make).double()
    x = torch.randn(2, frames, 2, *space).double()
    boundary = codes(draw(st.lists(st.integers(0, 2), min_size=3, max_size=3)), ndim)
    decoder = create_decoder("refine", tokenizer.spec, 2, width=4, smooth=0, **knobs)
    tokens = tokenizer(x, boundary=boundary)
    tokens = tokens.replace(features=torch.randn_like(tokens.features).requires_grad_())
    return random_weights(decoder), tokens, x.requires_grad_(), boundary


def check_definition(problem) -> None:
    decoder, tokens, x, boundary = problem
    out = decoder(tokens, field=x, boundary=boundary)
    wanted = refined_slowly(decoder, tokens, x, boundary, mask_of(decoder, x, boundary))
    torch.testing.assert_close(out, wanted, atol=1e-10, rtol=1e-10)
    weights = [x, tokens.features, *decoder.parameters()]
    slope = torch.randn_like(out)
    got, expected = (torch.autograd.grad((y * slope).sum(), weights) for y in (out, wanted))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:budget")
@settings(max_examples=5)
@given(problems([1, 2]))
def test_solver_and_gradients_equal_the_definition(problem):
    check_definition(problem)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:budget")
@settings(max_examples=4)
@given(problems([3]))
def test_solver_and_gradients_equal_the_definition_in_3d(problem):
    check_definition(problem)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("block", [2, 4])
def test_chosen_points_equal_the_dense_solver_there(ndim, block):
    """The fast paths against each other, on a domain that the block does not divide."""
    space = (13, 10, 6)[:ndim]
    tokenizer = adaptok.create_tokenizer("uniform", ndim=ndim, in_channels=2, dim=8, size=4)
    x, boundary = torch.randn(2, 1, 2, *space).double(), codes([2, 0, 1], ndim)
    tokens = tokenizer.double()(x, boundary=boundary)
    make = {"spec": tokenizer.spec, "out_channels": 3, "block": block, "smooth": 0}
    sparse = random_weights(create_decoder("refine", share=0.4, **make))
    dense = create_decoder("refine", share=1.0, **make).double()
    dense.load_state_dict(sparse.state_dict())
    some, every = (d(tokens, field=x, boundary=boundary) for d in (sparse, dense))
    base, mask = sparse.base(tokens), mask_of(sparse, x, boundary)
    wanted = base + (every - base) * mask.unsqueeze(2)
    torch.testing.assert_close(some, wanted, atol=1e-10, rtol=1e-10)


def test_periodic_fields_may_be_shifted():
    """With equal tokens everywhere, solver and smoothing commute with shifts."""
    tokenizer = adaptok.create_tokenizer("uniform", ndim=2, in_channels=2, dim=8, size=2)
    decoder = random_weights(create_decoder("refine", tokenizer.spec, 2, share=0.3, smooth=3))
    x, boundary = torch.randn(1, 1, 2, 12, 8).double(), torch.full((2, 2), PERIODIC)
    tokens = tokenizer.double()(x)
    tokens = tokens.replace(features=torch.ones_like(tokens.features))
    out = decoder(tokens, field=x, boundary=boundary)
    shifted = decoder(tokens, field=x.roll((4, 2), (3, 4)), boundary=boundary)
    torch.testing.assert_close(shifted, out.roll((4, 2), (3, 4)), atol=1e-10, rtol=1e-10)


@given(st.integers(1, 6), st.integers(0, 9), st.integers(0, 9), st.sampled_from([WALL, PERIODIC]))
def test_padding_continues_a_field(n, before, after, code):
    x = torch.arange(float(n)).view(1, 1, n)
    boundary = torch.tensor([[[code, code]]])
    found = pad_around(x, [(before, after)], boundary)[0, 0].tolist()
    places = range(-before, n + after)
    assert found == [p % n if code == PERIODIC else min(max(p, 0), n - 1) for p in places]


# ---- which points


def choice(**rule) -> BlockChoice:
    return BlockChoice(SPEC, "gradient", block=2, **({"share": 0.25} | rule))


def chosen_by(rule: BlockChoice, x: torch.Tensor) -> torch.Tensor:
    scores, _ = rule.scores(x, None)
    mask = torch.zeros(scores.numel(), dtype=torch.bool).index_fill(0, rule(x, None).index, 1)
    return mask.view_as(scores), scores


@pytest.mark.parametrize(("rule", "count"), [({"share": 0.3}, 11), ({"points": 30}, 7)])
def test_a_share_and_a_number_of_points_take_the_best(rule, count):
    x = torch.randn(2, 2, 3, 12, 11).cumsum(-1)
    mask, scores = chosen_by(choice(**rule), x)
    for own, score in zip(mask, scores, strict=True):
        best = sorted(range(36), key=lambda i: -float(score[i]))[:count]
        assert sorted(best) == own.nonzero().flatten().tolist()


@settings(max_examples=8)
@given(st.floats(0, 0.99), st.integers(0, 99))
def test_a_tolerance_takes_the_fewest(tolerance, seed):
    x = torch.randn(2, 1, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    x[1] = 1.0  # nothing to refine
    mask, scores = chosen_by(choice(tolerance=tolerance), x)
    ranked = sorted(scores[0].tolist(), reverse=True)
    fits = [sum(ranked[k:]) <= tolerance * sum(ranked) * (1 + 1e-6) for k in range(10)]
    assert int(mask[0].sum()) in (fits.index(True), fits.index(True) + 1)  # rounding
    assert scores[0][mask[0]].sum() >= (1 - tolerance) * scores[0].sum() * (1 - 1e-6)
    assert not mask[1].any()


def test_nothing_to_refine():
    """A constant field has no point above a tolerance; all weights still have gradients."""
    model = surrogate(decoder={"name": "refine", **SMALL, "tolerance": 0.1})
    model(torch.ones(2, 1, 2, 16, 16).double()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


RULES = [n for n in MARKINGS.names() if n != "random"]  # there are more indicators


@pytest.mark.parametrize(
    ("indicator", "marking"),
    zip(INDICATORS.names(), itertools.cycle(RULES), strict=False),
)
def test_any_indicator_and_any_marking(indicator, marking):
    knobs = {"budget": {"budget": 60}, "threshold": {"thresholds": 0.5}}.get(marking, {})
    color = {"color": "channels"} if "color" in INDICATORS.knobs(indicator) else {}
    rule = BlockChoice(
        SPEC,
        {"name": indicator, **color},
        block=2,
        share=0.25,
        marking={"name": marking, **knobs},
    )
    x = torch.rand(3, 1, 2, 12, 11).cumsum(-1)
    mask, scores = chosen_by(rule, x)
    whole = block_tree((12, 12), 2)
    errors = {}
    if getattr(rule.marking, "needs_errors", False):
        errors["errors"] = relative_errors(x, block_tree((12, 11), 2))[:, None]
    split = rule.marking(scores[:, None], whole, monotone=False, **errors).split[:, 0]
    assert torch.equal(mask, split)
    if rule.static:  # the number that the host knows is the true one
        assert rule._marked(scores, block_tree((12, 11), 2), x)[1] == int(split.sum())


def test_constants_are_not_scored():
    make = {"ndim": 2, "in_channels": 1, "constant_channels": 1, "dim": 24, "depth": 1, "heads": 2}
    x = torch.zeros(1, 1, 1, 16, 16)
    x[..., :4, :4] = torch.randn(4, 4)
    walls = torch.zeros(1, 1, 16, 16)
    walls[..., 10:, 10:] = torch.randn(6, 6) * 9
    for ignore, corner in (("constants", True), ([0], False)):
        model = create_surrogate(decoder={"name": "refine", "ignore": ignore, "points": 16}, **make)
        blocks = model.decoder.choice(model.scored(x, walls), None)
        rows = blocks.places[1]
        assert bool((rows < 3).all()) == corner


# ---- in models


def surrogate(**changes) -> adaptok.Surrogate:
    make = {"ndim": 2, "in_channels": 2, "dim": 24, "depth": 1, "heads": 2}
    make |= {"tokenizer": {"name": "iap", "budget": 30, "max_size": 8}}
    make |= {"decoder": {"name": "refine", **SMALL}}
    return random_weights(create_surrogate(**make | changes))


@pytest.mark.parametrize("mode", ["fold", "frames"])
def test_a_batch_and_a_list_equal_their_samples(mode):
    model = surrogate(history=2, history_mode=mode, constant_channels=1)
    samples = [torch.randn(2, 2, *s).double() for s in ((16, 24), (16, 24), (13, 18))]
    walls = [torch.rand(1, *x.shape[2:]).double() for x in samples]
    boundary = codes([2, 0], 2)[[0, 1, 1]]
    alone = [
        model(x[None], constants=w[None], boundary=k)[0]
        for x, w, k in zip(samples, walls, boundary, strict=True)
    ]
    together = model(samples, constants=walls, boundary=boundary)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)
    pair = model(torch.stack(samples[:2]), constants=torch.stack(walls[:2]), boundary=boundary[:2])
    torch.testing.assert_close(pair, torch.stack(alone[:2]))
    if mode == "frames":
        every = model(torch.stack(samples[:2]), constants=torch.stack(walls[:2]), all_frames=True)
        assert every.shape == (2, 2, 2, 16, 24)


def test_each_frame_is_refined_from_its_own_inputs():
    """Tokens aside, what a frame becomes depends on that frame alone."""
    tokenizer = adaptok.create_tokenizer("uniform", ndim=1, in_channels=1, dim=8, size=4).double()
    decoder = random_weights(create_decoder("refine", tokenizer.spec, 1))
    x = torch.randn(2, 3, 1, 16).double()
    cells = tokenizer.cells(x)
    tokens = adaptok.TokenSet(torch.ones(len(cells), 8).double(), cells)
    out = decoder(tokens, field=x)
    single = adaptok.TokenSet(torch.ones(8, 8).double(), tokenizer.cells(x[:, :1]))
    for frame in range(3):
        torch.testing.assert_close(
            decoder(single, field=x[:, frame])[:, 0], out[:, frame], atol=1e-12, rtol=0
        )


@pytest.mark.parametrize(
    "changes", [{"predict": "state"}, {"decoder": {"name": "refine", "tolerance": 0.3}}]
)
def test_rollouts_have_gradients(changes):
    model = surrogate(**changes)
    x = torch.randn(2, 2, 16, 16).double().requires_grad_()
    model.rollout(x, 2, grad=True).square().sum().backward()
    assert x.grad.any()
    assert all(p.grad is not None for p in model.parameters())


def test_many_systems():
    model = adaptok.create_multiphysics(
        ndim=2, fields=["a", "b"], dim=24, depth=1, heads=2, width=6, decoder="refine"
    )
    random_weights(model)
    x = torch.randn(2, 1, 2, 16, 16).double()
    out = model.system(["a", "b"])(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.decoder.solver.parameters())


@pytest.mark.parametrize(
    "tokenizer", ["ckm", "csm", {"name": "matey", "mode": "add"}, "apt", "boxes"]
)
def test_owners_of_every_tokenizer(tokenizer):
    """The nearest of overlapping cells in one grid, else the smallest over the point."""
    x = torch.randn(2, 1, 2, 24, 19)
    if tokenizer == "boxes":
        origin, size = (
            [[0, 0, 0], [0, 3, 1], [0, 9, 5]] * 2,
            [[1, 16, 16], [1, 5, 6], [1, 9, 9]] * 2,
        )
        cells = adaptok.cells_from_boxes(
            origin, size, (3, 3), shape=(1, 24, 19), sizes=((1, 16, 16),)
        )
    else:
        part = tokenizer if isinstance(tokenizer, dict) else {"name": tokenizer}
        cells = adaptok.create_tokenizer(**part, ndim=2, in_channels=2, dim=24).cells(x)
    owner = point_owners(cells)
    first, size = cells.origin[:, 1:], cells.size[:, 1:]
    for sample, *point in itertools.product(range(2), range(0, 24, 5), range(0, 19, 3)):
        at = torch.tensor(point)
        inside = ((first <= at) & (at < first + size)).all(1) & (cells.sample == sample)
        row = int(owner[(sample, 0, *point)])
        if not bool(inside.any()):
            assert row == -1
            continue
        assert bool(inside[row])
        measure = cells.volume.double()
        if tokenizer == "csm":
            measure = (first + size / 2 - at - 0.5).abs().amax(1)
        assert measure[row] == measure[inside].min()


def test_cost_follows_the_points():
    tokenizer = adaptok.create_tokenizer("uniform", ndim=2, in_channels=3, dim=16, size=8)
    x = torch.randn(2, 1, 3, 32, 32)
    tokens = tokenizer(x).detach()
    counted = {}
    for share in (1.0, 0.25):
        decoder = create_decoder("refine", tokenizer.spec, 3, share=share, smooth=0)
        with FlopCounterMode(display=False) as counter:
            decoder(tokens, field=x).square().sum().backward()
        counted[share] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        decoder.base(tokens).square().sum().backward()
        decoder.solver.modulation(tokens.features).sum().backward()
    fixed = counter.get_total_flops()
    assert (counted[0.25] - fixed) * 4 == counted[1.0] - fixed


def test_saved_and_loaded(tmp_path):
    marking = {"name": "maximum", "gamma": 0.5}
    model = surrogate(decoder={"name": "refine", **SMALL, "marking": marking}).float()
    x = torch.randn(2, 1, 2, 16, 16)
    adaptok.save_pretrained(model, tmp_path)
    assert torch.equal(adaptok.from_pretrained(tmp_path)(x), model.eval()(x))


def test_points_that_follow_the_content_stay_out_of_graphs(monkeypatch):
    assert surrogate().decoder.static
    model = surrogate(decoder={"name": "refine", **SMALL, "tolerance": 0.2})
    compile_model(model)
    assert model._compiled_call_impl is None
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with pytest.raises(ValueError, match="an exported program has a fixed number"):
        model.decoder.choice(torch.randn(2, 1, 2, 16, 16), None)


def test_depth_of_the_model_is_not_that_of_the_solver():
    model = create_surrogate(ndim=1, in_channels=1, dim=12, depth=3, heads=2, decoder="refine")
    assert len(model.decoder.solver.layers) == 1


def test_the_command_line():
    typed = compose("train", ["decoder=refine", "decoder.share=0.5", "size=base"])
    knobs = {"name": "refine", "share": 0.5, "stencil": [1, 3], "depth": 1}
    assert typed.decoder.items() >= knobs.items()
    hydra = ConfigCompositionException("Could not override 'decoder'. No match in the defaults.")
    with (
        pytest.raises(ValueError, match="adaptok train with task=classify has no decoder"),
        readable_errors("train", ["task=classify", "decoder=refine"]),
    ):
        raise hydra


# ---- refusals


SPEC = adaptok.TokenizerSpec(2, 2, 24, ((1, 4, 4),), on_grid=True)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"share": 0}, "share must be a number above 0 and of at most 1"),
        ({"share": 1.5}, "share must be a number above 0 and of at most 1"),
        ({"indicator": "gradiant"}, "unknown indicator 'gradiant' .did you mean 'gradient'"),
        ({"base": "nothing"}, "base 'nothing': unknown decoder 'nothing'"),
        ({"base": "refine"}, "base 'refine': it reads the field itself"),
        ({"block": 1}, "block must be a whole number of at least 2"),
        ({"points": 3}, "points=3 leaves none: a block has 2.2 = 4 points"),
        ({"points": 8, "tolerance": 0.1}, "one rule, got points and tolerance"),
        ({"stencil": [1, 2]}, "odd spacings"),
        ({"stencil": []}, "odd spacings"),
        ({"ignore": [7]}, None),
    ],
)
def test_bad_knobs(knobs, message):
    if message is None:
        with pytest.raises(ValueError, match="ignored channel 7"):
            create_surrogate(ndim=2, in_channels=2, decoder={"name": "refine", **knobs})
        return
    with pytest.raises(ValueError, match=message):
        create_decoder("refine", SPEC, 2, **knobs)


def test_it_says_what_it_needs():
    tokenizer = adaptok.create_tokenizer("uniform", ndim=2, in_channels=2, dim=24, size=4)
    x = torch.randn(2, 1, 2, 8, 8)
    tokens, decoder = tokenizer(x), create_decoder("refine", tokenizer.spec, 2)
    for field, message in (
        (None, r"decoder\(tokens, field=x\)"),
        (x[:, :, :1], "built for 2 channel"),
        (x[..., :4], "cells are for"),
        (x.double(), "the weights are"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder(tokens, field=field)
    assert DECODERS.says("refine", "reads_field")
