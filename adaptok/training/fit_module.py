"""A base for the Lightning modules of all tasks: seeds, speed, learning rates, checkpoints."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from adaptok.training.checkpoints import fingerprint
from adaptok.training.optim import OptimBase
from adaptok.utils.auxiliary import Auxiliary


class FitModule(L.LightningModule):
    """A Lightning module whose run is a function of its configuration.

    The learning rate and the random numbers of a step depend only on (seed, step), so that a
    resumed run continues as if it had never stopped.

    Args:
        optim: optimizer and learning rate.
        config: plain configuration to keep in checkpoints.
        seed: of the random numbers of training, such as those of drop path.
    """

    def __init__(self, optim: OptimBase, config: Mapping[str, Any] | None = None, *, seed: int = 0):
        super().__init__()
        self.optim, self.config, self.seed = optim, dict(config or {}), seed
        self.tokens_per_sample: float | None = None
        self.data_fingerprint: dict[str, Any] = {}
        self._last, self._seconds, self._samples = time.perf_counter(), 0.0, 0
        self._total_seconds, self._total_batches, self._first_step = 0.0, 0, 0
        self._losses: tuple[int, list[Tensor]] = (-1, [])  # of the batches of a step

    def setup(self, stage: str) -> None:
        """Remembers what the training data is, for checkpoints."""
        if stage == "fit":
            self.data_fingerprint = fingerprint(getattr(self.trainer, "datamodule", None))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds the random numbers of this batch, differently on each rank."""
        place = f"{self.seed}/{self.global_step}/{batch_idx}/{self.global_rank}"
        torch.manual_seed(random.Random(place).getrandbits(63))

    def log_step(self, loss: Tensor, size: int, auxiliary: Auxiliary | None = None) -> None:
        """Logs the loss, the mean over the batches of a step, and what parts report for a batch of
        `size` samples; every `log_every_n_steps` also speed and learning rate."""
        if self._losses[0] != self.global_step:
            self._losses = self.global_step, []
        self._losses[1].append(loss.detach())
        mean = torch.stack(self._losses[1]).mean()
        self.log("train/loss", mean, prog_bar=True, batch_size=size, sync_dist=True)
        if auxiliary is not None and auxiliary.figures:
            figures = {f"train/aux/{name}": value for name, value in auxiliary.figures.items()}
            self.log_dict(figures, batch_size=size)
        self._samples += size * self.trainer.world_size
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.global_step % every == 0:
            facts = {}
            if self.tokens_per_sample is not None:
                facts["tokens/sample"] = self.tokens_per_sample
            if self._seconds:  # no batch has ended before the first line
                facts["samples/s"] = self._samples / self._seconds
                self._seconds, self._samples = 0.0, 0
            self.log_dict(facts, prog_bar=True, batch_size=size)
            self.log("lr", max(g["lr"] for g in self.trainer.optimizers[0].param_groups))

    def on_train_batch_end(self, *_: Any) -> None:
        """Counts the time since the last batch, loading included."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        if self._total_batches:  # the first batch also warms up
            self._total_seconds += elapsed
        self._total_batches += 1
        self._seconds += elapsed

    @property
    def seconds_per_step(self) -> float:
        """Mean time of an optimizer step with all its batches, validation and the first batch
        excluded."""
        per_batch = self._total_seconds / max(self._total_batches - 1, 1)
        return per_batch * self._total_batches / max(self.global_step - self._first_step, 1)

    def real_samples(self, batch_idx: int, size: int, dataloader_idx: int = 0) -> Tensor:
        """Mask (size,) of samples that are not padding added by the distributed sampler.

        It repeats the last samples so that all ranks have the same number; sample i of a rank is
        number ``i * ranks + rank`` of the split.
        """
        loaders: Any = self.trainer.val_dataloaders
        loader = loaders[dataloader_idx] if isinstance(loaders, list) else loaders
        first = batch_idx * loader.batch_size
        number = torch.arange(first, first + size, device=self.device)
        return number * self.trainer.world_size + self.global_rank < len(loader.dataset)

    def on_train_start(self) -> None:
        """Starts to count time and steps, without the set-up and any fit before; says if the
        learning rate does not get to its end.
        """
        line = self.optim.unfinished(self.trainer.estimated_stepping_batches)
        if line is not None and self.trainer.is_global_zero:
            print(f"warning: {line}")
        self._last, self._seconds, self._samples = time.perf_counter(), 0.0, 0
        self._total_seconds, self._total_batches = 0.0, 0
        self._first_step = self.global_step

    def on_validation_end(self) -> None:
        """Excludes validation from the training time."""
        self._last = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration, so that a checkpoint suffices for evaluation."""
        checkpoint["adaptok_config"] = self.config
        checkpoint["adaptok_data"] = self.data_fingerprint

    def configure_optimizers(self) -> Any:
        """Makes the optimizer and the schedule of its learning rate."""
        optimizer = self.optim.make_optimizer(self)

        def factor(step: int) -> float:
            # The first rate is the same for every number of steps, which Lightning knows later.
            steps = self.trainer.estimated_stepping_batches if step else math.inf
            return self.optim.learning_rate(step, steps) / self.optim.lr

        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}
