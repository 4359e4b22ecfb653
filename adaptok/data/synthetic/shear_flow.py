"""Shear layers that roll up: the incompressible Navier-Stokes equations in 2D with a tracer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptok.data.synthetic.solver import SOLVERS, Fields, Parameters, Setting, Solver, State
from adaptok.data.synthetic.spectral import Modes, runge_kutta, steps_for
from adaptok.utils.arguments import NonNegativeFloat, Positive, PositiveFloat

LENGTHS = (1.0, 2.0)
SPEED = 0.5  # of the layers
SMOOTHING = 20.0  # decay of the finest waves, per time
FASTEST = 0.9  # speed that no flow of this set comes near; sets the time step


@SOLVERS.register("shear_flow")
@dataclass(frozen=True, kw_only=True)
class ShearFlow(Solver):
    """Shear layers with a tracer that roll up into vortices, periodic (2D).

    Has the equations, domain and parameters of the Well's set of this name, but other random
    layers, a coarser grid of `resolution` x 2 `resolution` points, and frames further apart. Calls
    the Reynolds number "Rayleigh", as the Well's files do.

    Args:
        reynolds: Reynolds numbers, 1 / viscosity; simulated in every combination with `schmidt`.
        schmidt: Schmidt numbers, viscosity / diffusivity of the tracer.
    """

    start: NonNegativeFloat = 1.0
    frame_dt: PositiveFloat = 0.25
    train: Positive = 16
    reynolds: Parameters = (1e4, 5e4)
    schmidt: Parameters = (0.1, 1.0)

    field_names: ClassVar[tuple[str, ...]] = ("tracer", "pressure", "velocity_x", "velocity_y")
    boundary: ClassVar[tuple[str, ...]] = ("PERIODIC", "PERIODIC")
    aspect: ClassVar[tuple[int, ...]] = (1, 2)
    box: ClassVar[Sequence[tuple[float, float]]] = [(0.0, length) for length in LENGTHS]
    lists: ClassVar[Mapping[str, str]] = {"Rayleigh": "reynolds", "Schmidt": "schmidt"}

    def initial(self, generator: torch.Generator) -> State:
        """Draws vorticity and tracer, each (x, y)."""
        x, y = self.coordinates["x"][:, None], self.coordinates["y"][None, :]
        layers = 2 * int(torch.randint(1, 3, (), generator=generator))  # 2 or 4 of them
        sharpness, strength, shift, tilt = torch.rand(4, generator=generator).tolist()
        wave = math.pi * layers / 2  # of the profile, which changes its sign in every layer
        steepness = (20 + 10 * sharpness) / wave
        angle = wave * y + 2 * math.pi * shift
        profile = SPEED * (steepness * angle.sin()).tanh()
        shear = SPEED * steepness * wave * angle.cos() / (steepness * angle.sin()).cosh().square()
        near = (-100 * (angle.sin() / wave).square()).exp()
        near = (0.05 + 0.1 * strength) * near * (1 + 0.5 * (math.pi * (y + 2 * tilt)).cos())
        stir = torch.zeros(self.shape)
        for waves, (size, phase) in enumerate(torch.rand(3, 2, generator=generator).tolist(), 1):
            k = 2 * math.pi * waves
            stir += size * k * near * (k * x + 2 * math.pi * phase).cos()
        vorticity = stir - shear
        return {"vorticity": vorticity, "tracer": profile.expand(self.shape).clone()}

    def evolve(self, state: State, setting: Setting) -> Iterator[Fields]:
        """Integrates `vorticity` and `tracer`, each (b, x, y)."""
        start = torch.stack([state["vorticity"], state["tracer"]], 1)
        scheme = Advection(start, LENGTHS, setting["Rayleigh"], setting["Schmidt"])
        modes = scheme.modes
        for duration in self.durations:
            scheme.advance(duration, FASTEST)
            tracer, flow = modes.grid(scheme.state[:, 1]), modes.flow(scheme.state[:, 0])
            yield {
                0: {"tracer": tracer, "pressure": modes.grid(modes.pressure(flow))},
                1: {"velocity": modes.grid(flow).movedim(1, -1)},
            }


class Advection:
    """Integrates vorticity, which carries itself, and a tracer in a periodic box; pseudo-spectral.

    ``w_t + u . grad w = Laplace w / Re``, ``s_t + u . grad s = Laplace s / (Re Sc)``. The finest
    waves also decay by hyperviscosity, in proportion to k^8: without it coarse grids ring.

    Attributes:
        state: modes of vorticity and tracer, (b, 2, x, y / 2 + 1).

    Args:
        fields: initial vorticity and tracer, (b, 2, x, y).
        lengths: size of the box per axis.
        reynolds: 1 / viscosity.
        schmidt: viscosity / diffusivity.
    """

    def __init__(
        self, fields: Tensor, lengths: tuple[float, float], reynolds: float, schmidt: float
    ):
        self.modes = Modes(fields.shape[-2:], lengths, fields.device)
        diffusion = torch.tensor([1 / reynolds, 1 / (reynolds * schmidt)], device=fields.device)
        self.decay = diffusion[:, None, None] * self.modes.squared
        self.decay = self.decay + SMOOTHING * (self.modes.squared / self.modes.highest**2) ** 4
        self.state = self.modes.of(fields) * self.modes.keep

    def rate(self, state: Tensor) -> Tensor:
        """Returns the change by advection, in conservation form, which keeps the means."""
        velocity = self.modes.grid(self.modes.flow(state[:, 0]))  # (b, 2, x, y)
        carried = self.modes.grid(state)
        flux = self.modes.of(carried[:, :, None] * velocity[:, None])
        return -self.modes.divergence(flux) * self.modes.keep

    def advance(self, duration: float, speed: float) -> None:
        """Advances the state, with time steps that are stable for flows up to `speed`."""
        steps, dt = steps_for(duration, speed, self.modes.highest)
        self.state = runge_kutta(self.state, self.rate, self.decay, dt, steps)
