"""Indicators of flows, which know what the channels are (AMR-Transformer)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adaptok.layers.boundary import Boundary, periodic_axes
from adaptok.registry import INDICATORS, choice
from adaptok.tokenizers.indicators.base import Field, Scores
from adaptok.tokenizers.indicators.gradient import PADDINGS, stencil
from adaptok.tokenizers.indicators.laplacian import STATISTICS
from adaptok.tree import Tree
from adaptok.utils.arguments import PositiveFloat, checked
from adaptok.utils.magnitude import squarable

Channels = int | str | Sequence[int | str]  # by number, or (where a data set is at hand) by name


class FlowIndicator:
    """Statistic over the cell of a quantity of the flow, in units of its mean over the sample.

    The mean over frames counts. A score of 2 is twice the average, in any units; a quantity that is
    0 but for rounding scores 0. Numbers of channels are those of the field before any is ignored.

    Args:
        velocity: channels of its components, one per space axis; with a folded history those of
            each frame in turn. None: the first channels that are not ignored, as many as there are
            axes or fewer (missing components are 0).
        statistic: "max" (a cell counts if some point does), "mean" or "std" over the points.
        padding: "replicate", "circular" or "reflect"; periodic axes are always circular.
        spacing: of the grid along each space axis; None: the same.
    """

    sees_all = True

    @checked
    def __init__(
        self,
        *,
        velocity: Channels | None = None,
        statistic: str = "max",
        padding: str = "replicate",
        spacing: Sequence[PositiveFloat] | None = None,
    ):
        self.velocity = role_of_channels("velocity", velocity)
        self.statistic = choice("statistic", statistic, STATISTICS)
        self.padding = choice("padding", padding, PADDINGS)
        self.spacing = None if spacing is None else tuple(map(float, spacing))
        self.monotone = statistic == "max"

    def check_channels(self, channels: int, ndim: int) -> None:
        """Raises ``ValueError`` for roles of channels that a field does not have, or too few."""
        check_role("velocity", self.velocity, channels)
        if self.velocity is not None and len(self.velocity) % ndim:
            raise ValueError(
                f"velocity has one channel per space axis, {ndim}, or those of each folded frame "
                f"in turn; got {list(self.velocity)}"
            )
        if self.spacing is not None and len(self.spacing) != ndim:
            raise ValueError(f"spacing is one number per space axis, {ndim}, got {self.spacing}")

    def __call__(
        self,
        field: Field,
        tree: Tree,
        *,
        boundary: Boundary = None,
        seen: Sequence[int] | None = None,
    ) -> Scores:
        """Computes the statistic of each node."""
        points = self.score_map(field, boundary=boundary, seen=seen)
        return STATISTICS[self.statistic](points[:, None], tree)[:, 0]

    def score_map(
        self, field: Field, *, boundary: Boundary = None, seen: Sequence[int] | None = None
    ) -> Float[Tensor, "b *s"]:
        """Computes the quantity at each grid point, in units of its mean."""
        self.check_channels(field.shape[2], field.ndim - 3)
        quantity, size = self.quantity(field.detach(), seen, boundary)
        quantity = quantity.mean(1)
        space = tuple(range(1, quantity.ndim))
        noise = quantity.amax(space, True) <= 4 * torch.finfo(quantity.dtype).eps * size
        return quantity / quantity.mean(space, True).masked_fill(noise, torch.inf)

    def quantity(
        self, field: Field, seen: Sequence[int] | None, boundary: Boundary
    ) -> tuple[Float[Tensor, "b f *s"], Float[Tensor, "b *1"]]:
        """Returns the quantity of each frame, and the size of what differences are taken of."""
        raise NotImplementedError

    def components(self, field: Field, seen: Sequence[int] | None) -> Float[Tensor, "b f k *s"]:
        """The components of the velocity in each frame; squares neither overflow nor vanish."""
        ndim = field.ndim - 3
        numbers = self.velocity or tuple(range(field.shape[2]) if seen is None else seen)[:ndim]
        parts = [field[:, :, number] for number in numbers]
        x = torch.stack(parts, 2).unflatten(2, (-1, min(ndim, len(parts)))).flatten(1, 2)
        return squarable(x, tuple(range(1, x.ndim)))

    def slopes(self, u: Tensor, boundary: Boundary) -> list[Float[Tensor, "b f k *s"]]:
        """Central differences of all components along each axis."""
        axes, out = range(3, u.ndim), []
        for axis, wrap in zip(axes, periodic_axes(boundary, len(axes), u), strict=True):
            step = 1.0 if self.spacing is None else self.spacing[axis - 3]
            out.append(stencil(u, axis, [-0.5 / step, 0.0, 0.5 / step], self.padding, wrap))
        return out


@INDICATORS.register("velocity_gradient")
class VelocityGradientIndicator(FlowIndicator):
    """Size of the velocity gradient, ``sqrt(sum_ij (du_i / dx_j)^2)``, of the cell's points."""

    def quantity(
        self, field: Field, seen: Sequence[int] | None, boundary: Boundary
    ) -> tuple[Float[Tensor, "b f *s"], Float[Tensor, "b *1"]]:
        """Returns the norm of the gradient."""
        u = self.components(field, seen)
        squares = [slope.square().sum(2) for slope in self.slopes(u, boundary)]
        return torch.stack(squares).sum(0).sqrt(), _size(u)


