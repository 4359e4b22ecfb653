"""Steps are not batches: what a step's gradient is the mean of, and when validations are due."""

from __future__ import annotations

import math
import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

NEVER = sys.maxsize


def steps_per_epoch(batches: float, accumulate: int = 1, limit: float | None = None) -> float:
    """Counts the optimizer steps of an epoch; the last one may have fewer batches.

    Args:
        batches: of one process; infinite if unknown.
        accumulate: batches per step.
        limit: ``limit_train_batches`` of Lightning: a number of batches, or a share (float).
    """
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return batches if math.isinf(batches) else max(math.ceil(batches / accumulate), 1)


class Steps(Callback):
    """Makes every gradient the mean over the batches of its step, and validates every few steps.

    Lightning divides each batch by ``accumulate_grad_batches``, also in the last step of an epoch,
    which may have fewer, and counts the interval of validations in batches.

    Args:
        every: optimizer steps from one validation to the next; None for once per epoch. A shorter
            training is validated at its end.

    Raises:
        ValueError: `every` is no positive integer.
    """

    def __init__(self, every: int | None):
        if every is not None and (type(every) is not int or every < 1):
            raise ValueError(
                "val_check_interval counts optimizer steps, from 1, or is None for once per epoch, "
                f"got {every!r}"
            )
        self.given = every
        self.every, self.last = every or NEVER, float("inf")
        self._step = self._batches = 0
        self._validated = -1

    def state_dict(self) -> dict[str, Any]:
        """Keeps the step of the last validation."""
        return {"validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the step of the last validation."""
        self._validated = state_dict["validated"]

    def is_due(self, step: int) -> bool:
        """Tells whether a validation and a checkpoint follow this step."""
        return step > 0 and step % self.every == 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts the steps of the training, whether its end is given in steps or in epochs."""
        epoch = steps_per_epoch(trainer.num_training_batches, trainer.accumulate_grad_batches)
        self.last = trainer.estimated_stepping_batches
        self.every = int(min(self.given or epoch, self.last, NEVER))
        self._step, self._batches = trainer.global_step, 0
        # As it was when the checkpoint was saved, or Lightning counts on from another place.
        self._plan(trainer, self._validated == self._step)

    def on_train_batch_start(self, *_: Any) -> None:
        """Counts the batches of a step."""
        self._batches += 1

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Divides the sum of the gradients by the number of batches that are in it."""
        expected = trainer.accumulate_grad_batches
        if self._batches == expected:
            return
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.mul_(expected / self._batches)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Lets Lightning validate after this batch, or not."""
        stepped = trainer.global_step != self._step
        if stepped:
            self._step, self._batches = trainer.global_step, 0
        self._plan(trainer, stepped and self.is_due(self._step))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers the step, for checkpoints."""
        self._validated = trainer.global_step

    def _plan(self, trainer: L.Trainer, due: bool) -> None:
        trainer.val_check_batch = 1 if due else NEVER
