"""The acoustic solver against exact properties of ``p_t = -K div u``, ``rho u_t = -grad p``."""

import math

import pytest
import torch
from torch import Tensor

from adaptok.data.synthetic import AcousticScatteringMaze
from adaptok.data.synthetic.acoustic_scattering_maze import (
    MODULUS,
    PATH_DENSITY,
    WALL_DENSITY,
    Leapfrog,
    between,
    centered,
    random_maze,
    stable_step,
)

SPEED = math.sqrt(MODULUS / PATH_DENSITY)
IMPEDANCE = math.sqrt(MODULUS * PATH_DENSITY)
N, DX = 128, 1 / 128
CLOSED = ("WALL", "WALL")


def pulse(axis: int, centre: float = 0.5, width: float = 0.04, across: int = 6) -> Tensor:
    """A plane pulse that varies along `axis`; (1, n, across) or (1, across, n)."""
    x = (torch.arange(N) + 0.5) * DX
    line = (-((x - centre) ** 2) / (2 * width**2)).exp()
    plane = line[:, None].expand(N, across)
    return (plane if axis == 1 else plane.T)[None].clone()


def still(pressure: Tensor) -> list[Tensor]:
    return [torch.zeros_like(pressure.narrow(a, 1, pressure.shape[a] - 1)) for a in (1, 2)]


def integrate(pressure, density, duration, boundary):
    steps = math.ceil(duration / (0.9 * stable_step(density, DX)))
    scheme = Leapfrog(density, DX, duration / steps, boundary)
    return scheme.run(pressure, still(pressure), steps)


def energy(scheme: Leapfrog, pressure: Tensor, velocity: list[Tensor], density: Tensor) -> float:
    """What the scheme conserves; kinetic energy from velocities half a step before and after."""
    before = scheme.kick(pressure, velocity, -0.5)
    after = scheme.kick(pressure, velocity, 0.5)
    total = pressure.double().square().sum() / (2 * MODULUS)
    for axis, (one, other) in enumerate(zip(before, after, strict=True), start=1):
        total += (between(density, axis).double() * one * other).sum() / 2
    return total.item()


