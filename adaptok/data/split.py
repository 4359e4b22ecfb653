"""One split of a data set, read from its files each time or kept in memory."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from the_well.data.datasets import WellDataset, WellMetadata
from torch import Tensor

from adaptok.data.location import DAMAGE, Location
from adaptok.data.well_files import WellFile, find_well_files
from adaptok.data.windows import ReadWindows, Trajectory, Windows, finite_channels, span

FLOAT_BYTES = 4
# What damage leads the Well's own reader to as well.
READING = (*DAMAGE, AssertionError, AttributeError, TypeError, ValueError)


def component_names(names: Mapping[int, Sequence[str]]) -> list[str]:
    """Flattens the names of components by tensor order, as the Well's metadata has them."""
    return [name for members in names.values() for name in members]


class Split:
    """The trajectories of one split of a data set.

    Attributes:
        steps: frames of the shortest trajectory.
        all_steps: frames of each trajectory.
        channels: names of the fields, one per component.
        constants: names of the static fields, one per component.
        scalars: names of the physical parameters.
        boundary: types of the ends of each axis, (ndim, 2).
        cached: whether it is kept in memory.

    Args:
        where: the folder or file, for messages.
        steps: frames of each trajectory.
        metadata: of the set, as the Well has it.
        cache_bytes: the split is kept in memory if it needs at most this much.
    """

    boundary: Tensor

    def __init__(
        self, where: Any, steps: Sequence[int], metadata: WellMetadata, cache_bytes: float
    ):
        self.where, self.all_steps, self.metadata = where, list(steps), metadata
        self.steps = min(steps)
        self.channels = component_names(metadata.field_names)
        self.constants = component_names(metadata.constant_field_names)
        self.scalars = [*metadata.constant_scalar_names, *metadata.scalar_names]
        points = torch.Size(metadata.spatial_resolution).numel()
        self.cached = FLOAT_BYTES * sum(steps) * len(self.channels) * points <= cache_bytes

    def windows(self, history: int, target_steps: int, stride: int) -> Windows:
        """Returns all windows of the split, in the order of files, trajectories and time.

        Raises:
            ValueError: if a trajectory is shorter than one window.
        """
        needed = span(history, target_steps, stride)
        if needed > self.steps:
            raise ValueError(
                f"history={history} and {target_steps} steps ahead (stride={stride}) need {needed} "
                f"frames; the shortest trajectory of {self.where} has {self.steps}"
            )
        if not self.cached:
            return self._from_files(history, target_steps, stride)
        _ = self._trajectories  # reads them now, so that anything damaged is named here
        return ReadWindows(self._from_memory, self.all_steps, history, target_steps, stride)

    def _from_files(self, history: int, target_steps: int, stride: int) -> Windows:
        raise NotImplementedError

    def _from_memory(self, trajectory: int, frames: slice) -> Trajectory:
        return self._trajectories[trajectory].cut(frames)

    @cached_property
    def _trajectories(self) -> list[Trajectory]:
        raise NotImplementedError


class WellSplit(Split):
    """A split in the Well's format.

    Args:
        folder: of the data set.
        split: "train", "valid" or "test".
        cache_bytes: the split is kept in memory if it needs at most this much.
        replace_nan: read NaN as 0 instead of refusing it.
        skip_bad: leave out files with any defect.
    """

    def __init__(
        self, folder: Location, split: str, cache_bytes: float, replace_nan: bool, skip_bad: bool
    ):
        where = self.where = folder / "data" / split
        self.files = find_well_files(folder, split, skip_bad=skip_bad)
        self.replace_nan = replace_nan
        steps = [file.steps for file in self.files for _ in range(file.trajectories)]
        if min(steps) < 2:
            raise ValueError(f"trajectories of one frame in split {split!r} of {folder}")
        self._pairs = WellWindows(self, self.files, 1, 1, 1)
        self.core_fields = list(self._pairs.dataset.core_field_names)
        self.core_constants = list(self._pairs.dataset.core_constant_field_names)
        super().__init__(where, steps, self._pairs.dataset.metadata, cache_bytes)

    @cached_property
    def boundary(self) -> Tensor:
        """Types of the ends of each axis, (ndim, 2)."""
        return self._pairs[0]["boundary"]

    def _from_files(self, history: int, target_steps: int, stride: int) -> Windows:
        return WellWindows(self, self.files, history, target_steps, stride)

    @cached_property
    def _trajectories(self) -> list[Trajectory]:
        out = []
        for file in self.files:  # one window spans a trajectory
            whole = WellWindows(self, [file], 1, file.steps - 1, 1)
            out += [whole.read(row, slice(0, None)) for row in range(len(whole))]
        return out


