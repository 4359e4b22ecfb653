"""Several data sets in one training: every batch from one set, all sets equally often."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from adaptok.data.info import FieldInfo
from adaptok.data.order import EpochSampler, ResumableLoader
from adaptok.data.well import WellData, batch_size_for, ranks_of

Drawn = tuple[int, int]


class FromSet(Dataset):
    """Adds the name of its set to each sample, under "set"; a batch has a list of names."""

    def __init__(self, samples: Any, name: str):
        self.samples, self.name = samples, name

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, drawn: Any) -> dict[str, Any]:
        return {**self.samples[drawn], "set": self.name}


class FromSets(Dataset):
    """Reads samples of several sets by (number of the set, index in it)."""

    def __init__(self, sets: list[FromSet]):
        self.sets = sets

    def __getitem__(self, drawn: tuple[int, Any]) -> dict[str, Any]:
        return self.sets[drawn[0]][drawn[1]]


class MixtureSampler(DistributedSampler):
    """Draws batches of the sets in rounds of one batch per set, in random order.

    The set and the samples of a batch are a function of (seed, number of the batch); the set is the
    same on all ranks. An epoch has as many rounds as the longest set has batches; shorter sets
    start over, in another order.

    Args:
        samplers: one per set.
        batch_size: samples per batch.
        seed: of the order of the sets.
    """

    def __init__(self, samplers: list[EpochSampler], batch_size: int, seed: int):
        self.samplers, self.batch_size, self.seed = samplers, batch_size, seed
        self.batches = [len(sampler) // batch_size for sampler in samplers]
        self.rounds = max(self.batches)
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.rounds * len(self.samplers) * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, Drawn]]:  # type: ignore[override]
        skip, self.start = self.start, 0
        orders: dict[int, tuple[int, list[Drawn]]] = {}  # of each set: its epoch, and the order
        for turn in range(self.rounds):
            number = self.epoch * self.rounds + turn
            sets = random.Random(f"{self.seed}/{number}").sample(
                range(len(self.samplers)), len(self.samplers)
            )
            for which in sets:
                if skip >= self.batch_size:
                    skip -= self.batch_size
                    continue
                epoch, batch = divmod(number, self.batches[which])
                if orders.get(which, (-1, []))[0] != epoch:
                    self.samplers[which].set_epoch(epoch)
                    orders[which] = epoch, list(self.samplers[which])
                first = batch * self.batch_size
                for drawn in orders[which][1][first : first + self.batch_size]:
                    yield which, drawn


class Mixture(LightningDataModule):
    """Mixes data sets of different fields, grids and boundaries.

    Batches are those of `WellData` with "set", the name of the set, once per sample.

    Args:
        sets: by name, of one batch size.

    Raises:
        ValueError: no set, or batch sizes that differ.
    """

    def __init__(self, sets: Mapping[str, WellData]):
        super().__init__()
        if not sets:
            raise ValueError("a mixture needs at least one data set")
        sizes = {name: data.batch_size for name, data in sets.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the sets of a mixture share one batch_size, got {sizes}")
        self.sets = dict(sets)

    @property
    def infos(self) -> dict[str, FieldInfo]:
        """What each set contains.

        Raises:
            ValueError: sets of different numbers of dimensions.
        """
        infos = {name: data.info for name, data in self.sets.items()}
        dims = {name: info.ndim for name, info in infos.items()}
        if len(set(dims.values())) > 1:
            raise ValueError(f"the sets of a mixture have one number of dimensions, got {dims}")
        return infos

    def setup(self, stage: str | None = None) -> None:
        """Sets up all sets, see `WellData.setup`."""
        for data in self.sets.values():
            data.setup(stage)

    def train_dataloader(self) -> DataLoader:
        """Loads training batches of the sets in turn, see `MixtureSampler`."""
        members, ranks = self.sets.items(), ranks_of(self.trainer)
        first = next(iter(self.sets.values()))
        samplers = [data.train_sampler(*ranks) for _, data in members]
        sets = [FromSet(data.seeded_train_samples(), name) for name, data in members]
        size = batch_size_for(samplers, first.batch_size)
        sampler = MixtureSampler(samplers, size, first.seed)
        return first.make_loader(
            FromSets(sets), ResumableLoader, batch_size=size, sampler=sampler, drop_last=True
        )

    def val_dataloader(self) -> list[DataLoader]:
        """Makes one validation loader per set."""
        return [
            data.make_loader(FromSet(data.loader("valid").dataset, name))
            for name, data in self.sets.items()
        ]
