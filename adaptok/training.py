"""Training: a Lightning module around a surrogate, and the trainer that fits it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor, nn

from adaptok.metrics import vrmse
from adaptok.model import Surrogate
from adaptok.optim import Optim
from adaptok.schedules import Schedule

Batch = Mapping[str, Tensor]


class SurrogateModule(L.LightningModule):
    """Trains a surrogate on one-step prediction.

    Args:
        surrogate: with the statistics of the training split set.
        optim: loss and optimiser.
        schedule: settings of each step, a function of the global step and so the same on all ranks.
        config: plain configuration to keep in checkpoints.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        optim: Optim,
        schedule: Schedule,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.surrogate, self.optim, self.schedule = surrogate, optim, schedule
        self.config = dict(config or {})
        self.tokens_per_sample = 0.0
        self.log_every = 50
        self._last, self._seconds, self._samples = time.perf_counter(), 0.0, 0
        self._total_seconds, self._total_batches = 0.0, 0
        surrogate.processor.register_forward_pre_hook(self._count_tokens)

    def _count_tokens(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        tokens = args[0]  # shapes only: asking for values would wait for the device
        self.tokens_per_sample = len(tokens.cells) / tokens.cells.batch_size

    def predict(self, batch: Batch, step: int) -> Tensor:
        """The next frame in physical units, with the settings of a step."""
        return self.surrogate(
            batch["input"],
            constants=batch.get("constants"),
            boundary=batch["boundary"],
            **self.schedule(step),
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        prediction, target = self.predict(batch, self.global_step), batch["target"][:, :1]
        view = (-1, *[1] * self.surrogate.ndim)
        mean, std = self.surrogate.mean.view(view), self.surrogate.std.view(view)
        loss = self.optim.loss_of(prediction, target, mean, std)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(target))
        self._samples += len(target) * self.trainer.world_size
        if self.global_step % self.log_every == 0:
            speed = self._samples / self._seconds if self._seconds else 0.0
            self._seconds, self._samples = 0.0, 0
            facts = {"tokens/sample": self.tokens_per_sample, "samples/s": speed}
            self.log_dict(facts, prog_bar=True, batch_size=len(target))
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return loss

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
        """Mean time of a training batch, without validation and without the first batch."""
        return self._total_seconds / max(self._total_batches - 1, 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """VRMSE, mean over samples and fields; batch i uses the settings of step i."""
        target = batch["target"][:, :1]
        error = vrmse(self.predict(batch, batch_idx).float(), target, self.surrogate.ndim)
        self.log("val/vrmse", error.mean(), prog_bar=True, batch_size=len(target), sync_dist=True)

    def on_train_start(self) -> None:
        """Does not count the set-up as training time."""
        self.log_every = getattr(self.trainer, "log_every_n_steps", self.log_every)
        self._last = time.perf_counter()

    def on_validation_end(self) -> None:
        """Does not count validation as training time."""
        self._last = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration, so that a checkpoint alone can be evaluated."""
        checkpoint["adaptok_config"] = self.config

    def configure_optimizers(self) -> Any:
        """AdamW with a learning rate per step."""
        optimizer = self.optim.optimizer(self)
        steps = self.trainer.max_steps
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.optim.learning_rate(step, steps) / self.optim.lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


class LastCheckpoint(Callback):
    """Keeps ``last.ckpt``: written every `every` optimiser steps and at the last one."""

    def __init__(self, path: Path, every: int):
        self.path, self.every, self.saved = path, every, -1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Saves once per step, also where a step takes several batches."""
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if due and step != self.saved:
            self.saved = step
            trainer.save_checkpoint(self.path)


class LineProgress(Callback):
    """Progress for logs and pipes: about twenty lines instead of a bar."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Prints loss, tokens per sample, samples per second."""
        step, last = trainer.global_step, int(trainer.max_steps)
        if step % max(last // 20, 1) == 0 or step == last:
            facts = {k: float(v) for k, v in trainer.progress_bar_metrics.items()}
            print(f"step {step}/{last}  " + "  ".join(f"{k} {v:.4g}" for k, v in facts.items()))
            sys.stdout.flush()


def make_trainer(
    folder: str | Path,
    *,
    ema: float = 0.99,
    wandb: Mapping[str, Any] | None = None,
    precision: str = "auto",
    **knobs: Any,
) -> L.Trainer:
    """A trainer that keeps metrics.csv and checkpoints/{best,last}.ckpt in `folder`.

    Args:
        ema: decay of the averaged weights, which validation uses and which the fit ends with.
        wandb: arguments of Lightning's WandbLogger, or None.
        precision: "auto" (bf16-mixed on CUDA, else 32-true) or one of Lightning's.
        knobs: of lightning.Trainer; `val_check_interval` counts optimiser steps.
    """
    folder = Path(folder)
    if precision == "auto":
        cuda = knobs.get("accelerator", "auto") != "cpu" and torch.cuda.is_available()
        precision = "bf16-mixed" if cuda else "32-true"
    every = knobs.pop("val_check_interval", 1000)
    callbacks: list[Callback] = [EMAWeightAveraging(decay=ema, use_buffers=False)]
    if knobs.get("enable_progress_bar", True):
        knobs["enable_progress_bar"] = sys.stderr.isatty()
        callbacks.append(TQDMProgressBar(refresh_rate=5) if sys.stderr.isatty() else LineProgress())
    best = ModelCheckpoint(
        folder / "checkpoints", "best", monitor="val/vrmse", enable_version_counter=False
    )
    callbacks += [LastCheckpoint(folder / "checkpoints" / "last.ckpt", every), best]
    loggers: list[Any] = [CSVLogger(folder, name="", version="")]
    if wandb is not None:
        loggers.append(WandbLogger(save_dir=folder, **wandb))
    return L.Trainer(
        default_root_dir=folder,
        callbacks=callbacks,
        logger=loggers,
        precision=precision,  # type: ignore[arg-type]
        check_val_every_n_epoch=None,
        val_check_interval=every * knobs.get("accumulate_grad_batches", 1),
        num_sanity_val_steps=0,
        enable_model_summary=False,
        **knobs,
    )
