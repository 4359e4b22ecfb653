"""Several processes, and memory: sharding with FSDP2 and activation checkpointing."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
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
