"""A blast wave in an uneven gas: the Euler equations in 3D, all ends open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adaptok.data.synthetic import euler
from adaptok.data.synthetic.noise import smooth_noise
from adaptok.data.synthetic.solver import (
    SOLVERS,
    Fields,
    Resolution,
    Setting,
    Solver,
    State,
    cell_centers,
)
from adaptok.utils.arguments import NonNegativeFloat, Positive, PositiveFloat

GAMMA = 5 / 3
AMBIENT_PRESSURE = 0.1
RADIUS = 0.1  # of the hot sphere; the domain is the unit cube


@SOLVERS.register("supernova_explosion_64")
@dataclass(frozen=True, kw_only=True)
class SupernovaExplosion(Solver):
    """A hot sphere that explodes at a random place of a gas at rest with random density (3D).

    Stands in for the Well's set of this name: same fields, but an ideal gas without gravity or
    cooling, on a coarser grid of the unit cube.

    Args:
        contrast: standard deviation of the logarithm of the density.
    """

    resolution: Resolution = 32
    start: NonNegativeFloat = 0.03
    frame_dt: PositiveFloat = 0.012
    train: Positive = 8
    valid: Positive = 2
    test: Positive = 2
    contrast: NonNegativeFloat = 0.5

    field_names: ClassVar[tuple[str, ...]] = (
        *("density", "pressure", "temperature"),
        *("velocity_x", "velocity_y", "velocity_z"),
    )
    boundary: ClassVar[tuple[str, ...]] = ("OPEN", "OPEN", "OPEN")
    aspect: ClassVar[tuple[int, ...]] = (1, 1, 1)
    batch: ClassVar[int] = 2

    @property
    def settings(self) -> list[dict[str, float]]:
        """The ratio of specific heats."""
        return [{"gamma": GAMMA}]

    def initial(self, generator: torch.Generator) -> State:
        """Draws primitive variables, (2 + ndim, *space)."""
        density = (self.contrast * smooth_noise(self.shape, 0.08, generator)).exp()
        center = 0.3 + 0.4 * torch.rand(3, generator=generator)
        temperature = 8.0 * 3.0 ** torch.rand((), generator=generator)
        pressure = AMBIENT_PRESSURE + temperature * density * sphere(self.shape, center, RADIUS)
        rest = torch.zeros(3, *self.shape)
        return {"primitive": torch.cat([density[None], rest, pressure[None]])}

    def evolve(self, state: State, setting: Setting) -> Iterator[Fields]:
        """Integrates `primitive`, (b, 2 + ndim, *space)."""
        gas = euler.to_conserved(state["primitive"], GAMMA)
        for duration in self.durations:
            gas = euler.advance(gas, duration, 1 / self.resolution, GAMMA, self.boundary)
            primitive = euler.to_primitive(gas, GAMMA)
            density, pressure = primitive[:, 0], primitive[:, -1]
            yield {
                0: {"density": density, "pressure": pressure, "temperature": pressure / density},
                1: {"velocity": primitive[:, 1:-1].movedim(1, -1)},
            }


def sphere(shape: tuple[int, ...], center: Tensor, radius: float) -> Tensor:
    """Returns 1 inside, 0 outside, with an edge of about one grid cell."""
    axes = [cell_centers(n, 0.0, 1.0) - c for n, c in zip(shape, center, strict=True)]
    grids = torch.meshgrid(*axes, indexing="ij")
    distance = torch.stack(grids).square().sum(0).sqrt()
    return torch.sigmoid((radius - distance) * 2 * shape[0])
