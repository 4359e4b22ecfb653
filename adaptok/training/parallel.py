"""Several processes, and memory: sharding with FSDP2 and activation checkpointing."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the members of every outermost ``nn.ModuleList``: the layers that a model repeats."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from repeated_blocks(child)


def checkpoint_activations(module: nn.Module) -> None:
    """Makes every repeated block drop its activations and recompute them for the gradient.

    The recomputation draws the same random numbers; weights keep their names.
    """
    for block in repeated_blocks(module):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a one-step model over the data-parallel processes by FSDP2.

    Each block of the processor (of a baseline: of the network) is a unit; embeddings and decoders
    belong to the root unit.
    """
    middle = getattr(model, "processor", getattr(model, "network", None))
    for block in repeated_blocks(middle) if isinstance(middle, nn.Module) else ():
        fully_shard(block, mesh=mesh)
    # Sharded again after every forward: a validation must not leave gathered weights behind.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def local_part(tensor: Tensor) -> Tensor:
    """Returns the shard of this process, which shares memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def process_group() -> Iterator[None]:
    """Ends the process group that a fit inside started, so that the next fit can start another."""
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = [name for name in names if name in os.environ]
    try:
        yield
    finally:
        if "LOCAL_RANK" not in before and "LOCAL_RANK" in os.environ:  # started here
            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()
            for name in {*names}.difference(before):  # Lightning's launcher leaves them behind
                os.environ.pop(name, None)


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all processes, with one complete checkpoint file."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Shards over all processes, whose number Lightning knows by now."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Loads a complete checkpoint file, also one of a run without shards.

        Parameters have numbers there. Lightning takes them for places in the model, as it writes
        them; those of a run without shards are places in the groups of the optimizer.
        """
        path = self.broadcast(checkpoint_path)
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        assert self.model is not None
        strict = self.lightning_module is None or self.lightning_module.strict_loading
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
        set_model_state_dict(self.model, checkpoint.pop("state_dict"), options=options)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        states = checkpoint["optimizer_states"] if self.optimizers else ()  # tests have none
        for optimizer, state in zip(self.optimizers, states, strict=True):
            order = [names[p] for group in optimizer.param_groups for p in group["params"]]
            named = _by_name(state, order)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=options)
        return checkpoint


def _by_name(state: dict[str, Any], order: list[str]) -> dict[str, Any]:
    """Replaces the numbers of parameters in the state of an optimizer by their names, which come in
    the order of its groups.
    """
    groups = state["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    names = dict(zip(numbers, order, strict=True))
    return {
        "state": {names[number]: value for number, value in state["state"].items()},
        "param_groups": [{**g, "params": [names[n] for n in g["params"]]} for g in groups],
    }
