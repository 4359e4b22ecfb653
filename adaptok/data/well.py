"""Lightning data module over data sets in the Well's format, local or behind a URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from the_well.data.utils import WELL_DATASETS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from adaptok.data.augment import Augmented
from adaptok.data.info import FieldInfo
from adaptok.data.leads import Leads
from adaptok.data.location import Location
from adaptok.data.order import EpochSampler, ResumableLoader, Seeded
from adaptok.data.split import Split, WellSplit
from adaptok.data.synthetic.store import Statistics
from adaptok.data.well_files import WellFile, find_folder, read_statistics
from adaptok.data.well_format import SPLITS
from adaptok.data.windows import Windows
from adaptok.utils.arguments import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveShare,
    check_value,
    checked,
)

STAGES = {"fit": ("train", "valid"), "validate": ("valid",), "test": ("test",), None: SPLITS}
STATISTICS_SAMPLES = 512  # windows that estimate the statistics that no file has
GIGABYTE = 1e9


class WellData(LightningDataModule):
    """Windows of frames from a data set in the Well's format, in physical units, channels first.

    A batch is a dict of "input" (b, t, c, *space), "target" (b, t_out, c, *space), "boundary"
    (b, ndim, 2) with the Well's codes (wall 0, open 1, periodic 2), "time_step" (b,), the time from
    the last input frame to the first target, and, if the set has any, "constants" (b, cc, *space)
    and "scalars" (b, n), the physical parameters at the last input frame, named by
    ``info.scalars``.

    The order of training batches is a function of (seed, epoch). Lightning sets the epoch; your own
    loop calls ``loader.sampler.set_epoch(epoch)``.

    Args:
        name: one of the Well's names, or any folder below `base`.
        base: folder of all sets, or a URL: ``hf://datasets/polymathic-ai`` is the Well itself.
        path: folder or URL of one set, instead of name and base.
        history: input frames.
        target_steps: target frames.
        stride: use every stride-th frame.
        batch_size: samples per batch, also of rollouts; at most as many as a process trains on.
        max_lead: each training target is drawn 1 to `max_lead` steps ahead, anew in each epoch;
            if above 1, batches have "lead_time" (b,), in steps.
        train_fraction: train on only this share of the trajectories (at least one), a random choice
            that depends on the seed; a larger share contains the smaller.
        train_samples: train on only this many samples, a random choice that depends on the seed; a
            larger number contains the smaller.
        num_workers: processes that load data; 0 is fastest for a cached set.
        seed: of the order and choice of training samples.
        cache: keep a split in memory if it fits `cache_limit`; opening a file for every sample is
            slow.
        cache_limit: gigabytes per split.
        replace_nan: read NaN as 0 (``helmholtz_staircase`` has some) instead of refusing it.
        storage_options: of the URL's file system, such as ``{"anon": True}`` for s3.
        augment: random transformations of training samples, any of "flip", "rotate", "permute" and
            "roll", a function of (seed, epoch, sample). Choose those that the physics permits:
            convection has a direction that must not be flipped.
        skip_bad: read every file once before training, and leave out those with any defect, with a
            warning that names it.
    """

    @checked
    def __init__(
        self,
        name: str | None = None,
        base: str | Path | None = None,
        path: str | Path | None = None,
        *,
        history: Positive = 1,
        target_steps: Positive = 1,
        stride: Positive = 1,
        batch_size: Positive = 8,
        max_lead: Positive = 1,
        train_fraction: PositiveShare = 1.0,
        train_samples: Positive | None = None,
        num_workers: NonNegative = 0,
        seed: NonNegative = 0,
        cache: bool = True,
        cache_limit: NonNegativeFloat = 2.0,
        replace_nan: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        augment: str | Sequence[str] = (),
        skip_bad: bool = False,
    ):
        super().__init__()
        if max_lead > 1 and target_steps > 1:
            raise ValueError(
                f"max_lead={max_lead} gives one target frame per sample, not "
                f"target_steps={target_steps} (optim.unroll asks for that many)"
            )
        self.max_lead, self.train_fraction = max_lead, train_fraction
        self.name, self.base, self.path = name, base, path
        self.history, self.target_steps, self.stride = history, target_steps, stride
        self.batch_size, self.train_samples = batch_size, train_samples
        self.num_workers, self.seed = num_workers, seed
        self.replace_nan, self.skip_bad = replace_nan, skip_bad
        self.storage_options = dict(storage_options or {})
        self.augment = [augment] if isinstance(augment, str) else list(augment)
        self._cache_bytes = cache_limit * GIGABYTE if cache else 0
        self._splits: dict[str, Split] = {}

    @cached_property
    def folder(self) -> Location:
        """The folder of the set."""
        return find_folder(self.name, self.base, self.path, WELL_DATASETS, self.storage_options)

    @cached_property
    def info(self) -> FieldInfo:
        """Names, shapes and statistics of the set."""
        # any split has the same channels: evaluation does without the training files
        split = next(iter(self._splits.values()), None) or self._split("train")
        info = FieldInfo(
            name=split.metadata.dataset_name,
            ndim=split.metadata.n_spatial_dims,
            shape=tuple(split.metadata.spatial_resolution),
            fields=tuple(split.channels),
            constants=tuple(split.constants),
            boundary=split.boundary,
            scalars=tuple(split.scalars),
            **self._statistics(split),
        )
        self._check_unchanged()
        return info

    def setup(self, stage: str | None = None) -> None:
        """Checks the splits that a stage needs (None: all), and reads those that are cached.

        Raises:
            ValueError: for anything missing or damaged, naming it.
        """
        for split in STAGES.get(stage, ("test",)):
            _ = self.train_sampler() if split == "train" else self._windows(split)
        _ = self.info

    def check_steps(self, splits: Sequence[str], steps: int, name: str) -> None:
        """Raises ``ValueError`` for more steps ahead than the shortest trajectory has frames for.

        Args:
            splits: of "train", "valid" and "test".
            steps: frames that follow the history.
            name: of the number of steps, for the message.
        """
        for split in splits:
            source = self._split(split)
            most = self._steps_after(source)
            if steps > most >= 1:  # with none, the message is about the history
                raise ValueError(
                    f"{name}={steps} is too long: the shortest trajectory of {source.where} has "
                    f"{source.steps} frames (history={self.history}, stride={self.stride}); at "
                    f"most {name}={most}"
                )

    def _steps_after(self, source: Split) -> int:
        return (source.steps - 1) // self.stride - self.history + 1

    def train_dataloader(self) -> DataLoader:
        """Loads shuffled training batches, without an incomplete last one.

        A batch larger than what a process trains on is made smaller, and a line says so.
        """
        samples = self.seeded_train_samples()
        sampler = self.train_sampler(*ranks_of(self.trainer))
        size = batch_size_for([sampler], self.batch_size)
        return self.make_loader(
            samples, ResumableLoader, batch_size=size, sampler=sampler, drop_last=True
        )

    def train_sampler(self, ranks: int = 1, rank: int = 0) -> EpochSampler:
        """Returns the order of the training samples of one of several processes.

        Raises:
            ValueError: a process has no sample.
        """
        windows = self._train_windows()
        sampler = EpochSampler(windows, seed=self.seed, ranks=ranks, rank=rank)
        if not len(sampler):
            total = len(windows)  # type: ignore[arg-type]
            raise ValueError(f"{total} training samples are too few for {ranks} processes")
        return sampler

    def seeded_train_samples(self) -> Seeded:
        """Returns the training samples by (epoch, index), as the sampler draws them."""
        return Seeded(self._train_windows(), self.seed)

    def val_dataloader(self) -> DataLoader:
        """Loads all windows of the validation split, in order."""
        return self.loader("valid")

    def test_dataloader(self) -> DataLoader:
        """Loads all windows of the test split, in order."""
        return self.loader("test")

    def well_files(self, split: str) -> list[WellFile] | None:
        """Lists the files of a split, without those that `skip_bad` leaves out; None if they are
        not in the Well's format.
        """
        source = self._split(split)
        return source.files if isinstance(source, WellSplit) else None

    def loader(self, split: str, target_steps: int | None = None) -> DataLoader:
        """Loads all windows of a split, in order.

        Args:
            split: "train", "valid" or "test".
            target_steps: target frames; None: as many as in training.
        """
        steps = self.target_steps if target_steps is None else target_steps
        check_value(steps, Positive, "target_steps")
        return self.make_loader(self._split(split).windows(self.history, steps, self.stride))

    def rollout_loader(self, split: str = "test", n_steps: int | None = None) -> DataLoader:
        """Loads one window per trajectory, from its first frame, with `n_steps` target frames.

        Args:
            split: "train", "valid" or "test".
            n_steps: target frames; None: as many as the shortest trajectory of the split has.
        """
        source = self._split(split)
        if n_steps is None:
            n_steps = max(1, self._steps_after(source))
        check_value(n_steps, Positive, "n_steps")
        windows = source.windows(self.history, n_steps, self.stride)
        return self.make_loader(Subset(windows, windows.starts))

    def make_loader(
        self,
        windows: Dataset,
        kind: type[DataLoader] = DataLoader,
        *,
        batch_size: int | None = None,
        **options,
    ) -> DataLoader:
        """Makes a loader of samples with the batch size (None: that of this set) and workers."""
        return kind(
            windows,
            batch_size=self.batch_size if batch_size is None else batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # a private generator: otherwise every pass advances the global random numbers
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )

    def _split(self, split: str) -> Split:
        if split not in self._splits:
            _ = self._found
            self._splits[split] = self._open(split)
            self._check_unchanged()
        return self._splits[split]

    @cached_property
    def _found(self) -> dict[str, Any]:
        """Versions of the files of all splits and of the statistics, before the first is read."""
        return self._versions()

    def _versions(self) -> dict[str, Any]:
        if self.folder.version() is None:  # a URL
            return {}
        places = [self.folder / "data" / split for split in SPLITS]
        files = [file for place in places for file in place.hdf5_files()]
        return {str(file): file.version() for file in [*files, self.folder / "stats.yaml"]}

    def _check_unchanged(self) -> None:
        """Raises ``ValueError`` if a file of the set was replaced, added or removed since.

        What is read later, such as the test split after the training, is of the same set.
        """
        found, now = self._found, self._versions()
        changed = [name for name in {**found, **now} if found.get(name) != now.get(name)]
        if changed:
            raise ValueError(
                f"the data set was changed while in use: {changed[0]} was replaced, changed, added "
                "or removed, so what is read from now on would not match what was read before: "
                "start again"
            )

    def _open(self, split: str) -> Split:
        return WellSplit(self.folder, split, self._cache_bytes, self.replace_nan, self.skip_bad)

    def _windows(self, split: str) -> Windows:
        return self._split(split).windows(self.history, self.target_steps, self.stride)

    def _train_windows(self) -> Dataset:
        steps = max(self.target_steps, self.max_lead)
        windows = self._split("train").windows(self.history, steps, self.stride)
        if self.train_fraction < 1:
            ends = [*windows.starts[1:], len(windows)]
            count = max(1, round(self.train_fraction * len(ends)))
            chosen = _drawn(count, len(ends), self.seed)
            windows = Subset(
                windows, [i for k in chosen for i in range(windows.starts[k], ends[k])]
            )
        count = self.train_samples
        if count is not None:
            if count > len(windows):
                raise ValueError(f"train_samples={count}, but there are only {len(windows)}")
            windows = Subset(windows, _drawn(count, len(windows), self.seed))
        if self.max_lead > 1:
            windows = Leads(windows, self.max_lead)
        if self.augment:
            windows = Augmented(windows, self.augment, self._split("train").metadata)
        return windows

    def _statistics(self, split: Split) -> dict[str, Tensor]:
        """Mean and std of fields, their changes and constants, as `FieldInfo` names them."""
        assert isinstance(split, WellSplit)
        tables, out = read_statistics(self.folder), {}
        kinds = [
            ("", "", split.core_fields, split.channels),
            ("constant_", "", split.core_constants, split.constants),
        ]
        if self.stride == 1:
            kinds.append(("delta_", "_delta", split.core_fields, split.channels))
        else:  # the file knows the change over one frame only
            pairs = self._split("train").windows(1, 1, self.stride)
            out |= pair_statistics(pairs)  # mean and std of the fields are replaced below
        for prefix, suffix, fields, channels in kinds:
            for statistic in ("mean", "std"):
                table = statistic + suffix
                where = f"{self.folder / 'stats.yaml'} [{table}]"
                values = component_statistics(tables[table], fields, len(channels), where)
                out[prefix + statistic] = values
        return out


def ranks_of(trainer: Any) -> tuple[int, int]:
    """Returns the number of processes of a trainer and this one's rank; (1, 0) without trainer."""
    return (trainer.world_size, trainer.global_rank) if trainer else (1, 0)


