"""Several processes, and memory: sharding with FSDP2 and activation checkpointing."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
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


@contextmanager
def process_group() -> Iterator[None]:
    """Ends the process group that a fit inside started, so that the next fit can start another."""
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        started_here = before["LOCAL_RANK"] is None and "LOCAL_RANK" in os.environ
        if started_here and dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for name in names:  # Lightning's launcher leaves them behind
            if started_here and before[name] is None:
                os.environ.pop(name, None)


def make_strategy(
    name: str, accelerator: str, devices: int | str | Sequence[int], num_nodes: int
) -> str | Strategy:
    """Makes Lightning's strategy of a name; "fsdp" is FSDP2 with one complete checkpoint file.

    Args:
        name: "auto", "ddp", "fsdp" or another name that Lightning knows.
        accelerator: see ``lightning.Trainer``, like the rest.
    """
    if name not in ("fsdp", "fsdp2"):
        return name
    if isinstance(devices, str):
        cuda = accelerator != "cpu" and torch.cuda.is_available()
        every = torch.cuda.device_count() if cuda else 1
        count = int(devices) if devices.isdigit() else every
    else:
        count = devices if isinstance(devices, int) else len(devices)
        count = torch.cuda.device_count() if count == -1 else count
    return ModelParallelStrategy(
        data_parallel_size=count * num_nodes,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
    )
