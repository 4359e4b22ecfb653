"""Losses, optimizer and learning rate of a training run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Len
from jaxtyping import Float
from torch import Tensor, nn

from adaptok.evaluation.metrics import EPS
from adaptok.registry import LOSSES, choice
from adaptok.training.targets import instantiate
from adaptok.utils.arguments import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    PositiveShare,
    Rate,
    Share,
    check_value,
    checked,
    hints_of,
)
from adaptok.utils.magnitude import wide

Frames = Float[Tensor, "b t c *space"]

# A loss takes error and target, (b, t, c, *space) in units of the training split's std, the target
# relative to its mean, in at least float32, and returns a scalar. Attributes of the function change
# that:
#   physical = True: error and target come in physical units;
#   from_zero = True: the target is relative to 0;
#   error_only = True: the target is not used, so that the error may come in any unit.


@LOSSES.register("mse")
@checked
def mse_loss(error: Frames, target: Frames) -> Float[Tensor, ""]:
    """Mean square of the error."""
    return error.square().mean()


mse_loss.error_only = True  # type: ignore[attr-defined]


def _check_alike(error: Tensor, target: Tensor) -> None:
    if error.shape != target.shape:
        raise ValueError(
            f"error and target differ in shape: {tuple(error.shape)} and {tuple(target.shape)}"
        )


@LOSSES.register("nmse")
@checked
def nmse_loss(error: Frames, target: Frames) -> Float[Tensor, ""]:
    """Mean square over that of the target, per sample and channel; the 1e-3 floor limits the weight
    of nearly constant fields."""
    _check_alike(error, target)
    axes = tuple(range(3, error.ndim))
    return (error.square().mean(axes) / (target.square().mean(axes) + 1e-3)).mean()


@LOSSES.register("matey_nmse")
@checked
def matey_nmse_loss(error: Frames, target: Frames) -> Float[Tensor, ""]:
    """Mean square over that of the target, 0 being the reference: the training loss of MATEY's
    code; its floor of 1e-7 is in units of the training split's variance."""
    _check_alike(error, target)
    axes = tuple(range(3, error.ndim))
    return (error.square().mean(axes) / (target.square().mean(axes) + EPS)).mean()


matey_nmse_loss.from_zero = True  # type: ignore[attr-defined]


LONGEST_WARMUP, GAMMA_STEPS = 2500, 5000  # IAP, App. E


