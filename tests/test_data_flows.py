"""The spectral solvers against exact solutions: shear flow and Rayleigh-Benard convection."""

import math

import pytest
import torch
from torch import Tensor

from adaptok.data.synthetic import RayleighBenard, ShearFlow
from adaptok.data.synthetic.noise import smooth_noise
from adaptok.data.synthetic.rayleigh_benard import Convection
from adaptok.data.synthetic.shear_flow import Advection
from adaptok.data.synthetic.solver import cell_centers
from adaptok.data.synthetic.spectral import Modes, runge_kutta, steps_for

TURN = 2 * math.pi
CRITICAL = 27 * math.pi**4 / 4  # 657.5, Rayleigh's number for free-slip walls


def square(n: int) -> tuple[Tensor, Tensor]:
    x = cell_centers(n, 0.0, TURN)
    return x[:, None].expand(n, n), x[None, :].expand(n, n)


def derivative(field: Tensor, axis: int, length: float) -> Tensor:
    """Spectral derivative of (..., x, y), in double precision and another way than the solver's."""
    n = field.shape[axis]
    k = torch.fft.fftfreq(n, d=length / n, dtype=torch.float64) * TURN
    k[n // 2] = 0
    shape = [1, 1]
    shape[axis] = n
    modes = 1j * k.view(shape) * torch.fft.fft(field.double(), dim=axis)
    return torch.fft.ifft(modes, dim=axis).real


def test_modes_differentiate_and_invert():
    modes = Modes((12, 16), (2.0, 3.0))
    x, y = cell_centers(12, 0.0, 2.0)[:, None], cell_centers(16, 0.0, 3.0)[None, :]
    wave = (TURN * x / 2).sin() * (2 * TURN * y / 3).cos()
    k_x, k_y = TURN / 2, 2 * TURN / 3
    for factor, expected in (
        (modes.dx, k_x * (TURN * x / 2).cos() * (2 * TURN * y / 3).cos()),
        (modes.dy, -k_y * (TURN * x / 2).sin() * (2 * TURN * y / 3).sin()),
        (modes.inverse, wave / (k_x**2 + k_y**2)),
    ):
        torch.testing.assert_close(modes.grid(factor * modes.of(wave)), expected, rtol=0, atol=1e-5)
    field = torch.randn(3, 12, 16)
    torch.testing.assert_close(modes.grid(modes.of(field)), field)
    with pytest.raises(ValueError, match="even number of points"):
        Modes((12, 15), (1.0, 1.0))


def test_products_of_kept_modes_do_not_alias():
    coarse, fine = Modes((12, 12), (1.0, 1.0)), Modes((48, 48), (1.0, 1.0))
    kept = coarse.of(torch.randn(12, 12)) * coarse.keep
    padded = torch.zeros(48, 25, dtype=kept.dtype)
    padded[:6, :7], padded[-6:, :7] = kept[:6], kept[-6:]
    product = coarse.of(coarse.grid(kept).square()) * coarse.keep
    exact = fine.of((16 * fine.grid(padded)).square()) / 16
    torch.testing.assert_close(product[:4, :4], exact[:4, :4], rtol=1e-4, atol=1e-4)


def test_runge_kutta_is_exact_for_decay_and_of_fourth_order():
    one = torch.ones(1, dtype=torch.complex128)
    decay = torch.tensor([3.0], dtype=torch.float64)
    done = runge_kutta(one, torch.zeros_like, decay, 0.5, 2)
    torch.testing.assert_close(done, one * math.exp(-3))

    def error(steps: int) -> float:  # z' = -z + i z^2 has a solution by hand
        end = runge_kutta(one, lambda z: 1j * z.square(), 0 * decay + 1, 1.0 / steps, steps)
        exact = 1 / (math.e * (1 - 1j * (1 - math.exp(-1))))
        return abs(end.item() - exact)

    assert 12 < error(8) / error(16) < 20


def test_time_steps_end_where_they_should():
    steps, dt = steps_for(0.3, 2.0, 50.0)
    assert steps * dt == pytest.approx(0.3)
    assert dt * 2.0 * 50.0 <= 2.0
    assert steps_for(0.0, 1.0, 1.0) == (1, 0.0)


def taylor_green(reynolds: float, schmidt: float, tracer: Tensor | None = None) -> Advection:
    x, y = square(64)
    vorticity = 2 * x.cos() * y.cos()
    tracer = torch.zeros(64, 64) if tracer is None else tracer
    fields = torch.stack([vorticity, tracer])[None]
    return Advection(fields, (TURN, TURN), reynolds, schmidt)


def test_taylor_green_decays_exactly():
    scheme = taylor_green(20.0, 1.0)
    scheme.advance(2.0, 1.0)
    x, y = square(64)
    decay = math.exp(-2 * 2.0 / 20)
    flow = scheme.modes.flow(scheme.state[:, 0])
    u, v = scheme.modes.grid(flow)[0]
    torch.testing.assert_close(u, -x.cos() * y.sin() * decay, rtol=0, atol=2e-6)
    torch.testing.assert_close(v, x.sin() * y.cos() * decay, rtol=0, atol=2e-6)
    pressure = scheme.modes.grid(scheme.modes.pressure(flow))[0]
    expected = -0.25 * ((2 * x).cos() + (2 * y).cos()) * decay**2
    torch.testing.assert_close(pressure, expected, rtol=0, atol=2e-6)


def test_a_tracer_at_rest_diffuses_exactly_and_keeps_its_mean_in_a_flow():
    x, y = square(64)
    still = Advection(torch.stack([0 * x, (2 * x + y).sin()])[None], (TURN, TURN), 10.0, 0.5)
    still.advance(0.7, 1.0)
    expected = (2 * x + y).sin() * math.exp(-5 * 0.7 / 5)
    torch.testing.assert_close(still.modes.grid(still.state)[0, 1], expected, rtol=0, atol=2e-6)
    stirred = taylor_green(1e4, 0.1, 1 + (x - 1).sin())
    before = stirred.modes.grid(stirred.state)[0, 1]
    stirred.advance(3.0, 1.0)
    after = stirred.modes.grid(stirred.state)[0, 1]
    assert after.mean().item() == pytest.approx(1, abs=1e-6)
    assert (after - before).abs().max() > 0.3
    assert after.var() < before.var()


def test_pressure_balances_the_momentum_of_a_flow():
    lengths, shape = (1.0, 2.0), (32, 64)
    vorticity = 5 * smooth_noise(shape, 0.15, torch.Generator().manual_seed(0))
    fields = torch.stack([vorticity, vorticity])[None].double()
    scheme = Advection(fields, lengths, 1e4, 1.0)
    scheme.advance(0.2, 1.0)
    flow = scheme.modes.flow(scheme.state[:, 0])
    before, pressure = scheme.modes.grid(flow)[0], scheme.modes.grid(scheme.modes.pressure(flow))[0]
    scheme.advance(1e-4, 1.0)
    after = scheme.modes.grid(scheme.modes.flow(scheme.state[:, 0]))[0]
    axes = zip((-2, -1), lengths, strict=True)
    gradient = [derivative(before, axis, length) for axis, length in axes]
    residual = (after - before) / 1e-4 + before[0] * gradient[0] + before[1] * gradient[1]
    size = residual.square().mean()
    for i, length in enumerate(lengths):
        residual[i] += derivative(pressure, i, length)
    assert residual.square().mean() < 1e-3 * size  # what is left is friction
    assert (gradient[0][0] + gradient[1][1]).abs().max() < 1e-5


def test_shear_layers_roll_up():
    solver = ShearFlow(resolution=32, frames=3, start=0.0, frame_dt=1.5)
    data = solver.run(0, "train", range(0, 8, 4))
    across = data.fields[1]["velocity"][..., 1].square().mean((-2, -1))
    layers = data.fields[0]["tracer"][:, 0]
    assert torch.equal(layers, layers[:, :1].expand_as(layers)) or layers.std(1).max() < 1e-4
    assert (across[:, -1] > 3 * across[:, 0]).all()
    assert data.scalars == {"Rayleigh": 1e4, "Schmidt": 0.1}


def growth(rayleigh: float, prandtl: float) -> float:
    """Growth rate of the most unstable wave, one wavelength wide."""
    length = 2 * math.sqrt(2)
    x, y = cell_centers(8, 0.0, length)[:, None], cell_centers(8, 0.0, 1.0)[None, :]
    wave = 1e-3 * (TURN * x / length).cos() * (math.pi * y).sin()
    fields = torch.stack([torch.zeros(8, 8), wave])[None].double()
    convection = Convection(fields, length, rayleigh, prandtl)
    convection.advance(15.0, 1.0)  # the decaying partner of the wave is gone
    first = convection.fields()[0, 1].norm().item()
    convection.advance(5.0, 1.0)
    return math.log(convection.fields()[0, 1].norm().item() / first) / 5


@pytest.mark.parametrize("prandtl", [0.5, 1.0, 2.0])
def test_the_critical_rayleigh_number(prandtl):
    low, high = 640.0, 675.0
    below, above = growth(low, prandtl), growth(high, prandtl)
    assert below < 0 < above
    critical = low - below * (high - low) / (above - below)
    assert critical == pytest.approx(CRITICAL, rel=1e-3)


def test_at_the_critical_number_a_wave_neither_grows_nor_decays():
    assert abs(growth(CRITICAL, 1.0)) < 1e-5


def test_without_heating_the_layer_comes_to_rest():
    y = cell_centers(16, 0.0, 1.0)
    x = cell_centers(16, 0.0, 4.0)[:, None]
    fields = torch.stack([(TURN * x / 4).sin() * (math.pi * y).sin(), torch.zeros(16, 16)])[None]
    convection = Convection(fields, 4.0, 100.0, 1.0)  # below the critical number
    start = convection.velocity().square().mean()
    convection.advance(20.0, 2.0)
    assert convection.velocity().square().mean() < 1e-3 * start


@pytest.fixture(scope="module")
def convection() -> Convection:
    """A flow with rolls and plumes, resolved."""
    solver = RayleighBenard(resolution=16)
    deviation = solver.initial(torch.Generator().manual_seed(0))["deviation"][None]
    fields = torch.stack([torch.zeros_like(deviation), deviation], 1).double()
    flow = Convection(fields, 4.0, 2e4, 1.0)
    flow.advance(12.0, 1.4)
    assert flow.velocity().square().mean().sqrt() > 0.1
    return flow


def continued(field: Tensor, sign: int) -> Tensor:
    return torch.cat([field, sign * field.flip(-1)], -1)


def test_pressure_balances_the_momentum_of_convection(convection):
    before, pressure = convection.velocity()[0], convection.pressure()[0]
    deviation = convection.fields()[0, 1]
    kept = convection.state.clone()
    convection.advance(1e-3, 1.4)
    after = convection.velocity()[0]
    convection.state = kept
    y = cell_centers(16, 0.0, 1.0).double()
    u, v = continued(before[..., 0], 1), continued(before[..., 1], -1)
    at_rest = y - y.square() / 2
    moving = continued(pressure - at_rest, 1)
    nu = (1.0 / 2e4) ** 0.5
    for i, (w, sign) in enumerate(((u, 1), (v, -1))):
        rate = continued((after - before)[..., i] / 1e-3, sign)
        first = [derivative(w, axis, length) for axis, length in enumerate((4.0, 2.0))]
        second = [
            derivative(d, axis, s)
            for axis, (d, s) in enumerate(zip(first, (4.0, 2.0), strict=True))
        ]
        residual = rate + u * first[0] + v * first[1] - nu * sum(second)
        size = residual.square().mean().item()
        residual += derivative(moving, i, (4.0, 2.0)[i])
        if i == 1:
            residual -= continued(deviation, -1)
        assert residual.square().mean().item() < 0.01 * max(size, 1e-3)
    assert pressure.mean().abs() < 1e-6


def test_walls_let_nothing_through_and_hold_their_temperature(convection):
    velocity, deviation = convection.velocity()[0], convection.fields()[0, 1]
    v = continued(velocity[..., 1], -1)
    for field in (v, continued(deviation, -1)):
        modes = torch.fft.rfft(field, dim=-1)
        # a sine series about the wall: the value at the wall itself
        k = torch.arange(modes.shape[-1])
        at_wall = torch.fft.irfft(modes * torch.exp(-1j * math.pi * k / 32), dim=-1)[..., 0]
        assert at_wall.abs().max() < 1e-6


def test_trajectories_of_other_settings_are_not_batched():
    solver = RayleighBenard(resolution=8, frames=2)
    assert len(solver.settings) == 4
    with pytest.raises(ValueError, match=r"differ by multiples of 4; got \[0, 1\]"):
        solver.run(0, "train", range(2))
    data = solver.run(0, "train", range(1, 9, 4))
    assert data.scalars == solver.settings[1]
    alone = solver.run(0, "train", range(5, 6))
    torch.testing.assert_close(
        data.fields[0]["buoyancy"][1:], alone.fields[0]["buoyancy"], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("solver", "knobs", "message"),
    [
        (ShearFlow, {"reynolds": []}, "of length 1 or more, each a finite number above 0"),
        (ShearFlow, {"schmidt": [0.0]}, "of length 1 or more, each a finite number above 0"),
        (RayleighBenard, {"rayleigh": [-1.0]}, "of length 1 or more, each a finite number above 0"),
    ],
)
def test_parameters_that_cannot_be_are_refused(solver, knobs, message):
    with pytest.raises(ValueError, match=message):
        solver(**knobs)
