"""The Euler solver against exact solutions and symmetries."""

import math

import pytest
import torch
from torch import Tensor

from adaptok.data.synthetic import (
    EulerMultiQuadrantsOpen,
    EulerMultiQuadrantsPeriodic,
    SupernovaExplosion,
    euler,
)
from adaptok.data.synthetic.euler import advance
from adaptok.data.synthetic.noise import smooth_noise
from adaptok.data.synthetic.solver import cell_centers
from adaptok.data.synthetic.supernova_explosion_64 import sphere

SOD_LEFT, SOD_RIGHT = 0.42632, 0.26557  # exact densities beside the contact
SOD_SHOCK = 0.5 + 0.2 * 1.75216  # where the shock is at t = 0.2
AIR = 1.4


def integrate(primitive: Tensor, duration: float, dx: float, boundary, gamma=AIR) -> Tensor:
    state, left = euler.to_conserved(primitive, gamma), duration
    while left > 1e-9:
        dt = euler.stable_step(state, dx, gamma).clamp_max(left)
        state = euler.step(state, dt, dx, gamma, boundary)
        left -= dt.item()
    return euler.to_primitive(state, gamma)


def sod(n: int) -> Tensor:
    """Sod's shock tube, (1, 3, n)."""
    x = (torch.arange(n) + 0.5) / n
    left = x < 0.5
    density, pressure = torch.where(left, 1.0, 0.125), torch.where(left, 1.0, 0.1)
    return torch.stack([density, torch.zeros(n), pressure])[None]


def test_primitive_and_conserved_are_inverse():
    primitive = torch.rand(2, 5, 4, 4, 4) + 0.5
    back = euler.to_primitive(euler.to_conserved(primitive, AIR), AIR)
    torch.testing.assert_close(back, primitive)


def test_sod_has_the_exact_plateaus_and_shock():
    n = 200
    density, velocity, pressure = integrate(sod(n), 0.2, 1 / n, ("OPEN",))[0]
    assert density[120:130].mean().item() == pytest.approx(SOD_LEFT, rel=1e-3)
    assert density[150:160].mean().item() == pytest.approx(SOD_RIGHT, rel=1e-3)
    assert velocity[120:160].mean().item() == pytest.approx(0.92745, rel=1e-3)
    assert pressure[120:160].mean().item() == pytest.approx(0.30313, rel=1e-3)
    shock = (density > (SOD_RIGHT + 0.125) / 2).nonzero().max().item() + 1
    assert abs(shock / n - SOD_SHOCK) < 1.5 / n


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_is_treated_alike(axis):
    line = integrate(sod(48), 0.1, 1 / 48, ("OPEN",))[0]
    shape = [3, 3, 3]
    shape[axis] = 48
    block = torch.zeros(1, 5, *shape)
    tube = sod(48)[0]
    where = [None] * 3
    where[axis] = slice(None)
    for source, target in ((0, 0), (1, 1 + axis), (2, 4)):
        block[0, target] = tube[source][tuple(where)]
    # as many steps as in one dimension, so that the results are the same numbers
    state, left = euler.to_conserved(block, AIR), 0.1
    flat = euler.to_conserved(sod(48), AIR)
    while left > 1e-9:
        dt = euler.stable_step(flat, 1 / 48, AIR).clamp_max(left)
        flat = euler.step(flat, dt, 1 / 48, AIR, ("OPEN",))
        state = euler.step(state, dt, 1 / 48, AIR, ("OPEN",) * 3)
        left -= dt.item()
    result = euler.to_primitive(state, AIR)[0].movedim(1 + axis, -1)[:, 1, 1]
    torch.testing.assert_close(result[[0, 1 + axis, 4]], line, rtol=1e-4, atol=1e-5)
    across = [1 + a for a in range(3) if a != axis]
    assert result[across].abs().max() == 0


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_mass_momentum_and_energy_are_conserved_when_periodic(ndim):
    n = 16 if ndim < 3 else 10
    primitive = torch.rand(2, 2 + ndim, *[n] * ndim) + 0.5
    primitive[:, 1:-1] -= 1.0
    state = euler.to_conserved(primitive, AIR)
    before = state.double().flatten(2).sum(-1)
    for _ in range(30):
        dt = euler.stable_step(state, 1 / n, AIR)
        state = euler.step(state, dt, 1 / n, AIR, ("PERIODIC",) * ndim)
    after = state.double().flatten(2).sum(-1)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6 * before.abs().max().item())
    assert (state - euler.to_conserved(primitive, AIR)).abs().max() > 0.1  # something happened


