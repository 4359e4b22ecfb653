"""PDEBench's 2D files (Takamoto et al., "PDEBench", 2022) as they are, without conversion."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from the_well.data.datasets import WellMetadata
from torch import Tensor

from adaptok.data.files import SPLITS
from adaptok.data.info import FieldInfo
from adaptok.data.location import HDF5, Location, locate
from adaptok.data.split import (
    MemoryWindows,
    Split,
    Trajectory,
    Windows,
    finite_channels,
)
from adaptok.data.well import WellData, pair_statistics

WALL, OPEN, PERIODIC = 0, 1, 2
SHARE = 10  # one trajectory in so many is for validation, and one for the test


class Layout(NamedTuple):
    """One family of files.

    Attributes:
        name: of the set.
        arrays: where the channels are, in their order, each (n, t, x, y) or (n, t, x, y, c); empty
            where each trajectory is a group with an array "data" (t, x, y, c).
        scalars: names of the scalar channels.
        vectors: names of the components of vectors, after the scalars.
        boundary: type of all ends: wall 0, open 1, periodic 2.
    """

    name: str
    arrays: tuple[str, ...]
    scalars: tuple[str, ...]
    vectors: tuple[str, ...]
    boundary: int

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of all channels."""
        return self.scalars + self.vectors


VELOCITY = ("velocity_x", "velocity_y")
COMPRESSIBLE = Layout(
    "compressible_navier_stokes",
    ("density", "pressure", "Vx", "Vy"),
    ("density", "pressure"),
    VELOCITY,
    PERIODIC,
)
INCOMPRESSIBLE = Layout(
    "incompressible_navier_stokes", ("particles", "velocity"), ("particles",), VELOCITY, WALL
)
SHALLOW_WATER = Layout("shallow_water", (), ("height",), (), OPEN)
DIFFUSION_REACTION = Layout("diffusion_reaction", (), ("activator", "inhibitor"), (), WALL)


class PDEBenchFile(NamedTuple):
    """What is known of a file without reading its fields.

    Attributes:
        location: where it is.
        layout: its family.
        groups: names of the groups of the trajectories, where they are groups.
        trajectories: how many.
        steps: frames of each.
        shape: grid points.
    """

    location: Location
    layout: Layout
    groups: tuple[str, ...]
    trajectories: int
    steps: int
    shape: tuple[int, ...]

    def frames(self, file: h5py.File, number: int, chosen: slice) -> np.ndarray:
        """Frames of a trajectory, channels last."""
        content: Any = file
        if self.groups:
            return content[self.groups[number]]["data"][chosen]
        parts = [content[name][number, chosen] for name in self.layout.arrays]
        return np.concatenate([p if p.ndim == 4 else p[..., None] for p in parts], -1)

    def times(self, file: h5py.File, number: int) -> Tensor:
        """Of the frames, float64 (t,)."""
        content: Any = file
        if self.groups:
            values = content[self.groups[number]]["grid"]["t"][...]
        elif "t" in content:
            values = content["t"][number] if content["t"].ndim == 2 else content["t"][...]
        else:
            values = content["t-coordinate"][...]  # one more than frames in some files
        return torch.as_tensor(values[: self.steps]).double()


def inspect(location: Location) -> PDEBenchFile:
    """Reads what describes a file.

    Raises:
        ValueError: it is damaged, or no 2D file of PDEBench that is known here.
    """
    try:
        with location.hdf5() as file:
            return _inspect(location, file)
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"damaged or truncated HDF5 file {location}: {error}") from error


def _inspect(location: Location, file: h5py.File) -> PDEBenchFile:
    content: Any = file
    for layout in (COMPRESSIBLE, INCOMPRESSIBLE):
        if all(name in file for name in layout.arrays):
            shape = content[layout.arrays[0]].shape
            if len(shape) - (layout is INCOMPRESSIBLE) == 4:
                return PDEBenchFile(location, layout, (), shape[0], shape[1], tuple(shape[2:4]))
    groups = tuple(name for name in sorted(file) if name.isdigit() and "data" in content[name])
    if groups:
        shape = content[groups[0]]["data"].shape
        for layout in (SHALLOW_WATER, DIFFUSION_REACTION):
            if len(shape) == 4 and shape[-1] == len(layout.channels):
                own = (len(groups), shape[0], tuple(shape[1:3]))
                return PDEBenchFile(location, layout, groups, *own)
    raise ValueError(
        f"{location} is none of PDEBench's 2D files of incompressible or compressible flow, "
        f"shallow water or diffusion and reaction; it holds {', '.join(sorted(file)[:6])}"
    )