def batch_size_for(samplers: Sequence[EpochSampler], wanted: int) -> int:
    """Returns the batch size: as wanted, or all samples of the smallest sampler, with a line."""
    smallest = min(samplers, key=len)
    if len(smallest) >= wanted:
        return wanted
    if smallest.rank == 0:
        each = f" on each of {smallest.num_replicas} processes" if smallest.num_replicas > 1 else ""
        print(
            f"batch_size={wanted} is larger than the training set: {len(smallest)} samples{each}, "
            "which make one batch"
        )
    return len(smallest)


def _drawn(count: int, total: int, seed: int) -> list[int]:
    """Draws `count` of the numbers below `total`, in order; a larger count contains a smaller."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values.tolist()


def pair_statistics(pairs: Windows, limit: int = STATISTICS_SAMPLES) -> dict[str, Tensor]:
    """Returns mean and std of the fields and of their change from input to target, each (c,), as
    `FieldInfo` names them.

    Uses at most `limit` windows of one input and one target frame, evenly spread over the split.
    """
    chosen = torch.linspace(0, len(pairs) - 1, min(limit, len(pairs))).long().tolist()
    statistics = Statistics()
    for sample in (pairs[i] for i in chosen):
        value, target = (sample[k][0].double().movedim(0, -1) for k in ("input", "target"))
        statistics.accumulate("", 1, False, value)
        statistics.accumulate("delta_", 1, False, target - value)
    tables = statistics.summary()
    return {
        field + kind: torch.tensor(tables[kind][field], dtype=torch.float32)
        for field in ("", "delta_")
        for kind in ("mean", "std")
    }


def component_statistics(table: dict[str, Any], fields: list[str], size: int, where: str) -> Tensor:
    """Returns the statistics of `fields` as one number per tensor component, (size,).

    Raises:
        ValueError: if a field is missing, or the numbers do not fit the channels.
    """
    missing = [field for field in fields if field not in table]
    if missing:
        raise ValueError(f"{where} has no statistics of {', '.join(missing)}")
    parts = [torch.as_tensor(table[field], dtype=torch.float32).flatten() for field in fields]
    values = torch.cat([torch.empty(0), *parts])
    if len(values) != size or not values.isfinite().all():
        raise ValueError(
            f"{where} must have {size} finite numbers for the components of {', '.join(fields)}, "
            f"got {values.tolist()}"
        )
    return values
