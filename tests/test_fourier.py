"""Fourier positions: golden arrays, symmetries, and the misplaced tokens of the paper's code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import adaptok
from adaptok import POSITIONS
from adaptok.cells import Cells
from adaptok.layers.positions import fourier_features, misplaced_center
from adaptok.tokens import TokenizerSpec

SPEC = TokenizerSpec(2, 1, 48, ((1, 16, 16), (1, 4, 4)))


def uniform(frames, space, size, batch=1) -> Cells:
    tokenizer = adaptok.create_tokenizer(
        "uniform", ndim=len(space), in_channels=1, dim=4, size=size
    )
    return tokenizer.cells(torch.zeros(batch, frames, 1, *space))


def test_golden_features(golden):
    units = golden("matey_units")
    ours = fourier_features(torch.from_numpy(units["fe_in"]), 24, 1e-4, 1.0)
    np.testing.assert_array_equal(ours.float().numpy(), units["fe_zxy_d24"])


def test_golden_embedding_in_two_dimensions(golden):
    """(b, t, z, row, col) of MATEY are our rows: 2 samples, 2 frames, 4 x 4 cells."""
    units = golden("matey_units")
    cells = uniform(2, (64, 64), 16, batch=2)
    place = torch.from_numpy(units["t_pos_area"]).reshape(-1, 5)
    ours = torch.cat(
        [
            cells.origin[:, :1].float(),
            torch.full((len(cells), 1), 0.5),
            cells.center[:, 1:] / 64,
            cells.volume[:, None] / 64**2,
        ],
        1,
    )
    assert torch.equal(ours, place)
    fourier = POSITIONS.create("fourier", TokenizerSpec(2, 1, 48, cells.sizes))
    names = {"time": "time_embed", "center": "pos_embed", "volume": "scale_embed"}
    fourier.load_state_dict(
        {
            f"{mine}.{kind}": torch.from_numpy(units[f"w::{theirs}.{kind}"])
            for mine, theirs in names.items()
            for kind in ("weight", "bias")
        }
    )
    out, rotate = fourier(torch.zeros(len(cells), 48), cells, cells.center)
    assert rotate is None
    expected = torch.from_numpy(units["out2d"]).reshape(-1, 48)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


def test_golden_embedding_in_three_dimensions(golden):
    """MATEY's z is our first axis."""
    units = golden("matey_units")
    place = torch.from_numpy(units["t_pos_area"]).reshape(-1, 5).double()
    expected = torch.from_numpy(units["out3d_usez"]).reshape(-1, 48)
    names = {"time_embed": 48, "pos_embed": 48, "scale_embed": 48}
    w = {k: torch.from_numpy(units[f"w::{k}.weight"]).double() for k in names}
    b = sum(torch.from_numpy(units[f"w::{k}.bias"]).double() for k in names)
    fourier = POSITIONS.create("fourier", TokenizerSpec(3, 1, 48, ((1, 4, 4, 4),)))
    assert fourier.widths == [16, 16, 16]
    axes = [fourier_features(place[:, 1 + a], 16, 1e-4, 1.0) for a in range(3)]
    ours = torch.cat(axes, 1) @ w["pos_embed"].T + b
    ours = ours + fourier_features(place[:, 0], 48, 1.0, 100.0) @ w["time_embed"].T
    ours = ours + fourier_features(place[:, 4], 48, 1e-10, 1.0) @ w["scale_embed"].T
    torch.testing.assert_close(ours.float(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_features_of_cells_by_hand(ndim):
    dim, space = 20, (16, 24, 8)[:ndim]
    tokenizer = adaptok.create_tokenizer(
        "iap", ndim=ndim, in_channels=1, dim=dim, min_size=2, max_size=8, frame_size=2
    )
    budget = {1: 10, 2: 60, 3: 200}[ndim]
    cells = tokenizer.cells(torch.rand(2, 6, 1, *space), budget=3 * budget)
    fourier = POSITIONS.create("fourier", tokenizer.spec)
    assert sum(fourier.widths) == dim
    time, place, volume = fourier.features(cells, cells.center)
    for row in (0, 5, len(cells) - 1):
        frame = int(cells.origin[row, 0]) // 2
        waves = np.logspace(0, 2, dim // 2)
        hand = [*np.sin(2 * np.pi * frame / waves), *np.cos(2 * np.pi * frame / waves)]
        np.testing.assert_allclose(time[row].numpy(), hand, atol=1e-9)
        hand = []
        for axis, width in enumerate(fourier.widths):
            waves = np.logspace(-4, 0, width // 2)
            x = float(cells.center[row, axis + 1]) / space[axis]
            hand += [*np.sin(2 * np.pi * x / waves), *np.cos(2 * np.pi * x / waves)]
        np.testing.assert_allclose(place[row].numpy(), hand, atol=1e-7)
        part = np.prod(cells.size[row, 1:].numpy() / np.array(space))
        waves = np.logspace(-10, 0, dim // 2)
        hand = [*np.sin(2 * np.pi * part / waves), *np.cos(2 * np.pi * part / waves)]
        np.testing.assert_allclose(volume[row].numpy(), hand, atol=2e-4)  # angles of 1e10


@pytest.mark.parametrize("knobs", [{"time": [1.0]}, {"space": (1.0, 0.5)}, {"volume": (0, 1)}])
def test_ranges_that_make_no_sense(knobs):
    with pytest.raises(ValueError, match=r"wavelength|must be a list"):
        POSITIONS.create("fourier", SPEC, **knobs)


@pytest.mark.parametrize(("ndim", "dim"), [(2, 7), (3, 4)])
def test_widths_that_do_not_fit(ndim, dim):
    with pytest.raises(ValueError, match="need an even dim of at least"):
        POSITIONS.create("fourier", TokenizerSpec(ndim, 1, dim, ((1,) * (ndim + 1),)))


# ---- misplaced positions


def test_golden_misplaced_positions(golden):
    paper = golden("matey_paper")
    x = torch.from_numpy(paper["x"]).transpose(0, 1)
    knobs = {"sizes": (4, 16), "gamma": 0.2, "mode": "add", "legacy_positions": True}
    tokenizer = adaptok.create_tokenizer("matey", ndim=2, in_channels=4, dim=4, **knobs)
    cells = tokenizer.cells(x)
    ours = torch.cat(
        [
            cells.origin[:, :1].float(),
            misplaced_center(cells)[:, 1:] / 64,
            cells.volume[:, None] / 64**2,
        ],
        1,
    )
    for sample in range(2):
        mask = paper["tpa_mask"][sample]
        theirs = [tuple(row) for frame in paper["tpa_pos"][sample] for row in frame[mask]]
        mine = [tuple(row) for row in ours[cells.sample == sample].tolist()]
        assert sorted(mine) == sorted(theirs)


def test_misplaced_by_hand():
    """Coarse cells 1 and 3 of 2 x 3 are refined: their fine tokens claim cells 0 and 1."""
    tokenizer = adaptok.create_tokenizer(
        "matey", ndim=2, in_channels=1, dim=4, sizes=(2, 4), gamma=0.5, legacy_positions=True
    )
    assert tokenizer.spec.position_center is misplaced_center
    field = torch.zeros(1, 2, 1, 8, 12)
    field[..., :4, 4:8] = torch.randn(4, 4)
    field[..., 4:8, :4] = field[..., :4, 4:8]
    cells = tokenizer.cells(field).validate()
    told = misplaced_center(cells)
    fine = cells.level == 1
    assert torch.equal(told[~fine], cells.center[~fine])
    first = (cells.origin[:, 1] < 4) & fine
    second = (cells.origin[:, 1] >= 4) & fine
    assert torch.equal(told[first], cells.center[first] - torch.tensor([0, 0, 4]))
    assert torch.equal(told[second], cells.center[second] + torch.tensor([0, -4, 4]))
    with pytest.raises(ValueError, match="two levels"):
        misplaced_center(uniform(1, (8, 8), 4))
