"""A blast wave in an uneven gas: the Euler equations in 3D, all ends open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptok.data.synthetic import euler
from adaptok.data.synthetic.noise import smooth_noise
from adaptok.data.synthetic.solver import SOLVERS, OnFrame, Solver, Trajectories, cell_centres

GAMMA = 5 / 3
AMBIENT_PRESSURE = 0.1
RADIUS = 0.1  # of the hot sphere; the domain is the unit cube


@SOLVERS.register("supernova_explosion_64")
@dataclass(frozen=True, kw_only=True)
class SupernovaExplosion(Solver):
    """A hot sphere that explodes at a random place of a gas at rest with random density (3D).

    A stand-in for the Well's set of this name: same fields, but an ideal gas without gravity or
    cooling, in units where the domain is the unit cube, on a coarser grid.

    Args:
        contrast: standard deviation of the logarithm of the density.
    """

    resolution: int = 32
    frames: int = 16
    start: float = 0.03
    frame_dt: float = 0.012
    train: int = 8
    valid: int = 2
    test: int = 2
    contrast: float = 0.5

    ndim: ClassVar[int] = 3
    version: ClassVar[int] = 1
    boundary: ClassVar[tuple[str, ...]] = ("OPEN", "OPEN", "OPEN")
    batch: ClassVar[int] = 2

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Primitive variables, (2 + ndim, *space)."""
        shape = (self.resolution,) * self.ndim
        density = (self.contrast * smooth_noise(shape, 0.08, generator)).exp()
        centre = 0.3 + 0.4 * torch.rand(self.ndim, generator=generator)
        temperature = 8.0 * 3.0 ** torch.rand((), generator=generator)
        pressure = AMBIENT_PRESSURE + temperature * density * sphere(shape, centre, RADIUS)
        rest = torch.zeros(self.ndim, *shape)
        return {"primitive": torch.cat([density[None], rest, pressure[None]])}

    def simulate(
        self,
        state: dict[str, Tensor],
        setting: Mapping[str, float],
        on_frame: OnFrame = lambda: None,
    ) -> Trajectories:
        """Integrates `primitive`, (b, 2 + ndim, *space)."""
        gas = euler.to_conserved(state["primitive"], GAMMA)
        recorded, now = [], 0.0
        for time in (self.start + self.frame_dt * k for k in range(self.frames)):
            gas = euler.advance(gas, time - now, 1 / self.resolution, GAMMA, self.boundary)
            now = time
            recorded.append(euler.to_primitive(gas, GAMMA))
            on_frame()
        frames = torch.stack(recorded, 1)  # (b, t, 2 + ndim, *space)
        density, velocity, pressure = frames[:, :, 0], frames[:, :, 1:-1], frames[:, :, -1]
        x = cell_centres(self.resolution, 0.0, 1.0)
        return Trajectories(
            time=self.times,
            coordinates=dict.fromkeys(("x", "y", "z"), x),
            fields={
                0: {"density": density, "pressure": pressure, "temperature": pressure / density},
                1: {"velocity": velocity.movedim(2, -1)},
            },
            scalars={"gamma": GAMMA},
        )


def sphere(shape: tuple[int, ...], centre: Tensor, radius: float) -> Tensor:
    """1 inside, 0 outside, with an edge of about one grid cell."""
    axes = [cell_centres(n, 0.0, 1.0) - c for n, c in zip(shape, centre, strict=True)]
    grids = torch.meshgrid(*axes, indexing="ij")
    distance = torch.stack(grids).square().sum(0).sqrt()
    return torch.sigmoid((radius - distance) * 2 * shape[0])
