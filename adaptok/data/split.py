"""One split of a data set as windows of frames, read from files or kept in memory."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from the_well.data.datasets import WellDataset, WellMetadata
from torch import Tensor
from torch.utils.data import Dataset

from adaptok.data.files import WellFile, find_files
from adaptok.data.location import Location

FLOAT_BYTES = 4


class Trajectory(NamedTuple):
    """A whole trajectory in memory.

    Attributes:
        fields: (t, c, *space).
        constants: (cc, *space), or None.
        boundary: (ndim, 2).
        scalars: at each frame, (t, n), or None.
        times: of the frames, float64 (t,).
    """

    fields: Tensor
    constants: Tensor | None
    boundary: Tensor
    scalars: Tensor | None
    times: Tensor


class Windows(Dataset):
    """Samples of `history` input frames and `target_steps` target frames, `stride` frames apart.

    A sample is a dict of "input" (t, c, *space), "target" (t_out, c, *space), "boundary"
    (ndim, 2), "time_step" (), the time from the last input frame to the first target, and, where
    the set has any, "constants" (cc, *space) and "scalars" (n,), those at the last input frame.

    Attributes:
        starts: index of the first sample of each trajectory.
    """

    starts: list[int]

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        raise NotImplementedError


class FileWindows(Windows):
    """Windows that are read from the files each time.

    Args:
        where: the folder of the files.
        files: files of one split; some or all of those in the folder.
        history: input frames.
        target_steps: target frames.
        stride: frames between two frames of a sample.
        replace_nan: read NaN as 0 instead of refusing it.
    """

    def __init__(
        self,
        where: Location,
        files: list[WellFile],
        history: int,
        target_steps: int,
        stride: int,
        replace_nan: bool = False,
    ):
        paths = [file.location.path for file in files]
        try:
            self.dataset = WellDataset(
                path=str(where),
                # substrings of the full paths are wanted there; nothing shorter is unambiguous
                include_filters=paths,
                n_steps_input=history,
                n_steps_output=target_steps,
                max_rollout_steps=target_steps,
                min_dt_stride=stride,
                max_dt_stride=stride,
                return_grid=False,  # a space grid per sample; the times are known
                storage_options=dict(where.options),
            )
        except (AssertionError, KeyError, OSError) as error:
            raise ValueError(f"cannot read the files in {where}: {error}") from error
        if self.dataset.files_paths != paths:
            raise ValueError(
                f"cannot choose between the files in {where}: one path is part of another, of "
                f"{', '.join(self.dataset.files_paths)}"
            )
        self.files, self.replace_nan = files, replace_nan
        self.history, self.stride = history, stride
        self.metadata: WellMetadata = self.dataset.metadata
        self.channels = _flat(self.metadata.field_names)
        self.constants = _flat(self.metadata.constant_field_names)
        self.scalars = [*self.metadata.constant_scalar_names, *self.metadata.scalar_names]
        counts = zip(
            self.dataset.n_trajectories_per_file,
            self.dataset.n_windows_per_trajectory,
            strict=True,
        )
        windows = [n for trajectories, n in counts for _ in range(trajectories)]
        self.starts = [0, *accumulate(windows)][:-1]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):  # also ends plain iteration
            raise IndexError(index)
        file, trajectory, first = self._place(index)
        where = f"{file.location}, trajectory {trajectory}"
        try:
            sample = self.dataset[index]
        except (OSError, KeyError, RuntimeError, IndexError) as error:
            raise ValueError(
                f"damaged or truncated HDF5 file, or fields of another shape, {where}: {error}"
            ) from error
        last = first + self.stride * (self.history - 1)
        times = file.times[trajectory] if file.times.ndim == 2 else file.times
        out = {
            "input": self._checked(sample["input_fields"], self.channels, where),
            "target": self._checked(sample["output_fields"], self.channels, where),
            "boundary": sample["boundary_conditions"].long(),
            "time_step": _time_step(torch.as_tensor(times), last, self.stride),
        }
        if "constant_fields" in sample:
            out["constants"] = self._checked(sample["constant_fields"], self.constants, where)
        if self.scalars:
            out["scalars"] = self.scalars_of(sample, where)[self.history - 1]
        return out

    def trajectory(self, index: int) -> Trajectory:
        """A sample that spans a whole trajectory."""
        sample, (file, number, _) = self[index], self._place(index)
        times = file.times[number] if file.times.ndim == 2 else file.times
        scalars = None
        if self.scalars:
            scalars = self.scalars_of(self.dataset[index], str(file.location))
        return Trajectory(
            torch.cat([sample["input"], sample["target"]]),
            sample.get("constants"),
            sample["boundary"],
            scalars,
            torch.as_tensor(times).double(),
        )

    def scalars_of(self, sample: dict[str, Tensor], where: str) -> Tensor:
        """Constant scalars, then those that vary with time, at each frame of a sample, (t, n)."""
        steps = len(sample["input_fields"]) + len(sample["output_fields"])
        parts = []
        if "constant_scalars" in sample:
            parts.append(sample["constant_scalars"].float().expand(steps, -1))
        if "input_scalars" in sample:
            varying = [sample["input_scalars"], sample["output_scalars"]]
            parts.append(torch.cat(varying).float())
        values = torch.cat(parts, -1)
        if values.shape[-1] != len(self.scalars) or not values.isfinite().all():
            raise ValueError(
                f"the scalars of {where} must be finite numbers for {', '.join(self.scalars)}"
            )
        return values

    def _place(self, index: int) -> tuple[WellFile, int, int]:
        """File, trajectory in it and first frame of a sample."""
        trajectory = bisect_right(self.starts, index) - 1
        first = index - self.starts[trajectory]
        for file in self.files:
            if trajectory < file.trajectories:
                return file, trajectory, first
            trajectory -= file.trajectories
        raise AssertionError("a sample belongs to a file")

    def _checked(self, value: Tensor, names: list[str], where: str) -> Tensor:
        """Channels first, as float32; raises where a value is not finite."""
        axis = value.ndim - 1 - self.metadata.n_spatial_dims
        if tuple(value.shape[axis:-1]) != tuple(self.metadata.spatial_resolution):
            raise ValueError(
                f"fields of shape {tuple(value.shape[axis:-1])} on a grid of "
                f"{tuple(self.metadata.spatial_resolution)} in {where}"
            )
        value = value.movedim(-1, axis).float()
        if self.replace_nan:
            value = torch.where(value.isnan(), 0.0, value)
        if not value.isfinite().all():
            broken = (~value.isfinite()).movedim(axis, 0).flatten(1).any(1).tolist()
            bad = [name for name, is_bad in zip(names, broken, strict=True) if is_bad]
            raise ValueError(f"NaN or Inf in channel {', '.join(bad)} of {where}")
        return value.contiguous()


class MemoryWindows(Windows):
    """Windows over trajectories in memory; arguments as of :class:`FileWindows`."""

    def __init__(
        self, trajectories: list[Trajectory], history: int, target_steps: int, stride: int
    ):
        self.trajectories = trajectories
        self.history, self.stride = history, stride
        self.span = stride * (history + target_steps - 1) + 1
        self._ends = [*accumulate(len(t.fields) - self.span + 1 for t in trajectories)]
        self.starts = [0, *self._ends[:-1]]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        fields, constants, boundary, scalars, times = self.trajectories[which]
        first = index - self.starts[which]
        last = first + self.stride * (self.history - 1)
        frames = fields[first : first + self.span : self.stride]
        out = {
            "input": frames[: self.history],
            "target": frames[self.history :],
            "boundary": boundary,
            "time_step": _time_step(times, last, self.stride),
        }
        if constants is not None:
            out["constants"] = constants
        if scalars is not None:
            out["scalars"] = scalars[last]
        return out


class Split:
    """The trajectories of one split.

    Args:
        folder: of the data set.
        split: "train", "valid" or "test".
        cache_bytes: the split is kept in memory if it needs at most this much.
        replace_nan: read NaN as 0 instead of refusing it.
        skip_bad: leave out files that have something wrong.
    """

    def __init__(
        self,
        folder: Location,
        split: str,
        cache_bytes: float,
        replace_nan: bool = False,
        skip_bad: bool = False,
    ):
        self.where = folder / "data" / split
        self.files = find_files(folder, split, skip_bad=skip_bad)
        self.replace_nan = replace_nan
        self.steps = min(file.steps for file in self.files)
        if self.steps < 2:
            raise ValueError(f"trajectories of one frame in split {split!r} of {folder}")
        self._all = FileWindows(self.where, self.files, 1, 1, 1, replace_nan)
        self.metadata = self._all.metadata
        self.channels, self.constants = self._all.channels, self._all.constants
        self.scalars = self._all.scalars
        self.core_fields = list(self._all.dataset.core_field_names)
        self.core_constants = list(self._all.dataset.core_constant_field_names)
        self.cached = self._bytes() <= cache_bytes
        self._trajectories: list[Trajectory] | None = None

    @property
    def boundary(self) -> Tensor:
        """Types of the ends of each axis, (ndim, 2)."""
        return self._all[0]["boundary"]

    def _bytes(self) -> int:
        frames = sum(file.trajectories * file.steps for file in self.files)
        per_frame = len(self.channels) * torch.Size(self.metadata.spatial_resolution).numel()
        return FLOAT_BYTES * frames * per_frame

    def windows(self, history: int, target_steps: int, stride: int) -> Windows:
        """All windows of the split, in the order of files, trajectories and time.

        Raises:
            ValueError: if a trajectory is shorter than one window.
        """
        span = stride * (history + target_steps - 1) + 1
        if span > self.steps:
            raise ValueError(
                f"history={history}, target_steps={target_steps}, stride={stride} need {span} "
                f"frames; the shortest trajectory of {self.where} has {self.steps}"
            )
        if not self.cached:
            return FileWindows(
                self.where, self.files, history, target_steps, stride, self.replace_nan
            )
        if self._trajectories is None:
            self._trajectories = [t for file in self.files for t in self._read(file)]
        return MemoryWindows(self._trajectories, history, target_steps, stride)

    def _read(self, file: WellFile) -> list[Trajectory]:
        whole = FileWindows(self.where, [file], 1, file.steps - 1, 1, self.replace_nan)
        return [whole.trajectory(number) for number in range(len(whole))]


def _time_step(times: Tensor, last: int, stride: int) -> Tensor:
    """The time from frame `last` to the next one of a window, ()."""
    return (times[last + stride].double() - times[last].double()).float()


def _flat(names: dict[int, list[str]]) -> list[str]:
    return [name for members in names.values() for name in members]


def component_statistics(table: dict[str, Any], fields: list[str], size: int, where: str) -> Tensor:
    """Statistics of `fields` as one number per tensor component, (size,).

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
