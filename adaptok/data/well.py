"""Lightning data module over data sets in the Well's format, local or behind a URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from the_well.data.utils import WELL_DATASETS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from adaptok.data.augment import Augmented
from adaptok.data.files import SPLITS, find_folder, read_statistics
from adaptok.data.info import FieldInfo
from adaptok.data.location import Location
from adaptok.data.order import EpochSampler, ResumableLoader, Seeded
from adaptok.data.split import Split, Windows, component_statistics

STAGES = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), None: SPLITS}
DELTA_SAMPLES = 512  # windows from which the change over a stride is estimated
GIGABYTE = 1e9


class WellData(LightningDataModule):
    """Windows of frames from a data set in the Well's format, in physical units, channels first.

    A batch is a dict of "input" (b, t, c, *space), "target" (b, t_out, c, *space), "boundary"
    (b, ndim, 2) with the Well's codes (wall 0, open 1, periodic 2), "time_step" (b,), the time from
    the last input frame to the first target, and, where the set has any, "constants"
    (b, cc, *space) and "scalars" (b, n), the physical parameters, named by ``info.scalars``; those
    that vary with time are the ones at the last input frame.

    The order of training batches is a function of (seed, epoch). Lightning sets the epoch; in a
    loop of your own, call ``loader.sampler.set_epoch(epoch)``.

    Args:
        name: one of the Well's names, or any folder below `base`.
        base: folder of all sets, or a URL: ``hf://datasets/polymathic-ai`` is the Well itself.
        path: folder or URL of one set, in place of name and base.
        history: input frames.
        target_steps: target frames.
        stride: use every stride-th frame.
        batch_size: samples per batch, also of rollouts.
        train_samples: train on this many samples only, a random choice that depends on the seed and
            grows with the number.
        num_workers: processes that load data; 0 is fastest where the set is cached.
        seed: of the order of training samples, and of their choice.
        cache: keep small splits in memory; files are slow to open for every sample.
        cache_limit: a split that needs more than this many gigabytes is not kept in memory.
        replace_nan: read NaN as 0 (``helmholtz_staircase`` has some) instead of refusing it.
        storage_options: of the URL's file system, such as ``{"anon": True}`` for s3.
        augment: random transformations of training samples, of "flip", "rotate", "permute" and
            "roll", a function of (seed, epoch, sample). Choose those that the physics permits:
            convection has a direction that must not be flipped.
        skip_bad: read every file once before training, and leave out those that have something
            wrong, with a warning that names them.
    """

    def __init__(
        self,
        name: str | None = None,
        base: str | Path | None = None,
        path: str | Path | None = None,
        *,
        history: int = 1,
        target_steps: int = 1,
        stride: int = 1,
        batch_size: int = 8,
        train_samples: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        cache: bool = True,
        cache_limit: float = 2.0,
        replace_nan: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        augment: Sequence[str] = (),
        skip_bad: bool = False,
    ):
        super().__init__()
        _at_least(1, history=history, target_steps=target_steps, stride=stride)
        _at_least(1, batch_size=batch_size)
        _at_least(0, num_workers=num_workers, seed=seed)
        if train_samples is not None:
            _at_least(1, train_samples=train_samples)
        self.name, self.base, self.path = name, base, path
        self.history, self.target_steps, self.stride = history, target_steps, stride
        self.batch_size, self.train_samples = batch_size, train_samples
        self.num_workers, self.seed = num_workers, seed
        self.replace_nan, self.skip_bad = replace_nan, skip_bad
        self.storage_options = dict(storage_options or {})
        self.augment = [augment] if isinstance(augment, str) else list(augment)
        self._cache_bytes = cache_limit * GIGABYTE if cache else 0
        self._folder: Location | None = None
        self._splits: dict[str, Split] = {}
        self._info: FieldInfo | None = None

    @property
    def folder(self) -> Location:
        """The folder of the set."""
        if self._folder is None:
            self._folder = find_folder(
                self.name, self.base, self.path, WELL_DATASETS, self.storage_options
            )
        return self._folder

    @property
    def info(self) -> FieldInfo:
        """Names, shapes and statistics of the set."""
        if self._info is None:
            self._info = self._describe()
        return self._info

    def setup(self, stage: str | None = None) -> None:
        """Checks and, where they are cached, reads the splits that a stage needs; None is all.

        Raises:
            ValueError: for anything that is missing or damaged, naming it.
        """
        for split in STAGES.get(stage, ("test",)):
            _ = self._train_windows() if split == "train" else self._windows(split)
        _ = self.info

    def train_dataloader(self) -> DataLoader:
        """Shuffled; an incomplete last batch is left out."""
        windows = self._train_windows()
        ranks, rank = (
            (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        )
        sampler = EpochSampler(windows, seed=self.seed, ranks=ranks, rank=rank)
        if len(sampler) < self.batch_size:
            total = len(windows)  # type: ignore[arg-type]
            where = f" on each of {ranks} processes ({total} in all)" if ranks > 1 else ""
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the training set: {len(sampler)} "
                f"samples{where}"
            )
        return self._loader(
            Seeded(windows, self.seed), ResumableLoader, sampler=sampler, drop_last=True
        )

    def val_dataloader(self) -> DataLoader:
        """All windows of the validation split, in order."""
        return self.loader("valid")

    def test_dataloader(self) -> DataLoader:
        """All windows of the test split, in order."""
        return self.loader("test")

    def loader(self, split: str, target_steps: int | None = None) -> DataLoader:
        """All windows of a split, in order.

        Args:
            split: "train", "valid" or "test".
            target_steps: target frames, where another number than in training.
        """
        if target_steps is None:
            return self._loader(self._windows(split))
        _at_least(1, target_steps=target_steps)
        return self._loader(self._split(split).windows(self.history, target_steps, self.stride))

    def rollout_loader(self, split: str = "test", n_steps: int | None = None) -> DataLoader:
        """One window per trajectory, from its first frame, with `n_steps` target frames.

        Args:
            split: "train", "valid" or "test".
            n_steps: target frames; None is as many as the shortest trajectory of the split has.
        """
        source = self._split(split)
        if n_steps is None:
            n_steps = max(1, (source.steps - 1) // self.stride - self.history + 1)
        _at_least(1, n_steps=n_steps)
        windows = source.windows(self.history, n_steps, self.stride)
        return self._loader(Subset(windows, windows.starts))

    def _loader(
        self, windows: Dataset, kind: type[DataLoader] = DataLoader, **options
    ) -> DataLoader:
        return kind(
            windows,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # of its own: otherwise every pass over the data moves the global random numbers
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )

    def _split(self, split: str) -> Split:
        if split not in self._splits:
            self._splits[split] = Split(
                self.folder, split, self._cache_bytes, self.replace_nan, self.skip_bad
            )
        return self._splits[split]

    def _windows(self, split: str) -> Windows:
        return self._split(split).windows(self.history, self.target_steps, self.stride)

    def _train_windows(self) -> Dataset:
        windows = self._windows("train")
        count = self.train_samples
        if count is not None:
            if count > len(windows):
                raise ValueError(f"train_samples={count}, but there are only {len(windows)}")
            order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(self.seed))
            windows = Subset(windows, order[:count].sort().values.tolist())
        if self.batch_size > len(windows):
            raise ValueError(
                f"batch_size={self.batch_size} is larger than the training set: "
                f"{len(windows)} samples"
            )
        if self.augment:
            windows = Augmented(windows, self.augment, self._split("train").metadata)
        return windows

    def _describe(self) -> FieldInfo:
        tables = read_statistics(self.folder)
        # any split has the same channels: evaluation does without the training files
        split = next(iter(self._splits.values()), None) or self._split("train")

        def fields(table: str) -> Tensor:
            where = f"{self.folder / 'stats.yaml'} [{table}]"
            return component_statistics(
                tables[table], split.core_fields, len(split.channels), where
            )

        def constants(table: str) -> Tensor:
            where = f"{self.folder / 'stats.yaml'} [{table}]"
            names, size = split.core_constants, len(split.constants)
            return component_statistics(tables[table], names, size, where)

        if self.stride == 1:
            delta_mean, delta_std = fields("mean_delta"), fields("std_delta")
        else:  # the file knows the change over one frame only
            pairs = self._split("train").windows(1, 1, self.stride)
            delta_mean, delta_std = delta_statistics(pairs)
        return FieldInfo(
            name=split.metadata.dataset_name,
            ndim=split.metadata.n_spatial_dims,
            shape=tuple(split.metadata.spatial_resolution),
            fields=tuple(split.channels),
            constants=tuple(split.constants),
            mean=fields("mean"),
            std=fields("std"),
            delta_mean=delta_mean,
            delta_std=delta_std,
            constant_mean=constants("mean"),
            constant_std=constants("std"),
            boundary=split.boundary,
            scalars=tuple(split.scalars),
        )


def delta_statistics(pairs: Windows, limit: int = DELTA_SAMPLES) -> tuple[Tensor, Tensor]:
    """Mean and spread of the change from input to target, each (c,).

    From at most `limit` windows of one input and one target frame, evenly spread over the split.
    """
    count = min(limit, len(pairs))
    chosen = torch.linspace(0, len(pairs) - 1, count).long().tolist()
    first = second = torch.zeros((), dtype=torch.float64)
    for sample in (pairs[i] for i in chosen):
        delta = (sample["target"][0] - sample["input"][0]).double().flatten(1)  # (c, points)
        first = first + delta.mean(1) / count
        second = second + delta.square().mean(1) / count
    return first.float(), (second - first.square()).clamp_min(0).sqrt().float()


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
