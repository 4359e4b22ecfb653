"""Writes checkpoints that are either complete or absent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from adaptok.utils.atomic import replacing


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` and ``best.ckpt`` (lowest value of a metric).

    The last one is written every `every` optimizer steps and at the end, the best one after a
    validation; with :class:`AtomicIO`, a full disk or a kill at any moment leaves the previous one.

    Args:
        folder: of the checkpoints.
        every: optimizer steps from one last.ckpt to the next.
        monitor: name of the metric.
    """

    def __init__(self, folder: Path, every: int, monitor: str = "val/vrmse"):
        self.folder, self.every, self.monitor = folder, every, monitor
        self.saved, self.best = -1, math.inf

    def state_dict(self) -> dict[str, Any]:
        """Keeps the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best value."""
        self.best = state_dict["best"]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Saves once per step, even if a step takes several batches."""
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if due and step != self.saved:
            self.saved = step
            self._save(trainer, "last")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Saves if the validation is the best so far."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and float(value) < self.best:
            self.best = float(value)
            self._save(trainer, "best")

    def _save(self, trainer: L.Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")  # all ranks: they gather shards


class AtomicIO(TorchCheckpointIO):
    """Writes a checkpoint through :func:`replacing`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes the whole file or none of it.

        Raises:
            OSError: the disk is full or the like; says what is left.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            there = f"the previous {path} is whole" if path.exists() else "there is none before it"
            raise OSError(
                f"cannot write the checkpoint of step {checkpoint.get('global_step')} ({error}); "
                f"{there}"
            ) from error
