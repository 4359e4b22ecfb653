"""Loss, optimiser and learning rate of a training run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptok.evaluation.metrics import EPS


def mse_loss(error: Tensor, target: Tensor) -> Tensor:
    """Mean square of the error."""
    return error.square().mean()


def nmse_loss(error: Tensor, target: Tensor) -> Tensor:
    """Mean square over that of the target, per sample and channel; quiet fields count no more
    than ones with a thousandth of the usual variance."""
    axes = tuple(range(3, error.ndim))
    return (error.square().mean(axes) / (target.square().mean(axes) + 1e-3)).mean()


def matey_nmse_loss(error: Tensor, target: Tensor) -> Tensor:
    """Mean square over that of the target in physical units, 0 being the reference: the training
    loss of MATEY's code."""
    axes = tuple(range(3, error.ndim))
    return (error.square().mean(axes) / (target.square().mean(axes) + EPS)).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse_loss,
    "nmse": nmse_loss,
    "matey_nmse": matey_nmse_loss,
}
PHYSICAL = ("matey_nmse",)  # losses that see fields as they are


@dataclass(frozen=True)
class Rate:
    """Optimiser and learning rate; the defaults are those of IAP, App. E.

    Attributes:
        lr: highest learning rate, reached after `warmup_steps` linear steps from `lr_start`.
        weight_decay: of AdamW; norms, biases and other vectors are left out.
        decay: "exponential" (times `gamma` per `gamma_steps`) or "cosine", never below `lr_min`.
        ema: decay of the averaged weights.
    """

    lr: float = 5e-4
    weight_decay: float = 5e-2
    betas: Sequence[float] = (0.9, 0.999)
    decay: str = "exponential"
    warmup_steps: int = 2500
    lr_start: float = 1e-6
    lr_min: float = 1e-5
    gamma: float = 0.95
    gamma_steps: int = 5000
    ema: float = 0.99

    def __post_init__(self) -> None:
        check_choice("decay", self.decay, ("exponential", "cosine"))

    def learning_rate(self, step: int, max_steps: int) -> float:
        """Learning rate of a step; only the cosine depends on `max_steps`."""
        if step < self.warmup_steps:
            return self.lr_start + (self.lr - self.lr_start) * step / self.warmup_steps
        after = step - self.warmup_steps
        if self.decay == "exponential":
            return max(self.lr * self.gamma ** (after / self.gamma_steps), self.lr_min)
        progress = min(after / max(max_steps - self.warmup_steps, 1), 1.0)
        return self.lr_min + (self.lr - self.lr_min) * (1 + math.cos(math.pi * progress)) / 2

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """AdamW over the weights of a module."""
        return torch.optim.AdamW(
            self.groups(module), lr=self.lr, betas=(self.betas[0], self.betas[1])
        )

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """The trainable weights, by weight decay."""
        weights = [p for p in module.parameters() if p.requires_grad]
        return [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]


@dataclass(frozen=True)
class Optim(Rate):
    """Loss, optimiser and learning rate of a surrogate; the rest is described in `Rate`.

    Attributes:
        loss: "mse" or "nmse", on fields in units of the training split's std; "matey_nmse", on
            fields in physical units.
        loss_frames: "last", or "all": also on what follows the earlier frames of the history
            (needs ``history_mode="frames"``).
        loss_unit: "std" (of the training split), or "prediction": of the change (or state) that the
            model predicts, as in the code of CKM and CSM. With ``normalise="context"`` that is the
            sample's own, so that quiet samples and fields count as much as others.
        unroll: steps that are predicted in a row, each from the last prediction; the loss is the
            mean over them.
        through_time: let gradients flow through the predictions that are fed back. Without, each
            step learns to undo the errors of the ones before it: the pushforward trick
            (Brandstetter et al., "Message Passing Neural PDE Solvers", 2022, Sec. 3.1).
    """

    loss: str = "mse"
    loss_frames: str = "last"
    loss_unit: str = "std"
    unroll: int = 1
    through_time: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss", self.loss, tuple(LOSSES))
        check_choice("loss_frames", self.loss_frames, ("last", "all"))
        check_choice("loss_unit", self.loss_unit, ("std", "prediction"))
        if self.loss_unit != "std" and self.loss != "mse":
            raise ValueError(f"optim.loss_unit={self.loss_unit} goes with optim.loss=mse only")
        if self.unroll < 1:
            raise ValueError(f"optim.unroll must be at least 1 step, got {self.unroll}")

    def loss_of(self, prediction: Tensor, target: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Loss of fields in physical units, given the mean and std of the training split."""
        if self.loss in PHYSICAL:
            return LOSSES[self.loss](prediction - target, target)
        return LOSSES[self.loss]((prediction - target) / std, (target - mean) / std)


def check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raises ``ValueError`` for a value that is not accepted."""
    if value not in accepted:
        raise ValueError(f"optim.{name} must be one of {', '.join(accepted)}, got {value!r}")
