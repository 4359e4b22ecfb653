"""Sound in a random maze: linear acoustics with discontinuous density, walls and open ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptok.data.knobs import check_between
from adaptok.data.synthetic.solver import (
    SOLVERS,
    Fields,
    Frames,
    Setting,
    Solver,
    State,
    cell_centers,
)
from adaptok.utils.arguments import NonNegativeFloat, Positive, PositiveFloat

MODULUS = 4.0  # bulk modulus K; the speed of sound is sqrt(K / density)
PATH_DENSITY, WALL_DENSITY = 3.0, 1.0e6
LOW, HIGH = -1.0, 1.0  # the domain along each axis


@SOLVERS.register("acoustic_scattering_maze")
@dataclass(frozen=True, kw_only=True)
class AcousticScatteringMaze(Solver):
    """Pressure pulses that travel, split and reflect in the corridors of a random maze (2D).

    Has the equations, domain and materials of the Well's set of this name, on a coarser grid: x
    ends reflect, y ends are open.

    Args:
        nodes: corridors of the maze along each axis.
        pulses: pressure pulses of the initial state.
    """

    frames: Frames = 32
    start: NonNegativeFloat = 0.1
    frame_dt: PositiveFloat = 0.02
    nodes: Positive = 8
    pulses: Positive = 4

    field_names: ClassVar[tuple[str, ...]] = ("pressure", "velocity_x", "velocity_y")
    constant_names: ClassVar[tuple[str, ...]] = ("density", "speed_of_sound")
    boundary: ClassVar[tuple[str, ...]] = ("WALL", "OPEN")
    box: ClassVar[Sequence[tuple[float, float]]] = ((LOW, HIGH),) * 2

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.resolution // 4
        check_between(2, most, f"resolution // 4 = {most}", nodes=self.nodes)
        check_between(1, self.nodes**2, "nodes**2", pulses=self.pulses)

    def initial(self, generator: torch.Generator) -> State:
        """Draws density and initial pressure, each (x, y)."""
        walls = random_maze(self.resolution, self.nodes, generator)
        density = torch.where(walls, WALL_DENSITY, PATH_DENSITY)
        return {"density": density, "pressure": self._pulses(walls, generator)}

    def _pulses(self, walls: Tensor, generator: torch.Generator) -> Tensor:
        """Draws Gaussian pulses of random size and sign in the middle of random corridors."""
        pitch = (HIGH - LOW) / self.nodes
        x = cell_centers(self.resolution, LOW, HIGH)
        pressure = torch.zeros(walls.shape)
        for node in torch.randperm(self.nodes**2, generator=generator)[: self.pulses].tolist():
            cx, cy = (LOW + (i + 0.5) * pitch for i in divmod(node, self.nodes))
            size, sign, width = torch.rand(3, generator=generator).tolist()
            amplitude = math.copysign(0.5 + size, sign - 0.3)
            sigma = pitch * (0.2 + 0.1 * width)
            squared = (x[:, None] - cx) ** 2 + (x[None, :] - cy) ** 2
            pressure += amplitude * (-squared / (2 * sigma**2)).exp()
        return pressure.masked_fill(walls, 0.0)

    def evolve(self, state: State, setting: Setting) -> Iterator[Fields]:
        """Integrates `density` and `pressure`, each (b, x, y), from rest."""
        density, pressure = state["density"], state["pressure"]
        dx = (HIGH - LOW) / self.resolution
        limit = 0.9 * stable_step(density, dx)
        velocity = [torch.zeros_like(pressure.narrow(a, 1, self.resolution - 1)) for a in (1, 2)]
        for duration in self.durations:
            steps = math.ceil(duration / limit)
            if steps:
                scheme = Leapfrog(density, dx, duration / steps, self.boundary)
                pressure, velocity = scheme.run(pressure, velocity, steps)
            centers = centered(velocity, pressure, density, self.boundary)
            yield {0: {"pressure": pressure}, 1: {"velocity": centers}}

    def constants(self, state: State) -> Fields:
        """Returns density and speed of sound, each (b, x, y)."""
        density = state["density"]
        return {0: {"density": density, "speed_of_sound": (MODULUS / density).sqrt()}}


class Leapfrog:
    """Integrates ``p_t = -K div u``, ``rho u_t = -grad p`` by leapfrog on a staggered grid.

    Pressure lives in cells, the normal velocity on the faces between them; a face carries the mean
    density of its two cells, so that a jump in density reflects as it should. A wall end is a face
    at rest; a face at an open end moves as an outgoing plane wave would move it, u = p / Z.
    Energy is conserved exactly in a closed box and never grows with open ends.

    Args:
        density: (b, *space).
        dx: grid spacing, the same on all axes.
        dt: time step, at most :func:`stable_step`.
        boundary: "WALL" or "OPEN" per axis.
    """

    def __init__(self, density: Tensor, dx: float, dt: float, boundary: tuple[str, ...]):
        self.gain = MODULUS * dt / dx
        self.kicks = [dt / (dx * between(density, a)) for a in range(1, density.ndim)]
        leak = torch.zeros_like(density)
        for axis, kind in enumerate(boundary, start=1):
            if kind == "OPEN":
                for end in (0, density.shape[axis] - 1):
                    here = density.narrow(axis, end, 1)
                    leak.narrow(axis, end, 1).add_(0.5 * self.gain / (MODULUS * here).sqrt())
        self.keep = (1 - leak) / (1 + leak)
        self.drive = self.gain / (1 + leak)

    def kick(self, pressure: Tensor, velocity: list[Tensor], part: float = 1.0) -> list[Tensor]:
        """Advances the face velocities by `part` of a time step."""
        return [
            u - part * k * pressure.diff(dim=a)
            for a, (u, k) in enumerate(zip(velocity, self.kicks, strict=True), start=1)
        ]

    def drift(self, pressure: Tensor, velocity: list[Tensor]) -> Tensor:
        """Advances the pressure by one time step."""
        divergence = sum(with_ends(u, a).diff(dim=a) for a, u in enumerate(velocity, start=1))
        return self.keep * pressure - self.drive * divergence

    def run(
        self, pressure: Tensor, velocity: list[Tensor], steps: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Advances both by `steps` steps; they are known at the same time before and after."""
        velocity = self.kick(pressure, velocity, 0.5)
        for step in range(steps):
            pressure = self.drift(pressure, velocity)
            velocity = self.kick(pressure, velocity, 1.0 if step < steps - 1 else 0.5)
        return pressure, velocity