@pytest.mark.parametrize("axis", [1, 2])
def test_a_pulse_travels_at_the_speed_of_sound(axis):
    start = pulse(axis, 0.3)
    density = torch.full_like(start, PATH_DENSITY)
    time = 0.4
    pressure, velocity = integrate(start, density, time, CLOSED)
    line = pressure[0].movedim(axis - 1, 0)[:, 2]
    right = line[N // 2 :]
    expected = 0.3 + SPEED * time
    assert abs((right.argmax().item() + N // 2 + 0.5) * DX - expected) <= DX
    assert right.max().item() == pytest.approx(0.5, rel=0.05)  # half of it went the other way
    # a wave that travels to the right: u = p / Z
    u = centered(velocity, pressure, density, CLOSED)[0, ..., axis - 1].movedim(axis - 1, 0)[:, 2]
    torch.testing.assert_close(u[N // 2 :], right / IMPEDANCE, rtol=0, atol=0.01)


def test_a_wall_end_reflects_a_pulse_with_its_sign():
    start = pulse(1, 0.2)
    pressure, _ = integrate(start, torch.full_like(start, PATH_DENSITY), 0.5 / SPEED, CLOSED)
    # the left half ran 0.2 to the end and 0.3 back, the right half is at 0.7
    at = int(0.3 / DX)
    assert pressure[0, at, 0].item() == pytest.approx(0.5, abs=0.05)


def test_energy_is_conserved_in_a_closed_box_with_a_maze():
    walls = random_maze(32, 4, torch.Generator().manual_seed(1))[None]
    density = torch.where(walls, WALL_DENSITY, PATH_DENSITY)
    pressure = torch.randn(1, 32, 32).masked_fill(walls, 0)
    scheme = Leapfrog(density, DX, 0.9 * stable_step(density, DX), CLOSED)
    velocity = still(pressure)
    before = energy(scheme, pressure, velocity, density)
    for _ in range(20):
        pressure, velocity = scheme.run(pressure, velocity, 10)
        assert energy(scheme, pressure, velocity, density) == pytest.approx(before, rel=1e-5)


def test_energy_never_grows_with_open_ends():
    walls = random_maze(32, 4, torch.Generator().manual_seed(2))[None]
    density = torch.where(walls, WALL_DENSITY, PATH_DENSITY)
    pressure = torch.randn(1, 32, 32).masked_fill(walls, 0)
    scheme = Leapfrog(density, DX, 0.9 * stable_step(density, DX), ("WALL", "OPEN"))
    velocity, last = still(pressure), math.inf
    for _ in range(100):
        pressure, velocity = scheme.run(pressure, velocity, 1)
        now = energy(scheme, pressure, velocity, density)
        assert now <= last * (1 + 1e-6)
        last = now


@pytest.mark.parametrize("axis", [1, 2])
def test_a_plane_wave_leaves_through_open_ends(axis):
    start = pulse(axis)
    density = torch.full_like(start, PATH_DENSITY)
    boundary = ("OPEN", "WALL") if axis == 1 else ("WALL", "OPEN")
    pressure, _ = integrate(start, density, 1.0 / SPEED, boundary)
    assert pressure.abs().max() < 0.01


def test_walls_let_nothing_through():
    start = pulse(1, 0.3)
    density = torch.full_like(start, PATH_DENSITY)
    density[:, N // 2 :] = WALL_DENSITY
    pressure, velocity = integrate(start, density, 0.3 / SPEED, CLOSED)  # 0.1 after it hit the wall
    u = centered(velocity, pressure, density, CLOSED)[..., 0]
    assert pressure[0, int(0.4 / DX), 0].item() == pytest.approx(0.5, abs=0.05)  # reflected
    assert pressure[:, N // 2 + 1 :].abs().max() < 1e-3  # one cell behind the surface
    assert u[:, N // 2 + 1 :].abs().max() < 1e-4


@pytest.mark.parametrize(("resolution", "nodes"), [(64, 8), (50, 7), (16, 4), (24, 3)])
def test_every_corridor_of_a_maze_can_be_reached(resolution, nodes):
    walls = random_maze(resolution, nodes, torch.Generator().manual_seed(0))
    paths = ~walls
    reached = torch.zeros_like(paths)
    reached[tuple(paths.nonzero()[0])] = True
    for _ in range(resolution**2):
        spread = reached.clone()
        spread[1:] |= reached[:-1]
        spread[:-1] |= reached[1:]
        spread[:, 1:] |= reached[:, :-1]
        spread[:, :-1] |= reached[:, 1:]
        spread &= paths
        if (spread == reached).all():
            break
        reached = spread
    assert (reached == paths).all()
    assert 0.02 < walls.float().mean() < 0.5


def test_a_trajectory_depends_on_seed_split_and_index_only():
    solver = AcousticScatteringMaze(resolution=16, nodes=4, frames=3)
    both = solver.run(0, "train", range(2))
    alone = solver.run(0, "train", range(1, 2))
    for name, order in (("pressure", 0), ("velocity", 1)):
        torch.testing.assert_close(both.fields[order][name][1:], alone.fields[order][name])
    density = both.constants[0]["density"]
    assert not torch.equal(density[0], density[1])
    for other in (solver.run(1, "train", range(2)), solver.run(0, "test", range(2))):
        assert not torch.equal(density, other.constants[0]["density"])


def test_frames_are_a_function_of_time_not_of_the_recording():
    coarse = AcousticScatteringMaze(resolution=32, start=0.03, frames=3, frame_dt=0.06)
    fine = AcousticScatteringMaze(resolution=32, start=0.03, frames=5, frame_dt=0.03)
    one = coarse.run(0, "train", range(1)).fields[0]["pressure"]
    other = fine.run(0, "train", range(1)).fields[0]["pressure"]
    torch.testing.assert_close(one, other[:, ::2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"nodes": 40}, "nodes must be between 2 and resolution // 4 = 16, got 40"),
        ({"pulses": 0}, "pulses must be a whole number"),
        ({"frames": 1}, "frames must be a whole number of at least 2 .*, got 1"),
        ({"train": 2.5}, "train must be a whole number"),
        ({"frame_dt": 0.0}, "frame_dt must be a finite number above 0"),
        ({"start": "now"}, "start must be a finite number .* got 'now'"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        AcousticScatteringMaze(**knobs)