@dataclass(frozen=True)
class OptimBase:
    """Optimizer and learning rate; the defaults are those of IAP, App. E, with a warm-up that fits
    the training.

    Attributes:
        lr: highest learning rate, reached after a linear warm-up from `lr_start`; bounds above it
            count as equal to it.
        weight_decay: not applied to norms, biases and other vectors.
        betas: of AdamW.
        decay: "exponential" (times `gamma` per `gamma_steps`) or "cosine", never below `lr_min`.
        gamma_steps: None for IAP's 5,000 steps, which a short training need not reach: decaying as
            far as IAP's 250,000 steps do would slow it down.
        warmup: length of the warm-up as a share of the training, at most IAP's 2,500 steps.
        warmup_steps: its length in steps, in place of `warmup`; or None.
        ema: decay of the averaged weights.
        optimizer: None for AdamW; else ``{"_target_": "torch.optim.SGD", "momentum": 0.9}``, or a
            callable: it gets the groups of weights and `lr`.

    Raises:
        ValueError: a value that is not accepted, or an optimizer that cannot be imported.
    """

    lr: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 5e-2
    betas: Annotated[Sequence[Rate], Len(2, 2)] = (0.9, 0.999)
    decay: str = "exponential"
    warmup: Share = 0.05
    warmup_steps: NonNegative | None = None
    lr_start: NonNegativeFloat = 1e-6
    lr_min: NonNegativeFloat = 1e-5
    gamma: PositiveShare = 0.95
    gamma_steps: Positive | None = None
    ema: Share = 0.99
    optimizer: Mapping[str, Any] | Callable[..., torch.optim.Optimizer] | None = field(
        default=None, kw_only=True
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_value(value, hints_of(type(self))[name], f"optim.{name}")
        choice("optim.decay", self.decay, ("exponential", "cosine"))
        if isinstance(self.optimizer, Mapping):  # now, not after the data is read
            instantiate("optim.optimizer", self.optimizer, _partial_=True)

    def warmup_of(self, max_steps: float) -> int:
        """Number of steps of the warm-up in a training of `max_steps`."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return max(int(min(self.warmup * max_steps, LONGEST_WARMUP)), 1) if self.warmup else 0

    def unfinished(self, max_steps: float) -> str | None:
        """Says which part of the schedule does not end within a training of `max_steps`, if any."""
        warmup = self.warmup_of(max_steps)
        if warmup >= max_steps > 0:
            return f"the warm-up ({warmup} steps) is not shorter than the training ({max_steps:g})"
        after = max_steps - warmup
        if self.decay == "exponential" and self.gamma < 1 and after < (self.gamma_steps or 0):
            return (
                f"the first decay (a factor of {self.gamma:g} in {self.gamma_steps} steps) ends "
                f"after the training, which has {after:g} steps after the warm-up"
            )
        return None

    def learning_rate(self, step: int, max_steps: float) -> float:
        """Computes the learning rate of a step of `max_steps`, at most `lr`."""
        start, floor = min(self.lr_start, self.lr), min(self.lr_min, self.lr)
        warmup = self.warmup_of(max_steps)
        if step < warmup:
            return start + (self.lr - start) * step / warmup
        after = step - warmup
        if self.decay == "exponential":
            return max(self.lr * self.gamma ** (after / (self.gamma_steps or GAMMA_STEPS)), floor)
        progress = min(after / max(max_steps - warmup, 1), 1.0)
        return floor + (self.lr - floor) * (1 + math.cos(math.pi * progress)) / 2

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Makes the optimizer of the trainable weights of a module."""
        make: Any = self.optimizer
        if make is None:
            make = functools.partial(torch.optim.AdamW, betas=(self.betas[0], self.betas[1]))
        elif isinstance(make, Mapping):
            make = instantiate("optim.optimizer", make, _partial_=True)
        return make(self.groups(module), lr=self.lr)

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Groups the trainable weights by weight decay."""
        weights = [p for p in module.parameters() if p.requires_grad]
        return [
            {"params": [p for p in weights if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
        ]


@dataclass(frozen=True)
class Optim(OptimBase):
    """Loss, optimizer and learning rate of a surrogate; see `OptimBase` for the rest.

    Attributes:
        loss: a name in `adaptok.registry.LOSSES`: "mse" or "nmse", on fields in units of the
            training split's std; "matey_nmse", relative to the fields themselves.
        loss_frames: "last", or "all": also on what follows the earlier frames of the history
            (needs ``history_mode="frames"``).
        loss_unit: "std" (of the training split), or "prediction": of the change (or state) that the
            model predicts, as in the code of CKM and CSM. With ``normalise="context"`` that is the
            sample's own, so that quiet samples and fields count as much as others.
        unroll: number of steps predicted in a row, each from the last prediction; the loss is the
            mean over them.
        through_time: let gradients flow through the predictions that are fed back. Without, each
            step learns to undo the errors of the ones before it: the pushforward trick
            (Brandstetter et al., "Message Passing Neural PDE Solvers", 2022, Sec. 3.1).
    """

    loss: str = "mse"
    loss_frames: str = "last"
    loss_unit: str = "std"
    unroll: Positive = 1
    through_time: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("optim.loss", self.loss, LOSSES.names())
        choice("optim.loss_frames", self.loss_frames, ("last", "all"))
        choice("optim.loss_unit", self.loss_unit, ("std", "prediction"))
        if self.loss_unit != "std" and not getattr(LOSSES.get(self.loss), "error_only", False):
            raise ValueError(
                f"optim.loss_unit={self.loss_unit} goes with losses of the error alone, such as "
                f"optim.loss=mse, not {self.loss}"
            )

    def loss_of(self, prediction: Tensor, target: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Computes the loss of fields in physical units, given the mean and std of the training
        split."""
        loss, prediction, target = LOSSES.get(self.loss), wide(prediction), wide(target)
        if getattr(loss, "physical", False):
            return loss(prediction - target, target)
        centre = 0 if getattr(loss, "from_zero", False) else mean
        return loss((prediction - target) / std, (target - centre) / std)
