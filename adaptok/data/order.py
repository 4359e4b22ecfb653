"""The order of training samples, and the random numbers behind each: functions of (seed, epoch)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

EPOCHS_APART = 10_007  # the sampler adds the epoch to its seed: keep those of two seeds apart


class Seeded(Dataset):
    """Makes each sample of a data set a function of (seed, epoch, index), augmentation included.

    Seeds torch's, numpy's and Python's global generators while it reads a sample, in worker
    processes too and after a restart, and then restores them.
    """

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, drawn: tuple[int, int]) -> Any:
        epoch, index = drawn
        seed = random.Random(f"{self.seed}/{epoch}/{index}").getrandbits(32)
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        try:
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            return self.dataset[index]
        finally:
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])
            random.setstate(before[2])


class EpochSampler(DistributedSampler):
    """Shuffles by (seed, epoch) and yields (epoch, index); the ranks share each global batch."""

    def __init__(self, dataset: Dataset, *, seed: int, ranks: int = 1, rank: int = 0):
        super().__init__(
            dataset, num_replicas=ranks, rank=rank, seed=seed * EPOCHS_APART, drop_last=True
        )
        self.start = 0  # samples of this rank that the next pass skips

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        order, start = list(super().__iter__()), self.start
        self.start = 0
        return iter([(self.epoch, index) for index in order[start:]])


class ResumableLoader(DataLoader):
    """Loads from an `EpochSampler`; resumes in mid-epoch, after the batch of the saved state."""

    sampler: EpochSampler
    batch_size: int
    _yielded = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: worker processes ask for the first batches only after the epoch is set.
        self._yielded = self.sampler.start // self.batch_size
        for batch in super().__iter__():
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and the number of its batches that were handed out."""
        return {"epoch": self.sampler.epoch, "batches": self._yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Starts the next pass after the batches that were handed out."""
        over = state["batches"] >= len(self)
        self.sampler.set_epoch(state["epoch"] + over)
        self.sampler.start = 0 if over else state["batches"] * self.batch_size