@INDICATORS.register("vorticity")
class VorticityIndicator(FlowIndicator):
    """Size of the vorticity, ``sqrt(sum_{i<j} (du_i / dx_j - du_j / dx_i)^2)``; 0 in 1D."""

    def quantity(
        self, field: Field, seen: Sequence[int] | None, boundary: Boundary
    ) -> tuple[Float[Tensor, "b f *s"], Float[Tensor, "b *1"]]:
        """Returns the norm of the antisymmetric part."""
        u = self.components(field, seen)
        slopes, total = self.slopes(u, boundary), torch.zeros_like(u[:, :, 0])
        for i, j in itertools.combinations(range(len(slopes)), 2):
            turn = -slopes[i][:, :, j] if j < u.shape[2] else 0
            if i < u.shape[2]:
                turn = turn + slopes[j][:, :, i]
            total += turn**2
        return total.sqrt(), _size(u)


@INDICATORS.register("momentum")
class MomentumIndicator(FlowIndicator):
    """Size of the momentum, ``|rho u|``. A surrogate's normalised fields have no such thing: let it
    score the raw ones (``score_on="raw"``).

    Args:
        density: its channel, or with a folded history that of each frame; None: 1 everywhere.
    """

    @checked
    def __init__(
        self,
        *,
        velocity: Channels | None = None,
        density: Channels | None = None,
        statistic: str = "max",
    ):
        super().__init__(velocity=velocity, statistic=statistic)
        self.density = role_of_channels("density", density)

    def check_channels(self, channels: int, ndim: int) -> None:
        """Raises ``ValueError`` for roles of channels that a field does not have, or too few."""
        super().check_channels(channels, ndim)
        check_role("density", self.density, channels)
        frames = 1 if self.velocity is None else len(self.velocity) // ndim
        if self.density is not None and len(self.density) not in (1, frames):
            raise ValueError(
                f"density has one channel, or one per frame of the velocity, {frames}; got "
                f"{list(self.density)}"
            )

    def quantity(
        self, field: Field, seen: Sequence[int] | None, boundary: Boundary
    ) -> tuple[Float[Tensor, "b f *s"], Float[Tensor, "b *1"]]:
        """Returns the norm of the momentum; nothing is subtracted, so rounding does not matter."""
        u = self.components(field, seen)
        momentum = u.square().sum(2).sqrt()
        if self.density is not None:
            rho = torch.stack([field[:, :, number] for number in self.density], 2)
            rho = squarable(rho, tuple(range(1, rho.ndim))).abs()
            momentum = momentum.unflatten(1, (field.shape[1], -1)) * rho
            momentum = momentum.flatten(1, 2)
        return momentum, torch.zeros_like(_size(u))


def role_of_channels(role: str, given: Channels | None) -> tuple[int, ...] | None:
    """Returns the channels of a role by number.

    Raises:
        ValueError: none, or names, which become numbers where the data set is known, in
            `adaptok.config.channels`.
    """
    if given is None:
        return None
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    numbers: tuple[Any, ...] = tuple(given) if listed else (given,)  # type: ignore[arg-type]
    if not numbers or any(isinstance(n, str) for n in numbers):
        raise ValueError(
            f"{role} is a list of channels by number, got {given!r}; names of fields go with "
            "adaptok train on one data set, which knows them"
        )
    return tuple(int(n) for n in numbers)


def check_role(role: str, numbers: tuple[int, ...] | None, channels: int) -> None:
    """Raises ``ValueError`` for a channel that a field does not have."""
    for number in numbers or ():
        if not -channels <= number < channels:
            raise ValueError(f"channel {number} as {role}: the field has {channels} channels")


def _size(u: Float[Tensor, "b f k *s"]) -> Float[Tensor, "b *1"]:
    return u.abs().amax((1, 2, *range(3, u.ndim)), True).squeeze((1, 2))
