"""Convection between a warm floor and a cold ceiling: the Boussinesq equations in 2D."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptok.data.synthetic.noise import smooth_noise
from adaptok.data.synthetic.solver import (
    SOLVERS,
    Fields,
    Parameters,
    Resolution,
    Setting,
    Solver,
    State,
    cell_centers,
)
from adaptok.data.synthetic.spectral import Modes, runge_kutta, steps_for
from adaptok.utils.arguments import NonNegativeFloat, Positive, PositiveFloat

LENGTH, HEIGHT = 4.0, 1.0
FASTEST = 1.4  # speed of the fastest flow of this set; sets the time step


@SOLVERS.register("rayleigh_benard")
@dataclass(frozen=True, kw_only=True)
class RayleighBenard(Solver):
    """Convection of a layer of fluid that is heated from below (2D; x periodic, y walls).

    Has the equations, domain and units (free fall) of the Well's set of this name, but free-slip
    instead of no-slip walls, a uniform grid of 4 `resolution` x `resolution` points, and Rayleigh
    numbers that this grid resolves.

    Args:
        rayleigh: Rayleigh numbers, strength of the buoyancy; simulated in every combination with
            `prandtl`.
        prandtl: Prandtl numbers, viscosity / thermal diffusivity.
    """

    resolution: Resolution = 32
    start: NonNegativeFloat = 8.0
    frame_dt: PositiveFloat = 0.3
    train: Positive = 12
    rayleigh: Parameters = (1e5, 3e5)
    prandtl: Parameters = (0.5, 1.0)

    field_names: ClassVar[tuple[str, ...]] = ("buoyancy", "pressure", "velocity_x", "velocity_y")
    boundary: ClassVar[tuple[str, ...]] = ("PERIODIC", "WALL")
    aspect: ClassVar[tuple[int, ...]] = (4, 1)
    box: ClassVar[Sequence[tuple[float, float]]] = ((0.0, LENGTH), (0.0, HEIGHT))
    lists: ClassVar[Mapping[str, str]] = {"Rayleigh": "rayleigh", "Prandtl": "prandtl"}

    def initial(self, generator: torch.Generator) -> State:
        """Draws the deviation of the buoyancy from its profile at rest, (x, y)."""
        y = self.coordinates["y"]
        return {"deviation": 0.4 * smooth_noise(self.shape, 0.06, generator) * y * (1 - y)}

    def evolve(self, state: State, setting: Setting) -> Iterator[Fields]:
        """Integrates from rest; `deviation` is (b, x, y)."""
        deviation = state["deviation"]
        fields = torch.stack([torch.zeros_like(deviation), deviation], 1)
        scheme = Convection(fields, LENGTH, setting["Rayleigh"], setting["Prandtl"])
        y = self.coordinates["y"].to(deviation)
        for duration in self.durations:
            scheme.advance(duration, FASTEST)
            buoyancy = 1 - y + scheme.fields()[:, 1]
            yield {
                0: {"buoyancy": buoyancy, "pressure": scheme.pressure()},
                1: {"velocity": scheme.velocity()},
            }


class Convection:
    """Integrates vorticity w and deviation b of the buoyancy between free-slip, isothermal walls.

    ``w_t + u . grad w = b_x + nu Laplace w`` and ``b_t + u . grad b = v + kappa Laplace b`` with
    nu = sqrt(Pr / Ra), kappa = 1 / sqrt(Ra Pr), and w = b = v = 0 on the walls y = 0 and y = 1.
    Continued as odd functions of y, both live in a periodic box of twice the height.

    Args:
        fields: initial vorticity and deviation, (b, 2, x, y).
        length: of the layer; its height is 1.
        rayleigh: Ra.
        prandtl: Pr.
    """

    def __init__(self, fields: Tensor, length: float, rayleigh: float, prandtl: float):
        n_x, self.n = fields.shape[-2:]
        self.modes = Modes((n_x, 2 * self.n), (length, 2 * HEIGHT), fields.device)
        spread = torch.tensor([(prandtl / rayleigh) ** 0.5, (rayleigh * prandtl) ** -0.5])
        self.decay = spread.to(fields)[:, None, None] * self.modes.squared
        self.state = self._continued(fields)

    def _continued(self, fields: Tensor) -> Tensor:
        return self.modes.of(torch.cat([fields, -fields.flip(-1)], -1)) * self.modes.keep

    def rate(self, state: Tensor) -> Tensor:
        """Returns the change of the modes by advection and buoyancy."""
        flow = self.modes.flow(state[:, 0])
        carried = self.modes.grid(state)[:, :, None] * self.modes.grid(flow)[:, None]
        source = torch.stack([self.modes.dx * state[:, 1], flow[:, 1]], 1)
        return (source - self.modes.divergence(self.modes.of(carried))) * self.modes.keep

    def advance(self, duration: float, speed: float) -> None:
        """Advances the state, with time steps that are stable for flows up to `speed`."""
        steps, dt = steps_for(duration, speed, self.modes.highest)
        self.state = runge_kutta(self.state, self.rate, self.decay, dt, steps)
        self.state = self._continued(self.fields())  # rounding must not break the symmetry

    def fields(self) -> Tensor:
        """Returns vorticity and deviation, (b, 2, x, y)."""
        return self.modes.grid(self.state)[..., : self.n]

    def velocity(self) -> Tensor:
        """Returns the velocity, (b, x, y, 2)."""
        flow = self.modes.grid(self.modes.flow(self.state[:, 0]))
        return flow[..., : self.n].movedim(1, -1)

    def pressure(self) -> Tensor:
        """Returns the pressure, mean 0, (b, x, y), with the part that balances the rest profile."""
        flow = self.modes.flow(self.state[:, 0])
        lift = self.modes.dy * self.state[:, 1] * self.modes.inverse
        moving = self.modes.grid(self.modes.pressure(flow) - lift)[..., : self.n]
        y = cell_centers(self.n, 0.0, HEIGHT).to(moving)
        at_rest = y - y.square() / 2
        return moving - moving.mean((-2, -1), keepdim=True) + at_rest - at_rest.mean()
