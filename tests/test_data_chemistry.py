"""Gray-Scott and active matter against exact solutions."""

import math

import pytest
import torch

from adaptok.data.synthetic import ActiveMatter, GrayScott
from adaptok.data.synthetic.active_matter import ROTATION, TABLE, TRANSLATION, Rods, fourth_moments
from adaptok.data.synthetic.gray_scott_reaction_diffusion import DIFFUSION, PATTERNS, advance
from adaptok.data.synthetic.solver import cell_centers

TURN = 2 * math.pi


def test_a_homogeneous_mixture_follows_its_ordinary_equation():
    feed, kill = PATTERNS["spirals"]
    state = torch.tensor([0.6, 0.3])
    both = advance(state.view(1, 2, 1, 1).expand(1, 2, 8, 8), 60.0, 1.0, feed, kill)[0]
    a, b, dt = 0.6, 0.3, 0.001
    for _ in range(60_000):  # Heun, with steps so small that its error is below that of float32

        def rate(a, b):
            return -a * b * b + feed * (1 - a), a * b * b - (feed + kill) * b

        da, db = rate(a, b)
        ea, eb = rate(a + dt * da, b + dt * db)
        a, b = a + dt / 2 * (da + ea), b + dt / 2 * (db + eb)
    for value, expected in zip(both, (a, b), strict=True):
        torch.testing.assert_close(value, torch.full((8, 8), expected), rtol=5e-5, atol=1e-6)


def test_alone_the_food_is_replenished_exactly():
    both = torch.stack([torch.full((8, 8), 0.2), torch.zeros(8, 8)])[None]
    after = advance(both, 50.0, 1.0, 0.03, 0.06)[0]
    expected = 1 - 0.8 * math.exp(-0.03 * 50)
    torch.testing.assert_close(after[0], torch.full((8, 8), expected), rtol=1e-5, atol=0)
    assert after[1].abs().max() == 0


def test_without_reaction_a_wave_decays_by_diffusion():
    x = cell_centers(16, 0.0, 1.0)[:, None].expand(16, 16)
    wave = (2 * TURN * x).cos()
    for which, rate in enumerate(DIFFUSION):
        both = torch.zeros(1, 2, 16, 16)
        both[0, which] = wave
        # no food, no feed: A B² vanishes for one chemical alone
        after = advance(both, 500.0, 1.0, 0.0, 0.0)[0, which]
        expected = wave * math.exp(-rate * (2 * TURN) ** 2 * 500)
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)


def test_splitting_is_of_second_order(monkeypatch):
    from adaptok.data.synthetic import gray_scott_reaction_diffusion as module

    start = GrayScott(resolution=16).initial(torch.Generator().manual_seed(0))["concentration"]

    def run(step: float):
        monkeypatch.setattr(module, "STEP", step)
        return advance(start[None].double(), 32.0, 0.25, 0.03, 0.062)  # small: diffusion matters

    finest = run(0.125)
    error = [(run(step) - finest).abs().max().item() for step in (2.0, 1.0)]
    assert 3.4 < error[0] / error[1] < 4.6
    assert error[1] < 1e-3


def test_gray_scott_settings_and_state():
    solver = GrayScott(resolution=16, patterns=["spots", "maze"])
    assert solver.settings == [{"F": 0.03, "k": 0.062}, {"F": 0.029, "k": 0.057}]
    state = solver.initial(torch.Generator().manual_seed(0))["concentration"]
    assert state.min() >= 0
    assert state.max() <= 1
    assert state[1].max() > 0.2
    with pytest.raises(ValueError, match="patterns are of gliders"):
        GrayScott(patterns=["stripes"])
    with pytest.raises(ValueError, match="clusters must be a whole number of at least 1"):
        GrayScott(clusters=0)


def bessel(order: int, k: torch.Tensor) -> torch.Tensor:
    """exp(-k) I_order(k) by its integral."""
    angle = (torch.arange(4000, dtype=torch.float64) + 0.5) * math.pi / 4000
    return ((angle.cos() - 1) * k[:, None]).exp().mul((order * angle).cos()).mean(1)


def test_the_closure_is_binghams():
    k = torch.tensor([0.01, 0.3, 1.0, 4.0, 20.0, 100.0], dtype=torch.float64)
    order = bessel(1, k) / bessel(0, k)
    expected = bessel(2, k) / bessel(0, k) / order.square()
    place = order.square() * TABLE
    low = place.long()
    table = fourth_moments()
    torch.testing.assert_close(
        torch.lerp(table[low], table[low + 1], place - low), expected, rtol=1e-4, atol=0
    )
    assert len(table) == TABLE + 1
    assert (table.diff() > 0).all()


def uniform(order: float, alpha: float, zeta: float) -> Rods:
    moments = torch.zeros(1, 3, 8, 8)
    moments[:, 0], moments[:, 1] = 1.0, order
    return Rods(moments, 10.0, alpha, zeta)


