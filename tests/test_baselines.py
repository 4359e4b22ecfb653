"""Baselines: shapes, boundaries, and that they are models like any other."""

from __future__ import annotations

import json
from typing import Any

import pytest
import small_runs
import torch

from adaptok.cli import main
from adaptok.models.baselines import BASELINES, FNO, UNet, create_baseline
from adaptok.models.baselines.fno import FourierLayer

SMALL = {
    "fno": {"name": "fno", "modes": 3, "width": 4, "depth": 2},
    "unet": {"name": "unet", "width": 4, "levels": 2},
    "persistence": {"name": "persistence"},
    "lower_resolution": {
        "name": "lower_resolution",
        "base": {"name": "unet", "width": 4, "levels": 1},
    },
    "well": {"name": "well", "architecture": "dilated_resnet", "width": 4},
}
SHAPES = {1: (17,), 2: (16, 11), 3: (8, 9, 5)}


def periodic(ndim):
    return [[2, 2]] * ndim


@pytest.mark.parametrize("ndim", SHAPES)
@pytest.mark.parametrize("name", ["fno", "unet", "persistence", "lower_resolution"])
def test_every_dimension_and_grid(name, ndim):
    shape = SHAPES[ndim]
    boundary = [[2, 2], *[[0, 1]] * (ndim - 1)]
    options = {"ndim": ndim, "in_channels": 2, "history": 3, "constant_channels": 1}
    model = create_baseline(SMALL[name], boundary=boundary, **options)
    field, constants = torch.randn(2, 3, 2, *shape), torch.randn(2, 1, *shape)
    assert model(field, constants=constants).shape == (2, 1, 2, *shape)
    assert model.rollout(field, 3, constants=constants).shape == (2, 3, 2, *shape)


def test_every_baseline_is_tested_here():
    assert set(SMALL) == set(BASELINES.names())


def test_lower_resolution_sees_means_over_blocks_and_interpolates():
    model = create_baseline(SMALL["lower_resolution"], ndim=2, in_channels=1).eval()
    field = torch.randn(1, 1, 1, 8, 8)
    means = field.unflatten(-2, (4, 2)).unflatten(-1, (4, 2)).mean((-3, -1))
    blocks = means.repeat_interleave(2, -1).repeat_interleave(2, -2)
    network: Any = model.network
    torch.testing.assert_close(network(blocks[:, 0]), network(field[:, 0]))
    coarse = network.base(means[:, 0])
    middle = network(field[:, 0])[..., 1:-1, 1:-1].unflatten(-2, (3, 2)).unflatten(-1, (3, 2))
    pairs = coarse.unfold(-2, 2, 1).unfold(-2, 2, 1).mean((-2, -1))
    torch.testing.assert_close(middle.mean((-3, -1)), pairs)  # between four coarse points
    with pytest.raises(ValueError, match="predict=delta"):
        create_baseline("lower_resolution", ndim=2, in_channels=1, predict="state")


def test_fourier_layer_is_a_sum_over_wavenumbers():
    """Against the definition, wave by wave; off the axis each stands for its conjugate too."""
    layer = FourierLayer(2, 2, 2)
    x = torch.randn(1, 2, 6, 7)
    weight = torch.view_as_complex(layer.weight)  # wavenumbers 0, 1, -2, -1 along the first axis
    row, column = torch.arange(6)[:, None] / 6, torch.arange(7) / 7
    expected = layer.pointwise(x)
    for kx in (-2, -1, 0, 1):
        for ky in (0, 1):
            wave = torch.exp(2j * torch.pi * (kx * row + ky * column))
            coefficient = (x * wave.conj()).sum((-2, -1)) / 42
            amplitude = torch.einsum("bi,io->bo", coefficient, weight[:, :, kx, ky])
            expected = expected + (1 + ky) * (amplitude[..., None, None] * wave).real
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["fno", "unet"])
def test_periodic_networks_commute_with_shifts(name):
    model = create_baseline(SMALL[name], ndim=2, in_channels=2, boundary=periodic(2)).double()
    field = torch.randn(1, 1, 2, 16, 8, dtype=torch.float64)
    moved = model(field.roll((8, 4), (-2, -1)))  # by whole cells of the coarsest grid
    expected = model(field).roll((8, 4), (-2, -1))
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fno", "unet"])
def test_open_ends_do_not_see_one_another(name):
    """A change at one end reaches the other end of a periodic axis, and less of an open one."""
    torch.manual_seed(0)
    changes = []
    for boundary in (periodic(1), [[1, 1]]):
        torch.manual_seed(0)
        knobs = SMALL[name] | ({"levels": 0} if name == "unet" else {"padding": 1.0})
        options = {"ndim": 1, "in_channels": 1, "boundary": boundary, "normalise": "none"}
        model = create_baseline(knobs, predict="state", **options)
        field = torch.zeros(1, 1, 1, 32)
        other = field.clone()
        other[..., -1] = 5
        changes.append((model(other) - model(field))[..., 0].abs().item())
    assert changes[0] > 3 * changes[1]


