"""The forecast that every model has to beat: tomorrow is like today."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from adaptok.data.info import FieldInfo

EPS = 1e-7  # the Well's


class DataModule(Protocol):
    """What is needed of a data module."""

    @property
    def info(self) -> FieldInfo: ...  # noqa: D102

    def loader(self, split: str) -> DataLoader: ...  # noqa: D102


@dataclass(frozen=True)
class Persistence:
    """VRMSE of a copy of the last input frame.

    Attributes:
        mean: over samples, frames and channels.
        median: over samples, frames and channels.
        per_field: mean for each channel.
        median_per_field: median for each channel.
    """

    mean: float
    median: float
    per_field: dict[str, float]
    median_per_field: dict[str, float]


def persistence_vrmse(data: DataModule, split: str = "test") -> Persistence:
    """VRMSE of the forecast that repeats the last input frame, on one split.

    Args:
        data: a module that has been set up.
        split: "train", "valid" or "test".
    """
    values = torch.cat([_vrmse(batch, data.info.ndim) for batch in data.loader(split)])
    names = data.info.fields
    return Persistence(
        mean=values.mean().item(),
        median=values.median().item(),
        per_field=dict(zip(names, values.mean(0).tolist(), strict=True)),
        median_per_field=dict(zip(names, values.median(0).values.tolist(), strict=True)),
    )


def _vrmse(batch: dict[str, Tensor], ndim: int) -> Tensor:
    """VRMSE per sample and frame (rows) and channel, as the Well defines it, (n, c)."""
    target = batch["target"]
    space = tuple(range(-ndim, 0))
    error = (target - batch["input"][:, -1:]).square().mean(space)
    return (error / (target.var(space) + EPS)).sqrt().flatten(0, 1)
