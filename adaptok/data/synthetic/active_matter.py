"""Rods that swim and stir a viscous fluid: a kinetic theory in 2D with tensor fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar

import torch
from annotated_types import Len
from torch import Tensor

from adaptok.data.synthetic.noise import smooth_noise
from adaptok.data.synthetic.solver import SOLVERS, Fields, Setting, Solver, State
from adaptok.data.synthetic.spectral import Modes, runge_kutta, steps_for
from adaptok.utils.arguments import Finite, NonNegativeFloat, Positive, PositiveFloat
from adaptok.utils.constants import cached_constant

TRANSLATION, ROTATION = 0.05, 0.05  # diffusion of the rods, the Well's
FASTEST = 0.14  # flow per dipole strength and side of the domain; sets the time step
TABLE = 1024


@SOLVERS.register("active_matter")
@dataclass(frozen=True, kw_only=True)
class ActiveMatter(Solver):
    """Rods that align, push the fluid around them and are stirred by it, periodic (2D).

    Has the moment equations (Maddu, Weady and Shelley 2024, eqs. 1 to 5), closure and domain of the
    Well's set of this name, but is dilute (beta = 0: the rods do not stiffen the fluid), starts
    with an uneven concentration (theirs starts at 1), and has a coarser grid, hence only weak
    dipoles and alignment.

    Args:
        alpha: strengths of the dipoles, negative for pushers; simulated in every combination with
            `zeta`.
        zeta: strengths of the alignment.
        side: length L of the domain.
    """

    start: NonNegativeFloat = 4.0
    frame_dt: PositiveFloat = 0.3
    train: Positive = 12
    alpha: Annotated[Sequence[Finite], Len(1)] = (-1.0, -2.0)
    zeta: Annotated[Sequence[Finite], Len(1)] = (1.0, 2.0)
    side: PositiveFloat = 10.0

    field_names: ClassVar[tuple[str, ...]] = (
        *("concentration", "velocity_x", "velocity_y"),
        *("D_xx", "D_xy", "D_yx", "D_yy", "E_xx", "E_xy", "E_yx", "E_yy"),
    )
    boundary: ClassVar[tuple[str, ...]] = ("PERIODIC", "PERIODIC")
    batch: ClassVar[int] = 4

    @property
    def settings(self) -> list[dict[str, float]]:
        """Side of the domain, alignment and dipole strength."""
        pairs = product(self.alpha, self.zeta)
        return [{"L": float(self.side), "zeta": float(z), "alpha": float(a)} for a, z in pairs]

    @property
    def box(self) -> Sequence[tuple[float, float]]:
        """Low and high end of each axis."""
        return ((0.0, self.side),) * 2

    def initial(self, generator: torch.Generator) -> State:
        """Draws concentration and the two components of the order, (3, x, y)."""
        uneven, *order = (
            smooth_noise(self.shape, length, generator) for length in (0.08, 0.06, 0.06)
        )
        concentration = (0.3 * uneven).exp()
        # a moderate order everywhere, |Q| < c
        direction = torch.stack(order)
        direction = 0.6 * direction / (1 + direction.square().sum(0)).sqrt()
        return {"moments": torch.cat([concentration[None], concentration * direction])}

    def evolve(self, state: State, setting: Setting) -> Iterator[Fields]:
        """Integrates `moments`, (b, 3, x, y)."""
        rods = Rods(state["moments"], setting["L"], setting["alpha"], setting["zeta"])
        for duration in self.durations:
            rods.advance(duration)
            concentration, velocity, order, strain = rods.fields()
            yield {
                0: {"concentration": concentration},
                1: {"velocity": velocity},
                2: {"D": order, "E": strain},
            }


class Rods:
    """Integrates concentration c and order Q of rods in a Stokes flow they drive; pseudo-spectral.

    A rod at angle t turns by the flow and by its neighbours. The moments c = <1>, Q = <exp(2it)>
    obey, with the vorticity w and the strain e = E_xx + i E_xy of the flow,

        c_t + u . grad c = d_T Laplace c
        Q_t + u . grad Q = i w Q + c (f - conj(f) <exp(4it)> / c) - 4 d_R Q + d_T Laplace Q

    with f = e + zeta Q. The fourth moment closes as if angles were distributed like
    exp(k cos 2(t - t0)) (Bingham), as in the Well's set. The flow solves
    -Laplace u + grad q = alpha div D, with the tensor D = <p p> = (c + Q) / 2 in matrix form.

    Args:
        moments: c, Re Q, Im Q, (b, 3, x, y).
        side: of the periodic square.
        alpha: strength of the dipoles.
        zeta: strength of the alignment.
    """

    def __init__(self, moments: Tensor, side: float, alpha: float, zeta: float):
        self.alpha, self.zeta = alpha, zeta
        self.modes = Modes(moments.shape[-2:], (side, side), moments.device)
        turning = torch.tensor([0.0, 4 * ROTATION, 4 * ROTATION]).to(moments)[:, None, None]
        self.decay = TRANSLATION * self.modes.squared + turning
        self.state = self.modes.of(moments) * self.modes.keep
        # the flow and, for strong alignment, the turning limit the time step
        self.speed = max(FASTEST * abs(alpha) * side, 8 * abs(zeta) / self.modes.highest)
        self.closure = fourth_moments().to(moments)

    def flow(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns velocity (b, 2, x, y), vorticity (b, x, y) and strain, complex (b, x, y)."""
        dx, dy = self.modes.dx, self.modes.dy
        twist = 0.5 * (dx * dx - dy * dy) * state[:, 2] - dx * dy * state[:, 1]
        vorticity = self.alpha * twist * self.modes.inverse  # that the dipoles drive
        u, v = (flow := self.modes.flow(vorticity)).unbind(1)
        rates = torch.stack([vorticity, dx * u, 0.5 * (dy * u + dx * v)], 1)
        turn, stretch, shear = self.modes.grid(rates).unbind(1)
        return self.modes.grid(flow), turn, torch.complex(stretch, shear)

    def rate(self, state: Tensor) -> Tensor:
        """Returns the change of the modes by advection, rotation, strain and alignment."""
        velocity, turn, strain = self.flow(state)
        moments = self.modes.grid(state)
        concentration, order = moments[:, 0], torch.complex(moments[:, 1], moments[:, 2])
        force = strain + self.zeta * order
        mean = order / concentration
        # <exp(4it)> / c from <exp(2it)> / c by the table
        place = (mean.abs().square() * TABLE).clamp_max(TABLE - 1e-3)
        low = place.long()
        ratio = torch.lerp(self.closure[low], self.closure[low + 1], place - low)
        share = ratio * mean.square()
        change = 1j * turn * order + concentration * (force - force.conj() * share)
        source = torch.stack([torch.zeros_like(turn), change.real, change.imag], 1)
        flux = moments[:, :, None] * velocity[:, None]
        modes = self.modes.of(source) - self.modes.divergence(self.modes.of(flux))
        return modes * self.modes.keep

    def advance(self, duration: float) -> None:
        """Advances the state."""
        steps, dt = steps_for(duration, self.speed, self.modes.highest)
        self.state = runge_kutta(self.state, self.rate, self.decay, dt, steps)

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns concentration (b, x, y), velocity (..., 2), and D and E (..., 2, 2)."""
        velocity, _, strain = self.flow(self.state)
        concentration, one, two = self.modes.grid(self.state).unbind(1)
        identity = torch.eye(2, device=one.device)
        order = 0.5 * (concentration[..., None, None] * identity + traceless(one, two))
        return concentration, velocity.movedim(1, -1), order, traceless(strain.real, strain.imag)


def traceless(one: Tensor, two: Tensor) -> Tensor:
    """Returns the symmetric matrices ((one, two), (two, -one)), (..., 2, 2)."""
    return torch.stack([torch.stack([one, two], -1), torch.stack([two, -one], -1)], -2)


@cached_constant(1)
def fourth_moments() -> Tensor:
    """Tabulates <exp(4it)> / s² of Bingham's distribution at s² = 0, 1/TABLE, ..., 1, (TABLE + 1,).

    With angles distributed like exp(k cos 2t), s = I1(k) / I0(k) and <cos 4t> = I2(k) / I0(k),
    which is 1 - 2 s / k; k is found by bisection.
    """
    order = torch.linspace(0, 1, TABLE + 1, dtype=torch.float64)[1:-1].sqrt()
    low, high = torch.zeros_like(order), torch.full_like(order, 1e5)
    for _ in range(100):
        middle = 0.5 * (low + high)
        below = torch.special.i1e(middle) / torch.special.i0e(middle) < order
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    inner = (1 - 2 * order / high) / order.square()
    ends = torch.tensor([0.5, 1.0], dtype=torch.float64)
    return torch.cat([ends[:1], inner, ends[1:]])
