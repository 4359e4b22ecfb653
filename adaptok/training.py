"""Training: a Lightning module around a surrogate, and the trainer that fits it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch import Tensor, nn

from adaptok.averaging import Averaging
from adaptok.fitting import FitModule
from adaptok.forecast import OneStepModel
from adaptok.metrics import vrmse
from adaptok.multiphysics import Multiphysics
from adaptok.optim import Optim
from adaptok.parallel import make_strategy, shard
from adaptok.saving import AtomicIO, Checkpoints
from adaptok.schedules import Schedule

Batch = Mapping[str, Any]  # tensors, and names of sets


class SurrogateModule(FitModule):
    """Trains a surrogate, or a baseline, on the next frames.

    Args:
        surrogate: a one-step model with the statistics of the training split set.
        optim: loss and optimiser.
        schedule: settings of each step, a function of the global step and so the same on all ranks.
        config: plain configuration to keep in checkpoints.
        seed: of the random numbers of training, such as those of drop path.
    """

    optim: Optim

    def __init__(
        self,
        surrogate: OneStepModel | Multiphysics,
        optim: Optim,
        schedule: Schedule,
        config: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
    ):
        super().__init__(optim, config, seed=seed)
        self.surrogate: Any = surrogate
        self.schedule = schedule
        self._errors: dict[str, list[Tensor]] = {}
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

    def model_of(self, batch: Batch) -> OneStepModel:
        """The model for the fields of a batch."""
        return self.surrogate

    def predict(self, batch: Batch, step: int, *, all_frames: bool = False) -> Tensor:
        """The next frame in physical units (or that after each), with the settings of a step; the
        frame at "lead_time" where the batch has one."""
        lead = {"lead_time": batch["lead_time"]} if "lead_time" in batch else {}
        return self.model_of(batch)(
            batch["input"],
            constants=batch.get("constants"),
            boundary=batch["boundary"],
            all_frames=all_frames,
            **self.schedule(step),
            **lead,
        )

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Mean loss over the steps that are predicted in a row."""
        optim, model = self.optim, self.model_of(batch)
        history, view = model.history, (-1, *[1] * model.ndim)
        mean, std = model.mean.view(view), model.std.view(view)
        frames, window = torch.cat([batch["input"], batch["target"]], 1), batch["input"]
        if frames.shape[1] < history + optim.unroll:
            raise ValueError(
                f"optim.unroll={optim.unroll} needs as many target frames, the data has "
                f"{frames.shape[1] - history}: target_steps={optim.unroll}"
            )
        every, total = optim.loss_frames == "all", mean.new_zeros(())
        if every and "lead_time" in batch:
            raise ValueError("optim.loss_frames=all has targets one step ahead: data.max_lead=1")
        for ahead in range(1, optim.unroll + 1):
            prediction = self.predict({**batch, "input": window}, step, all_frames=every)
            target = frames[:, ahead if every else ahead + history - 1 : ahead + history]
            total = total + optim.loss_of(prediction, target, mean, std) / optim.unroll
            last = prediction[:, -1:]
            window = torch.cat([window[:, 1:], last if optim.through_time else last.detach()], 1)
        return total

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        loss, size = self.loss(batch, self.global_step), len(batch["target"])
        self.log_step(loss, size)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forgets the last validation."""
        self._errors = {}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """VRMSE, mean over samples and fields; batch i uses the settings of step i."""
        target = batch["target"][:, :1]
        error = vrmse(self.predict(batch, batch_idx).float(), target, self.surrogate.ndim)
        real = self.real_samples(batch_idx, len(target), dataloader_idx)
        sums = torch.stack([(error.flatten(1).mean(1) * real).sum(), real.sum()])
        self._errors.setdefault(batch.get("set", [""])[0], []).append(sums)

    def on_validation_epoch_end(self) -> None:
        """The mean over all samples of all ranks, and over the sets."""
        sums = torch.stack([torch.stack(errors).sum(0) for errors in self._errors.values()])
        total = self.trainer.strategy.reduce(sums, reduce_op="sum")
        means = total[:, 0] / total[:, 1]
        self.log("val/vrmse", means.mean(), prog_bar=True)
        if len(means) > 1:
            names = (f"val/vrmse/{name}" for name in self._errors)
            self.log_dict(dict(zip(names, means.unbind(), strict=True)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the configuration, so that a checkpoint alone can be evaluated."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["adaptok_model"] = dict(self.surrogate.config or {})


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
    monitor: str = "val/vrmse",
    **knobs: Any,
) -> L.Trainer:
    """A trainer that keeps metrics.csv and checkpoints/{best,last}.ckpt in `folder`.

    Args:
        ema: decay of the averaged weights, which validation uses and which the fit ends with.
        wandb: arguments of Lightning's WandbLogger, or None.
        strategy: "fsdp" shards weights over the processes (FSDP2); else one of Lightning's, such as
            "ddp".
        monitor: metric whose lowest value makes best.ckpt.
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
    callbacks.append(Checkpoints(folder / "checkpoints", every, monitor))
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
