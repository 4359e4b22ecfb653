"""One split of a data set as windows of frames, read from files or kept in memory."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from the_well.data.datasets import WellDataset, WellMetadata
from torch import Tensor
from torch.utils.data import Dataset

from adaptok.data.files import WellFile, find_files

FLOAT_BYTES = 4


class Trajectory(NamedTuple):
    """A whole trajectory in memory: fields (t, c, *space), constants (cc, *space), boundary."""

    fields: Tensor
    constants: Tensor | None
    boundary: Tensor


class Windows(Dataset):
    """Samples of `history` input frames and `target_steps` target frames, `stride` frames apart.

    A sample is a dict of "input" (t, c, *space), "target" (t_out, c, *space), "boundary"
    (ndim, 2) and, where the set has any, "constants" (cc, *space).

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
        files: files of one split; all of them, or one.
        history: input frames.
        target_steps: target frames.
        stride: frames between two frames of a sample.
        replace_nan: read NaN as 0 instead of refusing it.
    """

    def __init__(
        self,
        files: list[WellFile],
        history: int,
        target_steps: int,
        stride: int,
        replace_nan: bool = False,
    ):
        where = files[0].path.parent
        try:
            self.dataset = WellDataset(
                path=str(where),
                # a substring of the full path is wanted there, and nothing shorter is unambiguous
                include_filters=[str(files[0].path.absolute())] if len(files) == 1 else [],
                n_steps_input=history,
                n_steps_output=target_steps,
                max_rollout_steps=target_steps,
                min_dt_stride=stride,
                max_dt_stride=stride,
                return_grid=False,
            )
        except (AssertionError, KeyError, OSError) as error:
            raise ValueError(f"cannot read the files in {where}: {error}") from error
        self.files, self.replace_nan = files, replace_nan
        self.metadata: WellMetadata = self.dataset.metadata
        self.channels = _flat(self.metadata.field_names)
        self.constants = _flat(self.metadata.constant_field_names)
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
        where = self._where(index)
        try:
            sample = self.dataset[index]
        except (OSError, KeyError) as error:
            raise ValueError(f"damaged or truncated HDF5 file, {where}: {error}") from error
        out = {
            "input": self._checked(sample["input_fields"], self.channels, where),
            "target": self._checked(sample["output_fields"], self.channels, where),
            "boundary": sample["boundary_conditions"].long(),
        }
        if "constant_fields" in sample:
            out["constants"] = self._checked(sample["constant_fields"], self.constants, where)
        return out

    def _where(self, index: int) -> str:
        """The file and trajectory of a sample, for messages."""
        trajectory = bisect_right(self.starts, index) - 1
        for file in self.files:
            if trajectory < file.trajectories:
                return f"{file.path}, trajectory {trajectory}"
            trajectory -= file.trajectories
        raise AssertionError("a sample belongs to a file")

    def _checked(self, value: Tensor, names: list[str], where: str) -> Tensor:
        """Channels first, as float32; raises where a value is not finite."""
        axis = value.ndim - 1 - self.metadata.n_spatial_dims
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
        fields, constants, boundary = self.trajectories[which]
        first = index - self.starts[which]
        frames = fields[first : first + self.span : self.stride]
        out = {
            "input": frames[: self.history],
            "target": frames[self.history :],
            "boundary": boundary,
        }
        return out if constants is None else {**out, "constants": constants}


class Split:
    """The trajectories of one split.

    Args:
        folder: of the data set.
        split: "train", "valid" or "test".
        cache_bytes: the split is kept in memory if it needs at most this much.
        replace_nan: read NaN as 0 instead of refusing it.
    """

    def __init__(self, folder: Path, split: str, cache_bytes: float, replace_nan: bool):
        self.files = find_files(folder, split)
        self.replace_nan = replace_nan
        self.steps = min(file.steps for file in self.files)
        if self.steps < 2:
            raise ValueError(f"trajectories of one frame in split {split!r} of {folder}")
        self._all = FileWindows(self.files, 1, 1, 1, replace_nan)
        self.metadata = self._all.metadata
        self.channels, self.constants = self._all.channels, self._all.constants
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
                f"frames; the shortest trajectory of {self.files[0].path.parent} has {self.steps}"
            )
        if not self.cached:
            return FileWindows(self.files, history, target_steps, stride, self.replace_nan)
        if self._trajectories is None:
            self._trajectories = [t for file in self.files for t in self._read(file)]
        return MemoryWindows(self._trajectories, history, target_steps, stride)

    def _read(self, file: WellFile) -> list[Trajectory]:
        whole = FileWindows([file], 1, file.steps - 1, 1, self.replace_nan)
        if (whole.channels, whole.constants) != (self.channels, self.constants):
            raise ValueError(f"{file.path} has other fields than {self.files[0].path}")
        samples = (whole[i] for i in range(len(whole)))
        return [
            Trajectory(torch.cat([s["input"], s["target"]]), s.get("constants"), s["boundary"])
            for s in samples
        ]


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