def stable_step(density: Tensor, dx: float) -> float:
    """Returns the largest stable time step of the leapfrog scheme."""
    fastest = math.sqrt(MODULUS / density.min().item())
    return dx / (fastest * math.sqrt(density.ndim - 1))


def between(values: Tensor, axis: int) -> Tensor:
    """Returns the n - 1 means of neighbors along `axis`."""
    n = values.shape[axis] - 1
    return (values.narrow(axis, 0, n) + values.narrow(axis, 1, n)) / 2


def with_ends(velocity: Tensor, axis: int) -> Tensor:
    """Pads the face velocities with a face at rest at both ends of `axis`."""
    pad = [0, 0] * (velocity.ndim - 1 - axis) + [1, 1]
    return F.pad(velocity, pad)


def centered(
    velocity: list[Tensor], pressure: Tensor, density: Tensor, boundary: tuple[str, ...]
) -> Tensor:
    """Returns the velocity in the cell centers, (b, *space, ndim)."""
    components = []
    for axis, (u, kind) in enumerate(zip(velocity, boundary, strict=True), start=1):
        faces = with_ends(u, axis)
        if kind == "OPEN":
            for sign, cell, face in ((-1, 0, 0), (1, -1, faces.shape[axis] - 1)):
                p, rho = pressure.select(axis, cell), density.select(axis, cell)
                faces.select(axis, face).copy_(sign * p / (MODULUS * rho).sqrt())
        components.append(between(faces, axis))
    return torch.stack(components, -1)


def random_maze(resolution: int, nodes: int, generator: torch.Generator) -> Tensor:
    """Draws a random maze, True in walls, (x, y).

    Kruskal's algorithm on a `nodes` x `nodes` lattice: in random order, a door opens if it joins
    two parts that are not connected yet. One door in ten opens in any case, which makes loops.
    """
    wall = max(1, resolution // (4 * nodes))
    starts = [round(k * (resolution + wall) / nodes) for k in range(nodes + 1)]
    # no walls along the border itself: the boundary conditions act there
    is_wall = torch.zeros(resolution, dtype=torch.bool)
    for start in starts[1:-1]:
        is_wall[start - wall : start] = True
    walls = is_wall[:, None] | is_wall[None, :]
    for axis, i, j in _open_doors(nodes, generator):
        door = slice(starts[i + 1] - wall, starts[i + 1]), slice(starts[j], starts[j + 1] - wall)
        walls[door if axis == 0 else door[::-1]] = False
    return walls


def _open_doors(nodes: int, generator: torch.Generator) -> list[tuple[int, int, int]]:
    """Draws doors (axis, i, j): between nodes i and i + 1 along `axis`, at j along the other."""
    doors = [(a, i, j) for a in (0, 1) for i in range(nodes - 1) for j in range(nodes)]
    part = torch.arange(nodes**2)  # that each node is connected to, as a number
    opened = []
    extra = torch.rand(len(doors), generator=generator) < 0.1
    for index in torch.randperm(len(doors), generator=generator).tolist():
        axis, i, j = doors[index]
        step = (nodes, 1)[axis]
        node = (i, j)[axis] * nodes + (j, i)[axis]
        one, other = part[node].item(), part[node + step].item()
        if one != other or extra[index]:
            part[part == one] = other
            opened.append(doors[index])
    return opened
