"""Trains one model on several data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptok.data import FieldInfo
from adaptok.data.info import system_of
from adaptok.models.multiphysics import FieldSystem, Multiphysics
from adaptok.models.schedules import Schedule
from adaptok.training.optim import Optim
from adaptok.training.surrogate_module import Batch, SurrogateModule


class PretrainModule(SurrogateModule):
    """Trains a model on batches of several sets, each normalised and validated separately.

    Args:
        model: knows the fields of all sets.
        infos: of the sets, by the names that batches have under "set".
        optim: see `SurrogateModule`, like the rest.
    """

    def __init__(
        self,
        model: Multiphysics,
        infos: Mapping[str, FieldInfo],
        optim: Optim,
        schedule: Schedule,
        config: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
    ):
        super().__init__(model, optim, schedule, config, seed=seed)
        # a dict hides them from torch, which has their weights through the model
        self.systems = {name: system_of(model, info) for name, info in infos.items()}

    def model_of(self, batch: Batch) -> FieldSystem:
        """Returns the system of a batch."""
        return self.systems[batch["set"][0]]

    def on_fit_start(self) -> None:
        """Moves the statistics of the systems, which Lightning does not see."""
        for system in self.systems.values():
            system.to(self.device)
