"""Losses and figures that a part reports beside its output, such as the rate of a learned gate.

A part calls `report_loss` or `report_figure` in its forward pass; that does nothing unless somebody
collects. Training collects around the forward pass, adds the losses to the objective and logs all
of it; evaluation collects the figures of the test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Auxiliary:
    """What parts reported: scalars by name; a name that is reported again replaces the older value.

    Attributes:
        losses: weighted, differentiable.
        figures: detached.
    """

    losses: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    figures: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def total(self) -> Tensor | float:
        """Sum of the losses; 0.0 without any."""
        return torch.stack(list(self.losses.values())).sum() if self.losses else 0.0


_COLLECTORS: list[Auxiliary] = []  # a plain list, which torch.compile can trace


@contextmanager
def collect_auxiliary() -> Iterator[Auxiliary]:
    """Collects what parts report inside the block; an inner block takes it from an outer one."""
    collected = Auxiliary()
    _COLLECTORS.append(collected)
    try:
        yield collected
    finally:
        _COLLECTORS.remove(collected)


def is_collecting() -> bool:
    """Whether somebody collects what parts report."""
    return bool(_COLLECTORS)


def report_loss(name: str, value: Tensor, *, weight: float = 1.0) -> None:
    """Adds ``weight * value``, a scalar, to the training objective, and `value` to the figures."""
    if _COLLECTORS:
        _COLLECTORS[-1].losses[name] = weight * value
        _COLLECTORS[-1].figures[name] = value.detach()


def report_figure(name: str, value: Tensor) -> None:
    """Reports a scalar that is logged and not trained on."""
    if _COLLECTORS:
        _COLLECTORS[-1].figures[name] = value.detach()