class WellWindows(Windows):
    """Windows that the Well's own reader reads from the files each time, see :class:`Windows`.

    Args:
        split: whose folder and `replace_nan` are used.
        files: some or all of its files.
        history: input frames.
        target_steps: target frames.
        stride: frames between two frames of a sample.
    """

    def __init__(
        self, split: WellSplit, files: list[WellFile], history: int, target_steps: int, stride: int
    ):
        self.members = [(file, row) for file in files for row in range(file.trajectories)]
        super().__init__([file.steps for file, _ in self.members], history, target_steps, stride)
        self.replace_nan, where = split.replace_nan, split.where
        paths = [file.location.path for file in files]
        try:
            self.dataset = WellDataset(
                path=glob.escape(str(where)),  # the reader takes it for a pattern
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
        except READING as error:
            names = ", ".join(file.location.name for file in files[:3])
            more = ", ..." if len(files) > 3 else ""
            raise ValueError(f"cannot read {names}{more} in {where}: {error}") from error
        if self.dataset.files_paths != paths:
            raise ValueError(
                f"cannot choose between the files in {where}: one path is part of another, of "
                f"{', '.join(self.dataset.files_paths)}"
            )

    def read(self, trajectory: int, frames: slice) -> Trajectory:
        """Reads the frames of one window of a trajectory.

        Raises:
            ValueError: the file is damaged or was replaced, or a value is not finite.
        """
        file, row = self.members[trajectory]
        where = f"{file.location}, trajectory {row}"
        try:
            sample = self.dataset[self.starts[trajectory] + frames.start]
        except READING as error:
            file.location.check_version(file.version)
            raise ValueError(
                "damaged or truncated HDF5 file, or fields of another shape or type, "
                f"{where}: {error}"
            ) from error
        file.location.check_version(file.version)  # afterwards: it may change during the reading
        fields = torch.cat([sample["input_fields"], sample["output_fields"]])
        metadata, constants = self.dataset.metadata, None
        if "constant_fields" in sample:
            names = component_names(metadata.constant_field_names)
            constants = self._checked(sample["constant_fields"], names, where)
        return Trajectory(
            self._checked(fields, component_names(metadata.field_names), where),
            constants,
            sample["boundary_conditions"].long(),
            self._scalars(sample, len(fields), where),
            torch.as_tensor(file.times_of(row)).double()[frames],
        )

    def time(self, trajectory: int, frame: int) -> float:
        """Returns the time of any frame of a trajectory, without reading the fields."""
        file, row = self.members[trajectory]
        return float(file.times_of(row)[frame])

    def _scalars(self, sample: dict[str, Tensor], steps: int, where: str) -> Tensor | None:
        """Constant scalars, then those that vary with time, at each frame of a sample, (t, n)."""
        metadata = self.dataset.metadata
        names = [*metadata.constant_scalar_names, *metadata.scalar_names]
        if not names:
            return None
        parts = []
        if "constant_scalars" in sample:
            parts.append(sample["constant_scalars"].float().expand(steps, -1))
        if "input_scalars" in sample:
            varying = [sample["input_scalars"], sample["output_scalars"]]
            parts.append(torch.cat(varying).float())
        values = torch.cat(parts, -1)
        if values.shape[-1] != len(names) or not values.isfinite().all():
            raise ValueError(
                f"the scalars of {where} must be finite numbers for {', '.join(names)}"
            )
        return values

    def _checked(self, value: Tensor, names: list[str], where: str) -> Tensor:
        """Channels first, as float32; raises if a value is not finite."""
        grid = tuple(self.dataset.metadata.spatial_resolution)
        axis = value.ndim - 1 - len(grid)
        if tuple(value.shape[axis:-1]) != grid:
            raise ValueError(
                f"fields of shape {tuple(value.shape[axis:-1])} on a grid of {grid} in {where}"
            )
        return finite_channels(value, axis, names, where, self.replace_nan)