def test_a_smooth_wave_is_carried_with_second_order():
    def error(n: int) -> float:
        x = (torch.arange(n) + 0.5) / n
        density = 1 + 0.2 * (2 * math.pi * x).sin()
        start = torch.stack([density, torch.ones(n), torch.ones(n)])[None]
        return (integrate(start, 1.0, 1 / n, ("PERIODIC",))[0, 0] - density).abs().mean().item()

    assert error(32) / error(64) > 3


def test_a_gas_at_rest_with_uniform_pressure_stays_nearly_at_rest():
    noise = smooth_noise((16, 16), 0.1, torch.Generator().manual_seed(0))
    primitive = torch.zeros(1, 4, 16, 16)
    primitive[:, 0], primitive[:, -1] = noise.exp(), 0.1
    after = integrate(primitive, 0.1, 1 / 16, ("OPEN", "OPEN"))
    assert after[:, 1:-1].abs().max() < 1e-5
    torch.testing.assert_close(after[:, -1], primitive[:, -1], rtol=1e-4, atol=0)


def test_a_symmetric_blast_stays_symmetric():
    n = 12
    hot = sphere((n,) * 3, torch.full((3,), 0.5), 0.2)
    primitive = torch.cat([torch.ones(1, n, n, n), torch.zeros(3, n, n, n), (0.1 + 10 * hot)[None]])
    gas = euler.to_conserved(primitive[None], 5 / 3)
    after = advance(gas, 0.08, 1 / n, 5 / 3, ("OPEN",) * 3)[0]
    assert after[1:4].abs().max() > 0.1
    for axis in range(3):
        sign = torch.ones(5)
        sign[1 + axis] = -1
        mirrored = after.flip(1 + axis) * sign[:, None, None, None]
        torch.testing.assert_close(mirrored, after, rtol=1e-4, atol=1e-5)
    turned = after.permute(0, 2, 3, 1)[[0, 2, 3, 1, 4]]
    torch.testing.assert_close(turned, after, rtol=1e-4, atol=1e-5)


def test_open_ends_let_a_blast_out():
    n = 10
    hot = sphere((n, n), torch.full((2,), 0.5), 0.2)
    primitive = torch.cat([torch.ones(1, n, n), torch.zeros(2, n, n), (0.1 + 10 * hot)[None]])
    gas = euler.to_conserved(primitive[None], 5 / 3)
    late = advance(gas, 2.0, 1 / n, 5 / 3, ("OPEN", "OPEN"))
    assert late[:, -1].sum() < 0.5 * gas[:, -1].sum()
    assert late.isfinite().all()


def test_values_near_the_smallest_float_do_no_harm():
    # fields fade through every magnitude ahead of a front; the limiter must not divide 0 by 0
    tiny = torch.tensor([0.0, 0.0, -9.939953899479805e-31, -euler.TINY, -euler.TINY, -euler.TINY])
    left, right = euler._faces(tiny.expand(1, 3, 6))
    assert left.isfinite().all()
    assert right.isfinite().all()


def test_an_unknown_boundary_is_refused():
    with pytest.raises(ValueError, match="'OPEN' or 'PERIODIC'"):
        euler.step(torch.ones(1, 3, 8), torch.full((1,), 0.1), 1.0, AIR, ("WALL",))