def test_persistence_is_the_last_frame():
    model = create_baseline("persistence", ndim=2, in_channels=2, history=2)
    field = torch.randn(3, 2, 2, 5, 4)
    assert torch.equal(model(field), field[:, -1:])
    assert not list(model.parameters())
    with pytest.raises(ValueError, match="predict=delta, not state"):
        create_baseline("persistence", ndim=2, in_channels=2, predict="state")


def test_the_wells_own_model():
    model = create_baseline(SMALL["well"], ndim=2, in_channels=2, shape=(16, 16))
    assert model(torch.randn(2, 1, 2, 16, 16)).shape == (2, 1, 2, 16, 16)
    with pytest.raises(ValueError, match="give create_baseline a shape"):
        create_baseline("well", ndim=2, in_channels=2)
    with pytest.raises(ValueError, match="architecture must be one of"):
        create_baseline({"name": "well", "architecture": "x"}, ndim=2, in_channels=2, shape=(8, 8))


def test_one_that_is_not_installed_says_so(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "neuralop", None)
    knobs = {"name": "well", "architecture": "fno"}
    with pytest.raises(ValueError, match="the Well's fno is not installed here"):
        create_baseline(knobs, ndim=2, in_channels=2, shape=(16, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "fon"}, "did you mean 'fno'"),
        ({"baseline": {"name": "fno", "with": 3}}, "did you mean 'width'"),
        (
            {"baseline": {"name": "fno", "modes": 0}},
            "modes must be a whole number",
        ),
        ({"baseline": {"name": "unet", "width": 0}}, "width must be a whole number of at least 1"),
        ({"ndim": 4}, "ndim must be a whole number .* at most 3"),
        ({"boundary": [[2, 2]]}, r"boundary must be \(2, 2\)"),
        ({"history": 0}, "history must be a whole number of at least 1"),
        ({"predict": "dleta"}, "predict must be one of"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ValueError, match=message):
        create_baseline(**({"baseline": "fno", "ndim": 2, "in_channels": 1} | change))


def test_a_control_is_refused():
    model = create_baseline(SMALL["fno"], ndim=1, in_channels=1)
    with pytest.raises(ValueError, match="no controls, got budget"):
        model(torch.randn(1, 1, 1, 8), budget=3)


def test_half_precision_runs():
    for network in (FNO(1, 1, 1, (True,), width=8, modes=2), UNet(1, 1, 1, (True,), width=8)):
        with torch.autocast("cpu", torch.bfloat16):
            assert network(torch.randn(1, 1, 16)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fno", "unet", "persistence"])
def test_the_same_commands_and_tables(name, tmp_path, capsys):
    knobs = [f"model.{k}={v}" for k, v in SMALL[name].items() if k != "name"]
    options = [f"model={name}", *knobs, f"hydra.run.dir={tmp_path / 'run'}"]
    run = ["test.steps=2"] if name == "persistence" else small_runs.RUN
    assert main(["train", *small_runs.data(), *run, *options]) == 0
    trained = json.loads((tmp_path / "run" / "metrics.json").read_text())
    row = trained["settings"][0]
    assert row["tokens"] is None
    if name == "persistence":
        assert row["vrmse"] == trained["persistence"]["vrmse"]
        assert row["rollout"]["mean"] == trained["persistence"]["rollout"]["mean"]
    folder = f"hydra.run.dir={tmp_path / 'eval'}"
    assert main(["eval", f"ckpt={tmp_path / 'run'}", "steps=2", "device=cpu", folder]) == 0
    again = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert again["settings"][0]["vrmse"] == row["vrmse"]
    assert not (tmp_path / "eval" / "pictures" / "cells.png").exists()
    capsys.readouterr()
