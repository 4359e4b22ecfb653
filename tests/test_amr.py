"""AMR-Transformer: quantities of a flow, and cells that stay beside those inside of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from references import Forest, boxes, halvings

import adaptok
from adaptok import create_tokenizer
from adaptok.config.channels import with_channels
from adaptok.evaluation.tilings import visible
from adaptok.registry import INDICATORS
from adaptok.testing import check_tokenizer
from adaptok.tree import Tree

NAMES = ("velocity_gradient", "vorticity", "momentum")
SMALL = {"ndim": 2, "in_channels": 3, "dim": 12, "min_size": 2, "max_size": 8}


def flow(shape=(24, 16), batch: int = 2, channels: int = 3) -> torch.Tensor:
    """Quiet on one side."""
    x = torch.randn(batch, 1, channels, *shape).cumsum(-1)
    x[..., shape[-1] // 2 :] = x[..., shape[-1] // 2 :] * 0.01
    return x


# ---- quantities


def slopes(u: np.ndarray) -> np.ndarray:
    """(component, axis, *space) of a periodic flow."""
    axes = range(u.ndim - 1)
    return np.stack([[(np.roll(c, -1, a) - np.roll(c, 1, a)) / 2 for a in axes] for c in u])


@pytest.mark.parametrize("shape", [(12,), (8, 10), (6, 4, 8)])
@pytest.mark.parametrize("name", NAMES)
def test_quantities_are_those_of_the_textbook(name, shape):
    ndim = len(shape)
    field = np.random.default_rng(0).standard_normal((ndim + 2, *shape))
    u, rho = field[1 : ndim + 1], field[0]
    g = slopes(u)
    if name == "velocity_gradient":
        wanted = np.sqrt((g**2).sum((0, 1)))
    elif name == "momentum":
        wanted = np.abs(rho) * np.sqrt((u**2).sum(0))
    elif ndim == 3:
        curl = [g[2][1] - g[1][2], g[0][2] - g[2][0], g[1][0] - g[0][1]]
        wanted = np.sqrt(sum(part**2 for part in curl))
    else:
        wanted = np.abs(g[1][0] - g[0][1]) if ndim == 2 else np.zeros(shape)
    roles = {"velocity": list(range(1, ndim + 1))}
    if name == "momentum":
        roles["density"] = 0
    indicator = INDICATORS.create(name, **roles)
    periodic = torch.full((ndim, 2), 2)
    x = torch.tensor(field)[None, None]
    points = indicator.score_map(x, boundary=periodic)[0].numpy()
    mean = wanted.mean() if wanted.any() else 1.0
    np.testing.assert_allclose(points, wanted / mean, rtol=1e-6, atol=1e-9)
    for unit in (1e-30, 1e30):
        np.testing.assert_allclose(
            indicator.score_map(x * unit, boundary=periodic)[0].numpy(), points, rtol=1e-6
        )
    tree = Tree(shape, tuple(halvings(2, 4, ndim)))
    scores = indicator(x, tree, boundary=periodic)[0]
    grids = itertools.product(*(range(0, n, 4) for n in shape))
    cells = [tuple(slice(o, o + 4) for o in corner) for corner in grids]
    np.testing.assert_allclose(scores.numpy(), [points[cell].max() for cell in cells])


def test_a_solid_rotation_turns_everywhere_alike_and_rest_nowhere():
    x, y = torch.meshgrid(torch.arange(16.0), torch.arange(12.0), indexing="ij")
    vorticity, tree = INDICATORS.create("vorticity"), Tree((16, 12), ((4, 4), (2, 2)))
    turning = torch.stack([-y, x])[None, None] * 3
    inside = vorticity.score_map(turning)[0, 1:-1, 1:-1]
    torch.testing.assert_close(inside, inside[:1, :1].expand_as(inside))
    streaming = torch.full((1, 1, 2, 16, 12), 0.1) + 1e-8 * torch.rand(1, 1, 2, 16, 12)
    assert not vorticity(streaming, tree).any()
    assert not INDICATORS.create("velocity_gradient")(streaming, tree).any()
    stretched = INDICATORS.create("velocity_gradient", spacing=(1.0, 0.5)).score_map(turning)
    assert torch.isfinite(stretched).all()


def test_folded_frames_and_their_density():
    frames = torch.randn(1, 3, 3, 8, 8)  # density, u, v
    apart = INDICATORS.create("momentum", velocity=[1, 2], density=[0]).score_map(frames)
    folded = INDICATORS.create(
        "momentum", velocity=[1, 2, 4, 5, 7, 8], density=[0, 3, 6]
    ).score_map(frames.flatten(1, 2)[:, None])
    torch.testing.assert_close(folded, apart)
    gradient = {"velocity": [1, 2, 4, 5, 7, 8]}
    torch.testing.assert_close(
        INDICATORS.create("velocity_gradient", **gradient).score_map(frames.flatten(1, 2)[:, None]),
        INDICATORS.create("velocity_gradient", velocity=[1, 2]).score_map(frames),
    )


# ---- roles


def test_roles_that_do_not_exist_are_refused_by_name():
    field = flow()
    for knobs, message in (
        ({"velocity": [0, 7]}, "channel 7 as velocity: the field has 3 channels"),
        ({"density": -4}, "channel -4 as density: the field has 3 channels"),
        ({"velocity": [0, 1, 2]}, "velocity has one channel per space axis, 2"),
        ({"density": [0, 1]}, "density has one channel, or one per frame of the velocity, 1"),
        ({"spacing": [1.0]}, "spacing is one number per space axis, 2"),
    ):
        tokenizer = create_tokenizer("amr", **SMALL, **knobs)
        with pytest.raises(ValueError, match=message):
            tokenizer.cells(field)
        with pytest.raises(ValueError, match=message):
            tokenizer.tell_channels([], 3)
    for knobs, message in (
        ({"velocity": ["u", "v"]}, "velocity is a list of channels by number, got .*'u'"),
        ({"indicators": ["vortices"]}, "each of indicators must be one of .*did you mean"),
        ({"indicators": []}, "indicators are some of velocity_gradient, vorticity, momentum"),
        ({"thresholds": [1.0, 2.0]}, "thresholds: one, or one for each of"),
        ({"mode": "ad"}, "mode must be one of add, passing, replace"),
        ({"rule": "some"}, "rule must be one of any, all"),
        ({"mode": "passing", "min_size": 1}, "more than one point: min_size=2"),
    ):
        with pytest.raises(ValueError, match=message):
            create_tokenizer("amr", **{**SMALL, **knobs})


def test_names_of_fields_become_channels():
    fields, constants = ["density", "velocity_x", "velocity_y"], ["porosity"]
    roles = {"velocity": ["velocity_x", "velocity_y"], "density": "density"}
    config = {"tokenizer": {"name": "amr", **roles}, "history": 2, "history_mode": "fold"}
    made = with_channels(config, fields, constants)
    assert made["velocity"] == [1, 2, 4, 5]
    assert made["density"] == [0, 3]
    frames = with_channels({**config, "history_mode": "frames"}, fields, constants)
    assert (frames["velocity"], frames["density"]) == ([1, 2], [0])
    static = {**config, "tokenizer": {"name": "amr", "density": "porosity", "velocity": [1, 2]}}
    assert with_channels(static, fields, constants) == {
        **static["tokenizer"],
        "density": [6],
    }
    wrong = {**config, "tokenizer": {"name": "amr", "density": "rho"}}
    with pytest.raises(ValueError, match=r"tokenizer.density must be one of density, .*'rho'"):
        with_channels(wrong, fields, constants)


def test_constants_are_passed_over_unless_named():
    tokenizer = create_tokenizer("amr", **SMALL, indicators=["velocity_gradient"])
    field = flow()
    tokenizer.tell_channels([0], 3)
    one, other = tokenizer.scores(field)[0], field.clone()
    other[:, :, 0] = torch.randn(2, 1, 24, 16)
    assert torch.equal(tokenizer.scores(other)[0], one)
    named = create_tokenizer("amr", **SMALL, velocity=[0, 1])
    named.tell_channels([0], 3)
    assert not torch.equal(named.scores(other)[0], named.scores(field)[0])


# ---- cells


def passed_by_hand(tokenizer, field: torch.Tensor, sample: int, bar: float) -> dict:
    """Depth by depth: which cells exist, pass, and are kept in each mode."""
    shape, sizes = tuple(field.shape[3:]), [size[1:] for size in tokenizer.spec.sizes]
    forest = Forest(shape, sizes)
    points = tokenizer.score_map(field)[sample]
    kept: dict[str, set] = {"add": set(), "passing": set(), "replace": set()}

    def ask(node, above: bool) -> None:
        box = forest.box(node)
        place = tuple(slice(o, o + s) for o, s in zip(*box[1:], strict=True))
        passes = bool(points[place].max() > bar)
        kept["add"].add(box)
        if passes or above:
            kept["passing"].add(box)
        if passes and node[0] < forest.last:
            for child in forest.children(node):
                ask(child, False)
        else:
            kept["replace"].add(box)

    for root in forest.roots():
        ask(root, True)
    return kept


@pytest.mark.parametrize("mode", ["add", "passing", "replace"])
def test_cells_are_asked_depth_by_depth(mode):
    tokenizer = create_tokenizer("amr", **SMALL, mode=mode)
    field = flow()
    cells = tokenizer.cells(field).validate()
    assert cells.tiling == (mode == "replace")
    assert len(cells.level.unique()) > 1
    for sample in range(2):
        kept = passed_by_hand(tokenizer, field, sample, 1.0)
        assert set(boxes(cells, sample)) == kept[mode]
        assert cells.lengths[sample] == len(kept[mode])
        assert kept["passing"] < kept["add"] > kept["replace"]


@pytest.mark.parametrize("rule", ["any", "all"])
def test_thresholds_by_indicator(rule):
    bars = [1.5, 2.5, 3.5]
    together = create_tokenizer("amr", **SMALL, thresholds=bars, rule=rule)
    apart = [
        create_tokenizer("amr", **SMALL, indicators=[name], thresholds=bar)
        for name, bar in zip(NAMES, bars, strict=True)
    ]
    field = flow()
    own = torch.stack([one.scores(field)[0] for one in apart])
    wanted = own.amax(0) if rule == "any" else own.amin(0)
    torch.testing.assert_close(together.scores(field)[0], wanted)
    assert together.indicator.monotone


@pytest.mark.parametrize("mode", ["add", "passing", "replace"])
def test_the_price_of_a_number_of_tokens_is_the_best_one(mode):
    tokenizer = create_tokenizer("amr", **SMALL, mode=mode)
    field = flow(shape=(9, 8))
    scores = tokenizer.scores(field)[0].flatten().unique()
    counts = {len(tokenizer.cells(field, price=float(s))) for s in scores}
    for tokens in (5, 12):
        price = adaptok.calibrate(tokenizer, field, tokens)
        got = len(tokenizer.cells(field, price=price))
        assert got == max(count for count in counts if count <= 2 * tokens)


@pytest.mark.parametrize(("mode", "border"), [("add", "clip"), ("passing", "split")])
def test_promises_certificate_and_decoders_of_overlapping_cells(mode, border):
    tokenizer = create_tokenizer("amr", **SMALL, mode=mode, border=border)
    if mode == "passing":  # "add" is checked with all other tokenizers
        check_tokenizer(tokenizer)
    field = flow(shape=(21, 16))
    cells = tokenizer.cells(field).validate()
    bound = tokenizer.certificate(field)
    assert (bound >= 0).all()
    whole = create_tokenizer("amr", **SMALL, mode="replace", border=border)
    assert (bound >= whole.certificate(field) - 1e-6).all()
    if mode == "add":
        torch.testing.assert_close(bound, whole.certificate(field))
    tokens = tokenizer(field)
    for name in ("linear", "paste", "hmlp"):
        decoder = adaptok.create_decoder(name, tokenizer.spec, 2)
        out = decoder(tokens)
        assert out.shape == (2, 1, 2, 21, 16)
        assert torch.isfinite(out).all()
    assert cells.lengths != tokenizer.cells(field, price=3.0).lengths


def test_visible_cells_are_the_tiling_of_the_smallest():
    field = flow(shape=(21, 16))
    added = create_tokenizer("amr", **SMALL).cells(field)
    seen = visible(added).validate()
    assert seen.tiling
    replaced = create_tokenizer("amr", **SMALL, mode="replace").cells(field)
    for sample in range(2):
        assert boxes(seen, sample) == boxes(replaced, sample)
    assert not visible(create_tokenizer("amr", **SMALL, mode="passing").cells(field)).tiling
