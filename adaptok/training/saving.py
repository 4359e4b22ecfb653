"""Writes checkpoints that are either complete or absent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from adaptok.training.steps import Steps
from adaptok.utils.atomic import replacing
from adaptok.utils.disk import why_full


class Checkpoints(Checkpoint):
    """Keeps ``last.ckpt`` and ``best.ckpt`` (lowest value of a metric).

    Both are written after a validation, the best one first, so that a run that is resumed from
    last.ckpt has lost no validation; the last one also at the end. With :class:`AtomicIO`, a full
    disk or a kill at any moment leaves the previous ones.

    Args:
        folder: of the checkpoints.
        steps: says when validations are due.
        monitor: name of the metric.
    """

    def __init__(self, folder: Path, steps: Steps, monitor: str = "val/vrmse"):
        self.folder, self.steps, self.monitor = folder, steps, monitor
        self.saved = 0  # step of `file`
        self.file: Path | None = None
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Keeps the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best value."""
        self.best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the step of a checkpoint for saved, and its best value if best.ckpt is here."""
        self.saved = trainer.global_step
        self.file = None if trainer.ckpt_path is None else Path(trainer.ckpt_path)
        if not trainer.strategy.broadcast((self.folder / "best.ckpt").is_file()):
            self.best = None

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Saves after a step that no validation follows."""
        step = trainer.global_step
        validated = self.steps.is_due(step) and trainer.enable_validation
        if not validated and (self.steps.is_due(step) or step == self.steps.last):
            self._save_last(trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Saves, in training, also as the best if the validation is that; NaN is the worst."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None:
            error = math.inf if math.isnan(value) else float(value)
            if self.best is None or error < self.best:
                self.best = error
                self._save(trainer, "best")
        self._save_last(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves where something else ended the training, such as a time limit."""
        self._save_last(trainer)

    def _save_last(self, trainer: L.Trainer) -> None:
        """Saves once per step, even if a step takes several batches."""
        if trainer.global_step != self.saved:
            self._save(trainer, "last")
            self.saved, self.file = trainer.global_step, self.folder / "last.ckpt"

    def _save(self, trainer: L.Trainer, name: str) -> None:
        try:
            for logger in trainer.loggers:  # a resumed run does not log again what came before
                logger.save()
            trainer.save_checkpoint(self.folder / f"{name}.ckpt")  # all ranks: they gather shards
        except OSError as error:
            raise OSError(f"{error}; {self.last_good()}") from error

    def last_good(self) -> str:
        """Says from which checkpoint the training can resume, if any."""
        if self.file is None:
            return "there is no checkpoint before it"
        return f"the last good checkpoint is {self.file}, of step {self.saved}"


class AtomicIO(TorchCheckpointIO):
    """Writes a checkpoint through :func:`replacing`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes the whole file or none of it.

        Raises:
            OSError: the disk is full or the like.
        """
        path = Path(path)
        step = checkpoint.get("global_step")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Given a name, torch says nothing of a full disk.
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = why_full(error) or error
            raise OSError(f"cannot write {path}, of step {step}: {reason}") from error
