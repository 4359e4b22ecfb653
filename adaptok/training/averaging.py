"""Averaged weights: an exponential moving average that also works on sharded parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from adaptok.training.parallel import local_part

AVERAGED = "averaged_state_dict"


class Averaging(Callback):
    """Keeps ``average = decay * average + (1 - decay) * weights``, starting from the first step.

    Validation uses the average, and the fit ends with it in the model. The statistics of batch
    norms, and all other buffers with fractions that checkpoints hold, are averaged like weights. A
    checkpoint, also one saved after the fit, holds the current weights, as Lightning saves them,
    and the average under ``averaged_state_dict``.

    Args:
        decay: in [0, 1); 0 makes the average the current weights.
    """

    def __init__(self, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the averaged weights must be in [0, 1), got {decay}")
        self.decay, self._step = decay, -1
        self._module: nn.Module | None = None  # the one that is, or was last, trained
        self._other: dict[str, Tensor] = {}  # the average, or the weights while it is in the module
        self._inside = False  # whether the average is in the module
        self._inside_before = False  # the validation
        self._loaded: Mapping[str, Tensor] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copies the weights, or loads the average of a checkpoint."""
        self._module, self._inside = pl_module, False
        self._other = {k: v.detach().clone() for k, v in _tensors(pl_module).items()}
        self._step = trainer.global_step
        self._load_into(self._other)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Averages in the weights once per optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        keep = 0.0 if self._step == 1 else self.decay
        for name, tensor in _tensors(pl_module).items():
            average, weight = local_part(self._other[name]), local_part(tensor.detach())
            if average.is_floating_point():
                average.lerp_(weight, 1 - keep)
            else:
                average.copy_(weight)

    @torch.no_grad()
    def _put(self, average: bool) -> None:
        """Puts the average, or the weights, into the module, if they are not in it already."""
        if self._module is None or average == self._inside:
            return
        self._inside = average
        for name, tensor in _tensors(self._module).items():
            other, weight = local_part(self._other[name]), local_part(tensor.detach())
            current = weight.clone()
            weight.copy_(other)
            other.copy_(current)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the average in for the validation; after the fit it is in already."""
        self._inside_before = self._inside
        self._put(average=True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restores what was in the model before the validation."""
        self._put(self._inside_before)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the average in the model."""
        self._put(average=True)

    @torch.no_grad()
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Loads the average when a finished run is resumed and no step runs."""
        self._load_into({k: v.detach() for k, v in _tensors(pl_module).items()})

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the average; runs on all ranks, because sharded weights are gathered."""
        if self._module is not pl_module:
            return
        inside = self._inside
        states = {}
        for average in (True, False):
            self._put(average)
            state = trainer.strategy.lightning_module_state_dict()
            states[average] = {k: v.detach().cpu().clone() for k, v in state.items()}
        checkpoint[AVERAGED], checkpoint["state_dict"] = states[True], states[False]
        self._put(inside)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the average until the weights are on their devices."""
        self._loaded = checkpoint.get(AVERAGED)

    def _load_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies the average of a checkpoint, if there is one, in place."""
        for name, value in (self._loaded or {}).items():
            if name in tensors:
                tensor = tensors[name]
                if isinstance(tensor, DTensor):
                    mesh, places = tensor.device_mesh, tensor.placements
                    value = distribute_tensor(value.to(tensor.device), mesh, places)
                local_part(tensor).copy_(local_part(value))
        self._loaded = None


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns weights and kept buffers by name, a shared one once."""
    once: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            once.setdefault(id(value), (name, value))
    return dict(once.values())
