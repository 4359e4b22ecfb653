"""Averaged weights: an exponential moving average that also works on sharded parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

AVERAGED = "averaged_state_dict"


class Averaging(Callback):
    """Keeps ``average = decay * average + (1 - decay) * weights``, starting from the first step.

    Validation uses the average, and the fit ends with it. A checkpoint holds the current weights,
    as Lightning saves them, and the average under ``averaged_state_dict``.

    Args:
        decay: in [0, 1); 0 makes the average the current weights.
    """

    def __init__(self, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the averaged weights must be in [0, 1), got {decay}")
        self.decay, self._step = decay, -1
        self._average: dict[str, Tensor] = {}
        self._loaded: Mapping[str, Tensor] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copies the weights, or loads the average of a checkpoint."""
        self._average = {k: p.detach().clone() for k, p in pl_module.named_parameters()}
        self._step = trainer.global_step
        self._load_into(self._average)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Averages in the weights once per optimizer step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        keep = 0.0 if self._step == 1 else self.decay
        for name, parameter in pl_module.named_parameters():
            _local(self._average[name]).lerp_(_local(parameter.detach()), 1 - keep)

    @torch.no_grad()
    def _swap(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            average, weight = _local(self._average[name]), _local(parameter.detach())
            current = weight.clone()
            weight.copy_(average)
            average.copy_(current)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swaps the average in for the validation, and out after it."""
        if self._average:
            self._swap(pl_module)

    on_validation_epoch_end = on_validation_epoch_start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the average in the model."""
        self._swap(pl_module)

    @torch.no_grad()
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Loads the average when a finished run is resumed and no step runs."""
        self._load_into({k: p.detach() for k, p in pl_module.named_parameters()})

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the average; runs on all ranks, because sharded weights are gathered."""
        if not self._average:
            return
        self._swap(pl_module)
        state = trainer.strategy.lightning_module_state_dict()
        checkpoint[AVERAGED] = {k: v.detach().cpu().clone() for k, v in state.items()}
        self._swap(pl_module)

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
                _local(tensor).copy_(_local(value))
        self._loaded = None


def _local(tensor: Tensor) -> Tensor:
    """Returns the shard of this process, which shares memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
