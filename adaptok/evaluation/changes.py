"""Fields and what becomes of them next, small and simulated on the spot."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.data.synthetic import SOLVERS, Solver, Trajectories
from adaptok.utils.boundary import BOUNDARIES

FRAMES = 8  # of a trajectory
TAKEN = (2, 5)  # frames of it whose change to the next one is looked at


class Changes(NamedTuple):
    """Fields of a set and their next change, each channel in units of its spread over the set.

    Attributes:
        name: of the set.
        field: (b, 1, c, *space).
        change: until the next frame, or None for pictures.
        boundary: codes (d, 2), or None.
    """

    name: str
    field: Float[Tensor, "b 1 c *s"]
    change: Float[Tensor, "b 1 c *s"] | None
    boundary: Tensor | None


def changes_of(name: str, *, resolution: int = 64, trajectories: int = 3, seed: int = 0) -> Changes:
    """Simulates some trajectories of a generated set, of its test split and different settings.

    Args:
        resolution: grid points along the shortest axis in 2D; half of it in 3D and for long
            domains.
        seed: another one, other trajectories.
    """
    aspect = SOLVERS.get(name).aspect  # type: ignore[attr-defined]
    small = len(aspect) == 3 or max(aspect) > 2
    solver: Solver = SOLVERS.create(
        name, resolution=resolution // 2 if small else resolution, frames=FRAMES
    )
    torch.set_flush_denormal(True)  # ahead of fronts, fields fade through such numbers
    try:
        runs = [solver.run(seed, "test", range(i, i + 1)) for i in range(trajectories)]
    finally:
        torch.set_flush_denormal(False)
    frames = torch.cat([_channels(run) for run in runs])  # (b, t, c, *space)
    field = torch.cat([frames[:, t : t + 1] for t in TAKEN])
    change = torch.cat([frames[:, t + 1 : t + 2] - frames[:, t : t + 1] for t in TAKEN])
    boundary = torch.tensor([[BOUNDARIES.index(end)] * 2 for end in solver.boundary])
    return Changes(name, standard(field), change / _spread(change), boundary)


def standard(field: Float[Tensor, "b t c *s"]) -> Float[Tensor, "b t c *s"]:
    """Returns each channel from its mean over the batch, in units of its spread."""
    return (field - field.mean((0, 1, *range(3, field.ndim)), keepdim=True)) / _spread(field)


def _spread(x: Tensor) -> Tensor:
    std = x.std((0, 1, *range(3, x.ndim)), keepdim=True)
    return torch.where(std > 0, std, 1)


def _channels(run: Trajectories) -> Float[Tensor, "b t c *s"]:
    parts = [
        value.unsqueeze(-1).flatten(value.ndim - order).movedim(-1, 2)
        for order, members in run.fields.items()
        for value in members.values()
    ]
    return torch.cat(parts, 2)
