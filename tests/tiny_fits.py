"""A linear model on a few numbers, whose fit takes a tenth of a second: for what trainers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from adaptok.data.order import EpochSampler, ResumableLoader
from adaptok.training import make_trainer
from adaptok.training.fit_module import FitModule
from adaptok.training.optim import OptimBase


class Samples(TensorDataset):
    """Takes (epoch, index) from the sampler."""

    def __getitem__(self, drawn: Any) -> tuple[Tensor, ...]:
        return super().__getitem__(drawn[1] if isinstance(drawn, tuple) else drawn)


class Tiny(FitModule):
    """Least squares, optionally behind a batch norm."""

    def __init__(self, *, norm: bool = False, **optim: Any):
        torch.manual_seed(0)
        super().__init__(OptimBase(**{"warmup_steps": 0, "lr": 0.01, **optim}))
        self.model = nn.Sequential(nn.BatchNorm1d(3) if norm else nn.Identity(), nn.Linear(3, 1))
        self.validated: list[int] = []
        self.gradients: list[tuple[list[int], Tensor]] = []  # batches of a step, and its gradient
        self.seen: list[int] = []
        self.bad: Callable[[int, int], bool] = lambda step, batch: False

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        return (self.model(x) - y).square().mean()

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log_step(loss, len(batch[0]))
        self.seen.append(batch_idx)
        return loss * torch.nan if self.bad(self.global_step, batch_idx) else loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradient = torch.cat([p.grad.flatten() for p in self.parameters()])  # type: ignore
        self.gradients.append((self.seen, gradient.clone()))
        self.seen = []

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self.log("val/vrmse", self.loss(batch).sqrt(), batch_size=len(batch[0]))

    def on_validation_epoch_end(self) -> None:
        self.validated.append(self.global_step)


def samples(n: int) -> Samples:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=draw)
    return Samples(x, x @ torch.tensor([[1.0], [2.0], [3.0]]) + 0.1)


def loaders(batches: int) -> tuple[ResumableLoader, DataLoader]:
    """Batches of two samples in a random order, and two validation batches."""
    train = samples(2 * batches)
    sampler = EpochSampler(train, seed=0)
    loader = ResumableLoader(train, batch_size=2, sampler=sampler, drop_last=True)
    return loader, DataLoader(samples(5), 3)


def fit(module: Tiny, folder: Any, batches: int = 5, resume: Any = None, **knobs: Any) -> Any:
    """Fits a module; returns the trainer."""
    fixed = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    trainer = make_trainer(folder, **{**fixed, **knobs})
    train, valid = loaders(batches)
    trainer.fit(module, train, valid, ckpt_path=resume, weights_only=True)
    return trainer


class Kill(Callback):
    """Ends a fit by an error before the first batch after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError
