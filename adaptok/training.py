"""Training: a Lightning module around a surrogate, and the trainer that fits it."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor, nn

from adaptok.averaging import Averaging
from adaptok.forecast import OneStepModel
from adaptok.metrics import vrmse
from adaptok.optim import LOSSES, Optim
from adaptok.parallel import make_strategy, shard
from adaptok.saving import AtomicIO, Checkpoints
from adaptok.schedules import Schedule

Batch = Mapping[str, Tensor]


class SurrogateModule(L.LightningModule):
    """Trains a surrogate, or a baseline, on the next frames.

    A run is a function of its configuration: the settings, the learning rate and the random numbers
    of a step depend on (seed, step) alone, so that a resumed run goes on as it would have.

    Args:
        surrogate: with the statistics of the training split set.
        optim: loss and optimiser.
        schedule: settings of each step, a function of the global step and so the same on all ranks.
        config: plain configuration to keep in checkpoints.
        seed: of the random numbers of training, such as those of drop path.
    """

    def __init__(
        self,
        surrogate: OneStepModel,
        optim: Optim,
        schedule: Schedule,
        config: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
    ):
        super().__init__()
        self.surrogate, self.optim, self.schedule = surrogate, optim, schedule
        self.config, self.seed = dict(config or {}), seed
        self.tokens_per_sample: float | None = None
        self.log_every = 50
        self._last, self._seconds, self._samples = time.perf_counter(), 0.0, 0
        self._total_seconds, self._total_batches = 0.0, 0
        self._errors: list[Tensor] = []
        processor = getattr(surrogate, "processor", None)
        if isinstance(processor, nn.Module):
            processor.register_forward_pre_hook(self._count_tokens)

    def _count_tokens(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        tokens = args[0]  # shapes only: asking for values would wait for the device
        self.tokens_per_sample = len(tokens.cells) / tokens.cells.batch_size

    def configure_model(self) -> None:
        """Shards the weights where the strategy is FSDP2."""
        if self.device_mesh is not None:
            shard(self.surrogate, self.device_mesh["data_parallel"])

    def predict(self, batch: Batch, step: int, *, all_frames: bool = False) -> Tensor:
        """The next frame in physical units (or that after each), with the settings of a step."""
        return self.surrogate(
            batch["input"],
            constants=batch.get("constants"),
            boundary=batch["boundary"],
            all_frames=all_frames,
            **self.schedule(step),
        )

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean loss over the steps that are predicted in a row, in units of `optim.loss_unit`."""
        optim, history, view = self.optim, self.surrogate.history, (-1, *[1] * self.surrogate.ndim)
        mean, std = self.surrogate.mean.view(view), self.surrogate.std.view(view)
        frames, window = torch.cat([batch["input"], batch["target"]], 1), batch["input"]
        if frames.shape[1] < history + optim.unroll:
            raise ValueError(
                f"optim.unroll={optim.unroll} needs as many target frames, the data has "
                f"{frames.shape[1] - history}: target_steps={optim.unroll}"
            )
        every, total = optim.loss_frames == "all", mean.new_zeros(())
        for ahead in range(1, optim.unroll + 1):
            prediction = self.predict({**batch, "input": window}, step, all_frames=every)
            target = frames[:, ahead if every else ahead + history - 1 : ahead + history]
            unit = std if optim.loss_unit == "std" else self.surrogate.scale(window)
            error = (prediction - target) / unit
            total = total + LOSSES[optim.loss](error, (target - mean) / std) / optim.unroll
            last = prediction[:, -1:]
            window = torch.cat([window[:, 1:], last if optim.through_time else last.detach()], 1)
        return total

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds the random numbers of this batch, others on each rank."""
        place = f"{self.seed}/{self.global_step}/{batch_idx}/{self.global_rank}"
        torch.manual_seed(random.Random(place).getrandbits(63))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss, size = self.loss(batch, self.global_step), len(batch["target"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self._samples += size * self.trainer.world_size
        if self.global_step % self.log_every == 0:
            speed = self._samples / self._seconds if self._seconds else 0.0
            self._seconds, self._samples = 0.0, 0
            facts = {"samples/s": speed}
            if self.tokens_per_sample is not None:
                facts = {"tokens/sample": self.tokens_per_sample, **facts}
            self.log_dict(facts, prog_bar=True, batch_size=size)
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

    def on_validation_epoch_start(self) -> None:
        """Forgets the last validation."""
        self._errors = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """VRMSE, mean over samples and fields; batch i uses the settings of step i."""
        target = batch["target"][:, :1]
        error = vrmse(self.predict(batch, batch_idx).float(), target, self.surrogate.ndim)
        # With several processes the last samples are repeated, so that all have as many: sample i
        # of a rank is number i * ranks + rank of the split.
        loader: Any = self.trainer.val_dataloaders
        ranks = self.trainer.world_size
        first = batch_idx * loader.batch_size
        number = torch.arange(first, first + len(target), device=error.device)
        real = number * ranks + self.global_rank < len(loader.dataset)
        self._errors.append(torch.stack([(error.flatten(1).mean(1) * real).sum(), real.sum()]))

    def on_validation_epoch_end(self) -> None:
        """The mean over all samples of all ranks."""
        total = self.trainer.strategy.reduce(torch.stack(self._errors).sum(0), reduce_op="sum")
        self.log("val/vrmse", total[0] / total[1], prog_bar=True)

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
        checkpoint["adaptok_model"] = dict(self.surrogate.config or {})

    def configure_optimizers(self) -> Any:
        """AdamW with a learning rate per step."""
        optimizer = self.optim.optimizer(self)
        steps = self.trainer.max_steps
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.optim.learning_rate(step, steps) / self.optim.lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


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
    strategy: str = "auto",
    **knobs: Any,
) -> L.Trainer:
    """A trainer that keeps metrics.csv and checkpoints/{best,last}.ckpt in `folder`.

    Args:
        ema: decay of the averaged weights, which validation uses and which the fit ends with.
        wandb: arguments of Lightning's WandbLogger, or None.
        strategy: "fsdp" shards weights over the processes (FSDP2); else one of Lightning's, such as
            "ddp".
        precision: "auto" (bf16-mixed on CUDA, else 32-true) or one of Lightning's.
        knobs: of lightning.Trainer; `val_check_interval` counts optimiser steps.
    """
    folder = Path(folder)
    if precision == "auto":
        cuda = knobs.get("accelerator", "auto") != "cpu" and torch.cuda.is_available()
        precision = "bf16-mixed" if cuda else "32-true"
    every = knobs.pop("val_check_interval", 1000)
    callbacks: list[Callback] = [Averaging(ema)]
    if knobs.get("enable_progress_bar", True):
        knobs["enable_progress_bar"] = sys.stderr.isatty()
        callbacks.append(TQDMProgressBar(refresh_rate=5) if sys.stderr.isatty() else LineProgress())
    callbacks.append(Checkpoints(folder / "checkpoints", every))
    loggers: list[Any] = [CSVLogger(folder, name="", version="")]
    if wandb is not None:
        loggers.append(WandbLogger(save_dir=folder, **wandb))
    places = (knobs.get("accelerator", "auto"), knobs.get("devices", 1), knobs.get("num_nodes", 1))
    return L.Trainer(
        default_root_dir=folder,
        strategy=make_strategy(strategy, *places),
        plugins=[AtomicIO()],
        callbacks=callbacks,
        logger=loggers,
        precision=precision,  # type: ignore[arg-type]
        check_val_every_n_epoch=None,
        val_check_interval=every * knobs.get("accumulate_grad_batches", 1),
        num_sanity_val_steps=0,
        enable_model_summary=False,
        **knobs,
    )