def split_range(count: int, split: str) -> range:
    """Trajectories of a split: the first are for training, the last for the test.

    Raises:
        ValueError: fewer than three trajectories.
    """
    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
    if count < len(SPLITS):
        raise ValueError(f"three splits need at least three trajectories, got {count}")
    part = max(1, count // SHARE)
    ends = {"train": (0, count - 2 * part), "valid": (count - 2 * part, count - part)}
    return range(*ends.get(split, (count - part, count)))


class PDEBenchSplit(Split):
    """A split of files of PDEBench.

    Args:
        files: of one layout and grid.
        split: "train", "valid" or "test": of each file its share of trajectories.
        cache_bytes: the split is kept in memory if it needs at most this much.
        replace_nan: read NaN as 0 instead of refusing it.
    """

    def __init__(
        self, files: Sequence[PDEBenchFile], split: str, cache_bytes: float, replace_nan: bool
    ):
        self.where = ", ".join(str(file.location) for file in files)
        self.members = [(f, n) for f in files for n in split_range(f.trajectories, split)]
        self.steps = min(file.steps for file in files)
        layout, shape = files[0].layout, files[0].shape
        self.layout, self.replace_nan = layout, replace_nan
        self.channels, self.constants, self.scalars = list(layout.channels), [], []
        self.metadata = WellMetadata(
            dataset_name=layout.name,
            n_spatial_dims=len(shape),
            spatial_resolution=shape,
            scalar_names=[],
            constant_scalar_names=[],
            field_names={0: list(layout.scalars), 1: list(layout.vectors)},
            constant_field_names={0: [], 1: []},
            boundary_condition_types=[],
            n_files=len(files),
            n_trajectories_per_file=[file.trajectories for file in files],
            n_steps_per_trajectory=[file.steps for file in files],
        )
        self.cached = self._bytes(sum(file.steps for file, _ in self.members)) <= cache_bytes

    @property
    def boundary(self) -> Tensor:
        """Types of the ends of each axis, (ndim, 2)."""
        return torch.full((self.metadata.n_spatial_dims, 2), self.layout.boundary)

    def _from_files(self, history: int, target_steps: int, stride: int) -> Windows:
        return PDEBenchWindows(self, history, target_steps, stride)

    def _read(self) -> list[Trajectory]:
        return [self.read(i, slice(None)) for i in range(len(self.members))]

    def read(self, index: int, chosen: slice) -> Trajectory:
        """Some frames of a trajectory.

        Raises:
            ValueError: the file is damaged, or a value is not finite.
        """
        source, number = self.members[index]
        where = f"{source.location}, trajectory {number}"
        try:
            with source.location.hdf5() as file:
                frames, times = source.frames(file, number, chosen), source.times(file, number)
        except (OSError, KeyError, RuntimeError, IndexError) as error:
            raise ValueError(f"damaged or truncated HDF5 file, {where}: {error}") from error
        values = torch.as_tensor(frames)
        fields = finite_channels(values, 1, self.channels, where, self.replace_nan)
        return Trajectory(fields, None, self.boundary, None, times[chosen])


class PDEBenchWindows(Windows):
    """Windows that are read from the files each time; arguments as of `PDEBenchSplit.windows`."""

    def __init__(self, split: PDEBenchSplit, history: int, target_steps: int, stride: int):
        self.split, self.options = split, (history, target_steps, stride)
        self.span = stride * (history + target_steps - 1) + 1
        self._ends = [*accumulate(file.steps - self.span + 1 for file, _ in split.members)]
        self.starts = [0, *self._ends[:-1]]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        first = index - self.starts[which]
        part = self.split.read(which, slice(first, first + self.span))
        return MemoryWindows([part], *self.options)[0]


class PDEBench(WellData):
    """Batches of a PDEBench file, or of a folder of files of one kind, as `WellData` makes them.

    Incompressible and compressible flow, shallow water, and diffusion and reaction, all in 2D, in
    physical units. Of each file the first eight in ten trajectories are for training, the next for
    validation, the last for the test. Mean, std and change come from 512 pairs of training frames
    that are spread evenly. The forcing of incompressible flow is left out, as in MATEY.

    Args: as of `WellData`; the set is given by `path`, a file, folder or URL.
    """

    def _find(self) -> Location:
        if self.path is None or self.skip_bad:
            raise ValueError("files of PDEBench are given by path=..., and none can be skipped")
        return locate(self.path, self.storage_options)

    @cached_property
    def files(self) -> list[PDEBenchFile]:
        """The files, without their fields."""
        return find_files(self.folder)

    def _open(self, split: str) -> PDEBenchSplit:
        return PDEBenchSplit(self.files, split, self._cache_bytes, self.replace_nan)

    def _describe(self) -> FieldInfo:
        split = self._split("train")
        moments = pair_statistics(split.windows(1, 1, self.stride))
        none = torch.empty(0)
        return FieldInfo(
            name=split.metadata.dataset_name,
            ndim=split.metadata.n_spatial_dims,
            shape=split.metadata.spatial_resolution,
            fields=tuple(split.channels),
            constants=(),
            mean=moments["mean"],
            std=moments["std"],
            delta_mean=moments["delta_mean"],
            delta_std=moments["delta_std"],
            constant_mean=none,
            constant_std=none,
            boundary=split.boundary,
        )


def find_files(where: Location) -> list[PDEBenchFile]:
    """The files at a place, which share layout and grid.

    Raises:
        ValueError: there is none, or they differ.
    """
    found = where.hdf5_files() if where.is_folder() else [where]
    if not found or (not where.is_folder() and not where.is_file()):
        raise ValueError(f"no file of PDEBench ({' or '.join(HDF5)}) at {where}")
    files = [inspect(location) for location in found]
    first = files[0]
    for file in files:
        if (file.layout, file.shape) != (first.layout, first.shape):
            raise ValueError(
                f"{file.location} holds {file.layout.name} on {file.shape}, "
                f"{first.location} {first.layout.name} on {first.shape}; use a folder for each"
            )
    return files
