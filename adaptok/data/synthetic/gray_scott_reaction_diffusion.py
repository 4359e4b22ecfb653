"""Two chemicals that react and diffuse into patterns: the Gray-Scott equations in 2D."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Len
from torch import Tensor

from adaptok.data.synthetic.solver import (
    SOLVERS,
    Fields,
    Frames,
    Setting,
    Solver,
    State,
    cell_centers,
)
from adaptok.data.synthetic.spectral import Modes
from adaptok.utils.arguments import NonNegativeFloat, Positive, PositiveFloat

DIFFUSION = (2e-5, 1e-5)  # of A and B
SPACING = 2 / 128  # the Well's: side 2, 128 points
STEP = 1.0  # longest time step; the fastest reactions take about 10
PATTERNS = {
    "gliders": (0.014, 0.054),
    "bubbles": (0.098, 0.057),
    "maze": (0.029, 0.057),
    "worms": (0.058, 0.065),
    "spirals": (0.018, 0.051),
    "spots": (0.03, 0.062),
}  # name -> F, k


@SOLVERS.register("gray_scott_reaction_diffusion")
@dataclass(frozen=True, kw_only=True)
class GrayScott(Solver):
    """Two chemicals, one of which feeds on the other: spots, worms, spirals, periodic (2D).

    Has the equations, diffusion, grid spacing and patterns of the Well's set of this name, on a
    smaller domain (64 of its 128 points along an axis), with frames further apart.

    Args:
        patterns: names of pairs (F, k): gliders, bubbles, maze, worms, spirals, spots.
        clusters: blobs of B in the initial state.
    """

    frames: Frames = 24
    start: NonNegativeFloat = 200.0
    frame_dt: PositiveFloat = 40.0
    valid: Positive = 6
    test: Positive = 6
    patterns: Annotated[Sequence[str], Len(1)] = tuple(PATTERNS)
    clusters: Positive = 12

    field_names: ClassVar[tuple[str, ...]] = ("A", "B")
    boundary: ClassVar[tuple[str, ...]] = ("PERIODIC", "PERIODIC")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.patterns if name not in PATTERNS]
        if unknown:
            raise ValueError(f"patterns are of {', '.join(PATTERNS)}; got {list(self.patterns)!r}")

    @property
    def settings(self) -> list[dict[str, float]]:
        """Feed rate F and kill rate k."""
        return [dict(zip(("F", "k"), PATTERNS[name], strict=True)) for name in self.patterns]

    def initial(self, generator: torch.Generator) -> State:
        """Draws concentrations, (2, x, y): A is 1 and B is 0 outside Gaussian blobs."""
        x = cell_centers(self.resolution, 0.0, self._side)
        blobs = torch.zeros(self.shape)
        for _ in range(self.clusters):
            cx, cy, width, height = torch.rand(4, generator=generator).tolist()
            far = [x - c * self._side for c in (cx, cy)]
            # to the nearest periodic image
            far = [d - self._side * (d / self._side).round() for d in far]
            squared = far[0][:, None].square() + far[1][None, :].square()
            blobs += (0.5 + 0.5 * height) * (-squared / (0.03 + 0.03 * width) ** 2).exp()
        blobs.clamp_max_(1.0)
        return {"concentration": torch.stack([1 - 0.5 * blobs, 0.5 * blobs])}

    @property
    def _side(self) -> float:
        return SPACING * self.resolution

    @property
    def box(self) -> Sequence[tuple[float, float]]:
        """Low and high end of each axis."""
        return ((-self._side / 2, self._side / 2),) * 2

    def evolve(self, state: State, setting: Setting) -> Iterator[Fields]:
        """Integrates `concentration`, (b, 2, x, y)."""
        both = state["concentration"]
        for duration in self.durations:
            both = advance(both, duration, self._side, setting["F"], setting["k"])
            yield {0: {"A": both[:, 0], "B": both[:, 1]}}


def advance(both: Tensor, duration: float, side: float, feed: float, kill: float) -> Tensor:
    """Advances A and B, (b, 2, x, y), by `duration` in a periodic square.

    Strang splitting, of second order in time: half a time step of diffusion, exact in Fourier
    modes; a step of the reaction by Runge-Kutta of fourth order; half a step of diffusion.
    """
    if duration == 0:
        return both
    modes = Modes(both.shape[-2:], (side, side), both.device)
    steps = math.ceil(duration / STEP)
    dt = duration / steps
    rates = torch.tensor(DIFFUSION, device=both.device)[:, None, None] * modes.squared
    half, whole = (-0.5 * dt * rates).exp(), (-dt * rates).exp()
    both = modes.grid(half * modes.of(both))
    for step in range(steps):
        both = react(both, dt, feed, kill)
        both = modes.grid((whole if step < steps - 1 else half) * modes.of(both))
    return both


def react(both: Tensor, dt: float, feed: float, kill: float) -> Tensor:
    """Takes a time step of ``A_t = -A B² + F (1 - A)``, ``B_t = A B² - (F + k) B``; (b, 2, ...)."""

    def rate(both: Tensor) -> Tensor:
        a, b = both.unbind(1)
        eaten = a * b.square()
        return torch.stack([feed * (1 - a) - eaten, eaten - (feed + kill) * b], 1)

    first = rate(both)
    second = rate(both + 0.5 * dt * first)
    third = rate(both + 0.5 * dt * second)
    fourth = rate(both + dt * third)
    return both + dt / 6 * (first + 2 * (second + third) + fourth)
