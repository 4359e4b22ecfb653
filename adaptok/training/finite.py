"""Stops a training that has left the finite numbers."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from adaptok.training.parallel import local_part
from adaptok.training.saving import Checkpoints
from adaptok.utils.reading import reads_are_free

NEVER = 2**62


class Finite(Callback):
    """Ends the fit when a loss, or a weight that would be saved, is not finite.

    On the CPU every batch is looked at. Elsewhere, and with several processes, each device keeps
    the first step, which is read when a value is logged or a checkpoint is due: no other step waits
    for it.

    Args:
        checkpoints: comes later among the callbacks, so that it saves nothing of such a step.

    Raises:
        ValueError: in the fit; names the step and the last good checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self._number = 0  # of the step that the batch belongs to
        self._first = torch.tensor(NEVER)  # step of the first loss that was not finite

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets what was seen before."""
        self._first = torch.full((), NEVER, device=pl_module.device)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Counts steps from 1."""
        self._number = trainer.global_step + 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Looks at the loss of a batch, and at the weights before they are saved."""
        if "loss" in outputs:
            bad = ~torch.isfinite(outputs["loss"].detach())
            self._first = torch.where(bad, self._first.clamp(max=self._number), self._first)
        step, steps = trainer.global_step, self.checkpoints.steps
        saves = step == self._number and (steps.is_due(step) or step == steps.last)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs = step == self._number and bool(every) and step % every == 0
        if saves or logs or (reads_are_free(self._first) and trainer.world_size == 1):
            first = int(trainer.strategy.reduce(self._first.clone(), reduce_op="min"))
            if first < NEVER:
                self._stop(f"the training loss is not finite in step {first}")
        if saves:
            parts = [local_part(weight.detach()) for weight in pl_module.parameters()]
            fine = all(bool(part.isfinite().all()) for part in parts)
            if not trainer.strategy.reduce_boolean_decision(fine):
                self._stop(f"the weights are not finite after step {step}")

    def _stop(self, reason: str) -> None:
        there = self.checkpoints.last_good()
        raise ValueError(f"{reason}; {there}. A lower learning rate (optim.lr) may help")
