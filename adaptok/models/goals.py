"""Goals: where errors matter for what a user will measure, by the gradient of the model itself.

Dual-weighted residuals (Becker & Rannacher, "An optimal control approach to a posteriori error
estimation", Acta Numerica 10, 2001), with a surrogate in place of the adjoint equations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Annotated, Any

import torch
from annotated_types import Len
from jaxtyping import Float
from torch import Tensor

from adaptok.registry import close_matches
from adaptok.utils.arguments import NonNegative, Positive, check_fields, shown

Span = NonNegative | Annotated[Sequence[NonNegative], Len(2, 2)]  # a point, or start and stop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What a user will measure in the next steps: the mean of a region and of channels, each in its
    own units, over these steps; or any functional.

    Attributes:
        region: per space axis a grid point, or a start and a stop; None is the whole domain.
        channels: that are measured, by number (in a test by name, too); None is all.
        functional: in their place, a function of what is predicted, (b, ahead, c, *space) in
            physical units, with one number per sample (b,).
        ahead: steps that are looked ahead.
        every: steps of a rollout after which the gradient is computed anew.

    Raises:
        ValueError: wrong values, or a functional beside a region or channels.
    """

    region: Annotated[Sequence[Span], Len(1, 3)] | None = None
    channels: Annotated[Sequence[NonNegative], Len(1)] | None = None
    functional: Callable[[Tensor], Tensor] | None = None
    ahead: Positive = 1
    every: Positive = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.functional is not None and (self.region, self.channels) != (None, None):
            raise ValueError("a goal is a functional, or the mean of a region and of channels")

    @classmethod
    def of(cls, goal: Any) -> Goal:
        """Returns a goal, or makes it from a mapping.

        Raises:
            ValueError: neither, or an unknown name.
        """
        if isinstance(goal, Goal):
            return goal
        if not isinstance(goal, Mapping):
            given = shown(goal)
            raise ValueError(f"a goal is a mapping such as {{region: [12, [0, 8]]}}, got {given}")
        names = [field.name for field in dataclasses.fields(cls)]
        for name in goal:
            if name not in names:
                known, near = ", ".join(names), close_matches(name, names)
                raise ValueError(f"a goal has no {name!r}{near}; it has {known}")
        return cls(**goal)

    def measured(
        self, frames: Float[Tensor, "b t c *s"], unit: Float[Tensor, "..."]
    ) -> Float[Tensor, " b"]:
        """Computes what is measured of predicted frames.

        Args:
            unit: of each channel; broadcasts against the frames.

        Raises:
            ValueError: a region or channel that does not exist, or a functional with another
                result.
        """
        if self.functional is not None:
            made = self.functional(frames)
            if not isinstance(made, Tensor) or made.shape != frames.shape[:1]:
                raise ValueError(f"a functional gives a number per sample, got {shown(made)}")
            return made
        count, space = frames.shape[2], tuple(frames.shape[3:])
        channels = list(range(count)) if self.channels is None else list(self.channels)
        if max(channels) >= count:
            raise ValueError(
                f"a goal measures channel {max(channels)}, but the model predicts {count} channels "
                f"(0 to {count - 1})"
            )
        part = (frames / unit)[:, :, channels]
        return part[(..., *self._slices(space))].flatten(1).mean(1)

    def _slices(self, space: tuple[int, ...]) -> list[slice]:
        if self.region is None:
            return [slice(None)] * len(space)
        region: Sequence[Any] = self.region
        spans = [(int(p), int(p) + 1) if isinstance(p, Integral) else tuple(p) for p in region]
        pairs = zip(spans, space, strict=False)
        if len(spans) != len(space) or not all(a < b <= n for (a, b), n in pairs):
            raise ValueError(
                f"the region {self.region} of a goal does not lie inside the domain {space}"
            )
        return [slice(*span) for span in spans]


def felt(
    step: Callable[[Tensor], Tensor],
    field: Float[Tensor, "b t c *s"],
    goal: Goal,
    unit: Float[Tensor, "..."],
    scored: Float[Tensor, "..."],
) -> Float[Tensor, "b *s"]:
    """Computes how strongly a goal feels each grid point of a field: the square of its gradient in
    units of what is scored, summed over channels and frames; 1 on average over the domain.

    A sample of which the goal feels nothing has 1 everywhere. Gradients go through predictions, not
    through the choice of cells, which is piecewise constant.

    Args:
        step: predicts the next frame.
        field: history.
        goal: what is measured.
        unit: of each channel, in which it is measured; broadcasts against the field.
        scored: of each channel, in which the indicator sees it; likewise.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # copies, because tensors of inference_mode have no place in a graph
        start, unit = field.detach().clone().requires_grad_(), unit.clone()
        window, frames = start, []
        for _ in range(goal.ahead):
            frames.append(step(window))
            window = torch.cat([window[:, 1:], frames[-1]], 1)
        total = goal.measured(torch.cat(frames, 1), unit).sum()
        (slope,) = torch.autograd.grad(total, start)
    slope = (slope * scored).nan_to_num(0, 0, 0)
    slope = slope / slope.abs().amax(tuple(range(1, slope.ndim)), keepdim=True).clamp(min=1e-30)
    square = slope.square().sum((1, 2))
    mean = square.flatten(1).mean(1).view(-1, *[1] * (square.ndim - 1))
    return torch.where(mean > 0, square / mean.clamp(min=1e-30), 1)