def test_the_density_is_the_same_gas_at_every_resolution():
    coarse = smooth_noise((8, 8, 8), 0.1, torch.Generator().manual_seed(3))
    fine = smooth_noise((24, 24, 24), 0.1, torch.Generator().manual_seed(3))
    # centres of the coarse cells are centres of every third fine cell
    torch.testing.assert_close(coarse, fine[1::3, 1::3, 1::3], rtol=1e-3, atol=1e-4)
    many = torch.stack(
        [smooth_noise((12, 12), 0.1, torch.Generator().manual_seed(i)) for i in range(200)]
    )
    assert many.var().item() == pytest.approx(1, abs=0.15)


def test_a_trajectory_depends_on_seed_split_and_index_only():
    solver = SupernovaExplosion(resolution=8, frames=2)
    both = solver.run(0, "train", range(2))
    for index in range(2):
        alone = solver.run(0, "train", range(index, index + 1))
        for order, name in ((0, "density"), (0, "pressure"), (1, "velocity")):
            one, other = both.fields[order][name][index : index + 1], alone.fields[order][name]
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.equal(
        both.fields[0]["density"], solver.run(1, "train", range(2)).fields[0]["density"]
    )


@pytest.mark.parametrize("solver", [EulerMultiQuadrantsPeriodic, EulerMultiQuadrantsOpen])
def test_quadrants_are_constant_and_their_fields_fit(solver):
    chosen = solver(resolution=32, frames=3, gamma=[1.4, 1.6], start=0.0, frame_dt=0.1)
    state = chosen.initial(torch.Generator().manual_seed(1))["primitive"]
    assert 4 <= len(state.flatten(1).T.unique(dim=0)) <= 16
    data = chosen.run(0, "train", range(1, 5, 2))
    assert data.scalars == {"gamma": 1.6}
    energy, density, pressure = (data.fields[0][k] for k in ("energy", "density", "pressure"))
    momentum = data.fields[1]["momentum"]
    kinetic = momentum.square().sum(-1) / (2 * density)
    torch.testing.assert_close(pressure, 0.6 * (energy - kinetic), rtol=1e-4, atol=1e-5)
    sums = density.double().sum((-2, -1))
    if solver is EulerMultiQuadrantsPeriodic:
        torch.testing.assert_close(sums[:, -1], sums[:, 0], rtol=1e-6, atol=0)
    else:
        assert (sums[:, -1] - sums[:, 0]).abs().max() > 1e-3 * sums.max()
    assert (density[:, -1] - density[:, 0]).abs().max() > 0.05


def test_two_halves_are_sods_tube():
    solver = EulerMultiQuadrantsOpen(resolution=64, frames=2, start=0.0, frame_dt=0.2, gamma=[1.4])
    left = (cell_centers(64, 0.0, 1.0) < 0.5)[:, None].expand(64, 64)
    zero = torch.zeros(64, 64)
    primitive = torch.stack(
        [torch.where(left, 1.0, 0.125), zero, zero, torch.where(left, 1.0, 0.1)]
    )
    data = solver.simulate({"primitive": primitive[None]}, {"gamma": 1.4})
    density, pressure = (data.fields[0][name][0, 1, :, 7] for name in ("density", "pressure"))
    assert density[50:52].mean().item() == pytest.approx(0.26557, rel=0.02)
    assert pressure[42:50].mean().item() == pytest.approx(0.30313, rel=0.01)
    torch.testing.assert_close(density, data.fields[0]["density"][0, 1, :, 50])


def test_bad_quadrants_are_refused():
    with pytest.raises(ValueError, match="each a finite number above 1"):
        EulerMultiQuadrantsOpen(gamma=[1.0])
    with pytest.raises(ValueError, match="pieces must be between 2 and"):
        EulerMultiQuadrantsPeriodic(pieces=1)