@pytest.mark.parametrize("zeta", [0.5, 2.0])
def test_without_flow_the_order_is_that_of_maier_and_saupe(zeta):
    rods = uniform(0.4, 0.0, zeta)
    rods.advance(40.0)
    order = rods.modes.grid(rods.state)[0, 1]
    # in equilibrium s = I1(k) / I0(k) with k = zeta s / (2 d_R)
    k = torch.tensor([zeta * order.mean().item() / (2 * ROTATION)], dtype=torch.float64)
    expected = (bessel(1, k) / bessel(0, k)).item()
    assert order.mean().item() == pytest.approx(expected, rel=2e-3)
    assert expected > 0.5
    assert order.std() < 1e-5


def test_weak_alignment_leaves_no_order():
    rods = uniform(0.4, 0.0, 3 * ROTATION)  # the transition is at 4
    rods.advance(200.0)
    assert rods.modes.grid(rods.state)[0, 1].abs().max() < 1e-3


@pytest.mark.parametrize(("alpha", "zeta"), [(-2.0, 0.5), (-4.0, 0.0), (2.0, 0.5)])
def test_small_waves_grow_at_the_rate_of_linear_theory(alpha, zeta):
    side = 10.0
    x = cell_centers(16, 0.0, side)[:, None].expand(16, 16)
    moments = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    moments[:, 0] = 1.0
    moments[:, 2] = 1e-5 * (TURN * x / side).cos()  # D_xy: a wave that shears
    rods = Rods(moments, side, alpha, zeta)
    rods.advance(2.0)
    size = rods.modes.grid(rods.state)[0, 2].norm() / moments[0, 2].norm()
    rate = -alpha / 4 + zeta - 4 * ROTATION - TRANSLATION * (TURN / side) ** 2
    assert math.log(size.item()) / 2 == pytest.approx(rate, rel=1e-3)


@pytest.fixture(scope="module")
def stirred():
    solver = ActiveMatter(resolution=32, frames=2, start=2.0, frame_dt=0.5, side=5.0)
    return solver.run(0, "train", range(0, 8, 4))


def slope(field: torch.Tensor, axis: int, length: float) -> torch.Tensor:
    n = field.shape[axis]
    k = torch.fft.fftfreq(n, d=length / n, dtype=torch.float64) * TURN
    k[n // 2] = 0
    shape = [1, 1]
    shape[axis] = n
    modes = 1j * k.view(shape) * torch.fft.fft(field.double(), dim=axis)
    return torch.fft.ifft(modes, dim=axis).real


def test_fields_of_active_matter_fit_each_other(stirred):
    concentration = stirred.fields[0]["concentration"]
    velocity, order, strain = (
        stirred.fields[1]["velocity"],
        stirred.fields[2]["D"],
        stirred.fields[2]["E"],
    )
    torch.testing.assert_close(order.diagonal(dim1=-2, dim2=-1).sum(-1), concentration)
    torch.testing.assert_close(order, order.mT)
    assert torch.linalg.eigvalsh(order).min() > -1e-3  # second moments are positive
    u, v = velocity[0, 1].unbind(-1)
    (ux, uy), (vx, vy) = ([slope(w, a, 5.0) for a in (-2, -1)] for w in (u, v))
    expected = torch.stack(
        [torch.stack([ux, (uy + vx) / 2], -1), torch.stack([(uy + vx) / 2, vy], -1)], -2
    )
    torch.testing.assert_close(strain[0, 1].double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(ux, -vy, rtol=0, atol=1e-5)


def test_the_flow_solves_stokes_equation(stirred):
    """-Laplace u + grad q = alpha div D, seen through its curl."""
    velocity, order = stirred.fields[1]["velocity"][0, 1], stirred.fields[2]["D"][0, 1]
    alpha = stirred.scalars["alpha"]
    assert alpha == -1.0
    u, v = velocity.unbind(-1)
    vorticity = slope(v, -2, 5.0) - slope(u, -1, 5.0)
    laplacian = sum(slope(slope(vorticity, a, 5.0), a, 5.0) for a in (-2, -1))
    force = [slope(order[..., i, 0], -2, 5.0) + slope(order[..., i, 1], -1, 5.0) for i in (0, 1)]
    curl = slope(force[1], -2, 5.0) - slope(force[0], -1, 5.0)
    size = curl.abs().max().item()
    assert size > 0.1
    torch.testing.assert_close(-laplacian, alpha * curl, rtol=0, atol=2e-3 * size)


def test_rods_are_conserved_and_stay_turned_together(stirred):
    moments = 0.2 * torch.rand(1, 3, 16, 16)
    moments[:, 0] += 1.0
    rods = Rods(moments, 5.0, -1.0, 1.0)
    before = rods.modes.grid(rods.state)[:, 0].mean()
    rods.advance(1.0)
    torch.testing.assert_close(rods.modes.grid(rods.state)[:, 0].mean(), before)
    assert stirred.scalars == {"L": 5.0, "zeta": 1.0, "alpha": -1.0}
    with pytest.raises(ValueError, match="side must be a finite number above 0"):
        ActiveMatter(side=0.0)
    with pytest.raises(ValueError, match="zeta must be a list"):
        ActiveMatter(zeta=[])
