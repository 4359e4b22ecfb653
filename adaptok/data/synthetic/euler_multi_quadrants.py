"""Random quadrants of gas at rest against each other: the Euler equations in 2D, with shocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt, Len

from adaptok.data.knobs import check_between
from adaptok.data.synthetic import euler
from adaptok.data.synthetic.solver import SOLVERS, Fields, Setting, Solver, State, cell_centers
from adaptok.utils.arguments import Finite, NonNegativeFloat, Positive, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class EulerMultiQuadrants(Solver):
    """Base of the two sets, which differ in their boundaries.

    Args:
        gamma: ratios of specific heats.
        pieces: largest number of pieces along an axis of the initial state; at least 2.
    """

    start: NonNegativeFloat = 0.02
    frame_dt: PositiveFloat = 0.02
    gamma: Annotated[Sequence[Annotated[Finite, Gt(1)]], Len(1)] = (1.22, 1.4, 1.597, 1.76)
    pieces: Positive = 4

    field_names: ClassVar[tuple[str, ...]] = (
        *("energy", "density", "pressure"),
        *("momentum_x", "momentum_y"),
    )
    lists: ClassVar[Mapping[str, str]] = {"gamma": "gamma"}

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.resolution // 4
        check_between(2, most, f"resolution // 4 = {most}", pieces=self.pieces)

    def initial(self, generator: torch.Generator) -> State:
        """Draws primitive variables, (4, x, y), constant in each of the pieces.

        Density and pressure are far enough from vacuum that no time step collapses.
        """
        x = cell_centers(self.resolution, 0.0, 1.0)
        count = [int(torch.randint(2, self.pieces + 1, (), generator=generator)) for _ in "xy"]
        where = []
        for n in count:
            jitter = 0.6 * torch.rand(n, generator=generator) + 0.2
            where.append(torch.bucketize(x, (torch.arange(n) + jitter) / n) % n)
        values = torch.rand(4, *count, generator=generator)
        values[[0, 3]] = 0.3 * 5 ** values[[0, 3]]  # 0.3 to 1.5
        values[1:3] -= 0.5
        return {"primitive": values[:, where[0]][:, :, where[1]]}

    def evolve(self, state: State, setting: Setting) -> Iterator[Fields]:
        """Integrates `primitive`, (b, 4, x, y)."""
        gamma = setting["gamma"]
        gas = euler.to_conserved(state["primitive"], gamma)
        for duration in self.durations:
            gas = euler.advance(gas, duration, 1 / self.resolution, gamma, self.boundary)
            pressure = euler.to_primitive(gas, gamma)[:, -1]
            yield {
                0: {"energy": gas[:, 3], "density": gas[:, 0], "pressure": pressure},
                1: {"momentum": gas[:, 1:3].movedim(1, -1)},
            }


@SOLVERS.register("euler_multi_quadrants_periodicBC")
@dataclass(frozen=True, kw_only=True)
class EulerMultiQuadrantsPeriodic(EulerMultiQuadrants):
    """Gas in random rectangles that expand, collide and shock, periodic (2D).

    Has the equations, domain and fields of the Well's set of this name, on a coarser grid, with
    frames further apart and milder jumps.
    """

    boundary: ClassVar[tuple[str, ...]] = ("PERIODIC", "PERIODIC")


@SOLVERS.register("euler_multi_quadrants_openBC")
@dataclass(frozen=True, kw_only=True)
class EulerMultiQuadrantsOpen(EulerMultiQuadrants):
    """Gas in random rectangles that expand, collide and shock, open ends (2D).

    Like ``euler_multi_quadrants_periodicBC``, but the gas leaves through all ends.
    """

    boundary: ClassVar[tuple[str, ...]] = ("OPEN", "OPEN")
