"""Training of one model on several data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adaptok.data import FieldInfo
from adaptok.data.info import system_of
from adaptok.models.multiphysics import FieldSystem, Multiphysics
from adaptok.models.schedules import Schedule
from adaptok.training.module import Batch, SurrogateModule
from adaptok.training.optim import Optim


class PretrainModule(SurrogateModule):
    """Trains a model on batches of several sets; each set has its normalisation and its share of
    the validation.

    Args:
        model: that knows all fields of all sets.
        infos: of the sets, by the names that batches have under "set".
        optim: as of `SurrogateModule`.
        schedule: likewise.
        config: likewise.
        seed: likewise.
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
        # in a dict, where torch does not look: their weights are those of the model
        self.systems = {name: system_of(model, info) for name, info in infos.items()}

    def model_of(self, batch: Batch) -> FieldSystem:
        """The system that a batch is from."""
        return self.systems[batch["set"][0]]

    def on_fit_start(self) -> None:
        """Moves the statistics of the systems, which no one else knows of."""
        for system in self.systems.values():
            system.to(self.device)
