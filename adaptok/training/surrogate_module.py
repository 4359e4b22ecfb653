"""A Lightning module around a one-step model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptok.evaluation.metrics import vrmse
from adaptok.models.jitter import jitter_at, periodic_on_host
from adaptok.models.multiphysics import Multiphysics
from adaptok.models.one_step import OneStepModel
from adaptok.models.schedules import OF_TRAINING, Schedule, training_settings
from adaptok.tokenizers.learning import indicator_loss, learns_from_outcome
from adaptok.training.fit_module import FitModule
from adaptok.training.optim import Optim
from adaptok.training.parallel import shard
from adaptok.utils.auxiliary import collect_auxiliary, report_loss

Batch = Mapping[str, Any]  # tensors, and names of sets


class SurrogateModule(FitModule):
    """Trains a surrogate, or a baseline, on the next frames.

    Args:
        surrogate: a one-step model that has the statistics of the training split.
        optim: loss and optimizer.
        schedule: settings of each step; a function of the global step, so the same on all ranks.
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
        self._periodic: dict[str, tuple[bool, ...]] = {}
        processor = getattr(surrogate, "processor", None)
        if isinstance(processor, nn.Module):
            processor.register_forward_pre_hook(self._count_tokens)

    def _count_tokens(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        tokens = args[0]  # shapes only: asking for values would wait for the device
        self.tokens_per_sample = len(tokens.cells) / tokens.cells.batch_size

    def configure_model(self) -> None:
        """Shards the weights if the strategy is FSDP2."""
        if self.device_mesh is not None:
            shard(self.surrogate, self.device_mesh["data_parallel"])

    def model_of(self, batch: Batch) -> OneStepModel:
        """Returns the model for the fields of a batch."""
        return self.surrogate

    def periodic_axes(self, batch: Batch) -> tuple[bool, ...]:
        """Returns which axes of a batch are periodic; a device is asked once per set, whose samples
        share their boundary.
        """
        codes, name = batch["boundary"], batch.get("set", [""])[0]
        if codes.device.type == "cpu" or name not in self._periodic:
            self._periodic[name] = periodic_on_host(codes, codes.shape[-2])
        return self._periodic[name]

    def predict(
        self, batch: Batch, step: int, *, ahead: int = 1, all_frames: bool = False
    ) -> Tensor:
        """Predicts the next frame in physical units (or the one after each frame) with the settings
        of a step; the frame at "lead_time" if the batch has one.

        Args:
            batch: see `adaptok.data.WellData`.
            step: of the schedule.
            ahead: number of the prediction in a row of `optim.unroll`; each has its own jitter.
            all_frames: predict what follows each frame.
        """
        lead = {"lead_time": batch["lead_time"]} if "lead_time" in batch else {}
        model, chosen = self.model_of(batch), self.schedule(step)
        control = {name: value for name, value in chosen.items() if name not in OF_TRAINING}
        if control.get("jitter") is not None:
            place = (model.ndim, batch["input"].device)
            axes = self.periodic_axes(batch)
            control["jitter"] = jitter_at(control["jitter"], (step, ahead), *place, periodic=axes)
        return model(
            batch["input"],
            constants=batch.get("constants"),
            boundary=batch["boundary"],
            all_frames=all_frames,
            **control,
            **lead,
        )

    def loss(self, batch: Batch, step: int) -> Tensor:
        """Computes the mean loss over the steps in a row in units of `optim.loss_unit`.

        The schedule may set their number (``unroll``, in place of `optim.unroll`), and ``noise``:
        of that many std of each field on what the model reads, independent at every point, while
        the targets are the true frames, so that it learns to come back to them (Sanchez-Gonzalez et
        al., "Learning to Simulate Complex Physics with Graph Networks", 2020, Sec. 4.2).
        """
        optim, model = self.optim, self.model_of(batch)
        chosen = training_settings(self.schedule(step))
        unroll, noise = chosen.get("unroll", optim.unroll), chosen.get("noise", 0)
        history, view = model.history, (-1, *[1] * model.ndim)
        mean, std = model.mean.view(view), model.std.view(view)
        frames, window = torch.cat([batch["input"], batch["target"]], 1), batch["input"]
        if frames.shape[1] < history + unroll:
            raise ValueError(
                f"optim.unroll={unroll} needs as many target frames, the data has "
                f"{frames.shape[1] - history}: target_steps={unroll}"
            )
        if noise:
            window = window + noise * (std * torch.randn_like(window)).to(window)
        every, total = optim.loss_frames == "all", mean.new_zeros(())
        if every and "lead_time" in batch:
            raise ValueError("optim.loss_frames=all has targets one step ahead: data.max_lead=1")
        for ahead in range(1, unroll + 1):
            given, fine = (window, None) if ahead == 1 else model.usable(window, batch["input"])
            prediction = self.predict(
                {**batch, "input": given}, step, ahead=ahead, all_frames=every
            )
            if ahead == 1:
                self._teach_indicators(model, batch, prediction, frames)
            if fine is not None:
                prediction = torch.where(fine, prediction, torch.nan)
            target = frames[:, ahead if every else ahead + history - 1 : ahead + history]
            unit = std if optim.loss_unit == "std" else model.scale(window)
            total = total + optim.loss_of(prediction, target, mean, unit) / unroll
            last = prediction[:, -1:]
            window = torch.cat([window[:, 1:], last if optim.through_time else last.detach()], 1)
        return total

    def _teach_indicators(
        self, model: Any, batch: Batch, prediction: Tensor, frames: Tensor
    ) -> None:
        """Reports the losses of indicators, of cells and of refined points, that learn from the
        next frames.
        """
        choice = getattr(getattr(model, "decoder", None), "choice", None)
        parts = {"indicator": getattr(model, "tokenizer", None), "indicator_of_points": choice}
        history = model.history
        window, after = frames[:, :history], frames[:, 1 : history + 1]
        for name, part in parts.items():
            if not learns_from_outcome(part):
                continue
            error = prediction.detach() - after[:, -prediction.shape[1] :]
            outcome = error if part.indicator.target == "error" else after - window
            if model.history_mode == "fold":
                outcome = outcome[:, -1:]
            scored = model.scored(window, batch.get("constants"))
            outcome = outcome / model.scale(window)
            loss = indicator_loss(part, scored, outcome, boundary=batch["boundary"])
            report_loss(name, loss, weight=part.indicator.weight)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the loss of one batch plus the auxiliary losses that parts report."""
        with collect_auxiliary() as auxiliary:
            loss = self.loss(batch, self.global_step)
        self.log_step(loss, len(batch["target"]), auxiliary)
        return loss + auxiliary.total()

    def on_validation_epoch_start(self) -> None:
        """Drops the errors of the last validation."""
        self._errors = {}

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collects VRMSE of the model and of persistence, the mean over samples and fields; batch
        i uses the settings of step i.
        """
        target, ndim = batch["target"][:, :1], self.surrogate.ndim
        real = self.real_samples(batch_idx, len(target), dataloader_idx)
        predictions = (self.predict(batch, batch_idx).float(), batch["input"][:, -1:])
        errors = [vrmse(one, target, ndim).flatten(1).mean(1) for one in predictions]
        sums = torch.stack([*((error * real).sum() for error in errors), real.sum()])
        self._errors.setdefault(batch.get("set", [""])[0], []).append(sums)

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over the samples of all ranks, then over the sets."""
        sums = torch.stack([torch.stack(errors).sum(0) for errors in self._errors.values()])
        total = self.trainer.strategy.reduce(sums, reduce_op="sum")
        means, blank = (total[:, :2] / total[:, 2:]).unbind(1)
        # All ranks have the same means: sync_dist only keeps Lightning from warning.
        self.log("val/vrmse", means.mean(), prog_bar=True, sync_dist=True)
        self.log("val/persistence", blank.mean(), sync_dist=True)
        if len(means) > 1:
            names = (f"val/vrmse/{name}" for name in self._errors)
            self.log_dict(dict(zip(names, means.unbind(), strict=True)), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds how the model is built, so that a checkpoint suffices to load it."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["adaptok_model"] = dict(self.surrogate.config or {})
