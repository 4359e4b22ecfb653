"""PDEBench's 2D files (Takamoto et al., "PDEBench", 2022) as they are, without conversion."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from the_well.data.datasets import WellMetadata
from torch import Tensor

from adaptok.data.location import Location, locate
from adaptok.data.split import Split
from adaptok.data.well import WellData, pair_statistics
from adaptok.data.well_format import HDF5, SPLITS
from adaptok.data.windows import (
    ReadWindows,
    Trajectory,
    Windows,
    finite_channels,
    increasing_times,
    numbers,
)
from adaptok.registry import choice
from adaptok.utils.boundary import OPEN, PERIODIC, WALL

SHARE = 10  # 1 trajectory in SHARE goes to validation, another to the test split


class Family(NamedTuple):
    """Files of one kind.

    Attributes:
        name: of the set.
        arrays: names of the arrays of channels, in their order, each (n, t, x, y) or
            (n, t, x, y, c); empty if each trajectory is a group with an array "data" (t, x, y, c).
        scalars: names of the scalar channels.
        vectors: names of the components of vectors, after the scalars.
        boundary: type of all ends (wall 0, open 1, periodic 2).
    """

    name: str
    arrays: tuple[str, ...]
    scalars: tuple[str, ...]
    vectors: tuple[str, ...]
    boundary: int


VELOCITY = ("velocity_x", "velocity_y")
COMPRESSIBLE = Family(
    "compressible_navier_stokes",
    ("density", "pressure", "Vx", "Vy"),
    ("density", "pressure"),
    VELOCITY,
    PERIODIC,
)
INCOMPRESSIBLE = Family(
    "incompressible_navier_stokes", ("particles", "velocity"), ("particles",), VELOCITY, WALL
)
SHALLOW_WATER = Family("shallow_water", (), ("height",), (), OPEN)
DIFFUSION_REACTION = Family("diffusion_reaction", (), ("activator", "inhibitor"), (), WALL)


class PDEBenchFile(NamedTuple):
    """What is known of a file without reading its fields.

    Attributes:
        location: where it is.
        family: its kind.
        groups: names of the groups of the trajectories, if they are groups.
        trajectories: how many.
        steps: frames of each, one number per trajectory.
        shape: grid points.
        version: of the file that was described, see `Location.version`.
    """

    location: Location
    family: Family
    groups: tuple[str, ...]
    trajectories: int
    steps: tuple[int, ...]
    shape: tuple[int, ...]
    version: tuple[int, int] | None

    @classmethod
    def describe(cls, location: Location) -> PDEBenchFile:
        """Reads what describes a file.

        Raises:
            ValueError: it is damaged, or no 2D file of a known family.
        """
        version = location.version()
        with location.hdf5() as file:
            for family in (COMPRESSIBLE, INCOMPRESSIBLE):
                if all(name in file for name in family.arrays):
                    shape = file[family.arrays[0]].shape
                    if len(shape) - (family is INCOMPRESSIBLE) == 4:
                        count, steps, *grid = shape[:4]
                        frames = (steps,) * count
                        return cls(location, family, (), count, frames, tuple(grid), version)
            groups = tuple(name for name in sorted(file) if name.isdigit() and "data" in file[name])
            if groups:
                steps, grid = _shapes(file, groups, location)
                for family in (SHALLOW_WATER, DIFFUSION_REACTION):
                    if len(grid) == 3 and grid[-1] == len(family.scalars):
                        count = len(groups)
                        return cls(location, family, groups, count, steps, grid[:2], version)
            raise ValueError(
                f"{location} is not one of PDEBench's 2D files of incompressible or compressible "
                "flow, shallow water or diffusion and reaction; "
                f"it holds {', '.join(sorted(file)[:6])}"
            )

    def frames(self, file: Any, number: int, chosen: slice) -> np.ndarray:
        """Reads frames of a trajectory, channels last."""
        if self.groups:
            return file[self.groups[number]]["data"][chosen]
        parts = [file[name][number, chosen] for name in self.family.arrays]
        return np.concatenate([p if p.ndim == 4 else p[..., None] for p in parts], -1)

    def times(self, file: Any, number: int) -> Tensor:
        """Reads the times of the frames, float64 (t,)."""
        if self.groups:
            values = file[self.groups[number]]["grid"]["t"][...]
        elif "t" in file:
            values = file["t"][number] if file["t"].ndim == 2 else file["t"][...]
        else:
            values = file["t-coordinate"][...]  # one more than frames in some files
        where = f"{self.location}, trajectory {number}"
        return torch.from_numpy(increasing_times(values[: self.steps[number]], where))


def _shapes(
    file: Any, groups: Sequence[str], location: Location
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Reads the frames of each group and the shape of a frame, which all share.

    Raises:
        ValueError: two groups have frames of different shape.
    """
    shapes = [tuple(file[group]["data"].shape) for group in groups]
    for group, shape in zip(groups, shapes, strict=True):
        if shape[1:] != shapes[0][1:]:
            raise ValueError(
                f"frames of trajectory {group} of {location} have shape {shape[1:]}, those of "
                f"{groups[0]} {shapes[0][1:]}"
            )
    return tuple(shape[0] for shape in shapes), shapes[0][1:]


def split_range(count: int, split: str) -> range:
    """Returns the trajectories of a split: the first ones train, the last ones test.

    Raises:
        ValueError: fewer than three trajectories.
    """
    choice("split", split, SPLITS)
    if count < len(SPLITS):
        raise ValueError(f"three splits need at least three trajectories, got {count}")
    part = max(1, count // SHARE)
    ends = {"train": (0, count - 2 * part), "valid": (count - 2 * part, count - part)}
    return range(*ends.get(split, (count - part, count)))


class PDEBenchSplit(Split):
    """A split of files of PDEBench.

    Args:
        files: of one family and grid.
        split: "train", "valid" or "test": this share of the trajectories of each file.
        cache_bytes: the split is kept in memory if it needs at most this much.
        replace_nan: read NaN as 0 instead of refusing it.
    """

    def __init__(
        self, files: Sequence[PDEBenchFile], split: str, cache_bytes: float, replace_nan: bool
    ):
        self.members = [(f, n) for f in files for n in split_range(f.trajectories, split)]
        self.family, self.replace_nan = files[0].family, replace_nan
        self.boundary = torch.full((len(files[0].shape), 2), self.family.boundary)
        metadata = WellMetadata(
            dataset_name=self.family.name,
            n_spatial_dims=len(files[0].shape),
            spatial_resolution=files[0].shape,
            scalar_names=[],
            constant_scalar_names=[],
            field_names={0: list(self.family.scalars), 1: list(self.family.vectors)},
            constant_field_names={0: [], 1: []},
            boundary_condition_types=[],
            n_files=len(files),
            n_trajectories_per_file=[file.trajectories for file in files],
            n_steps_per_trajectory=[max(file.steps) for file in files],
        )
        where = ", ".join(str(file.location) for file in files)
        steps = [file.steps[number] for file, number in self.members]
        super().__init__(where, steps, metadata, cache_bytes)

    def _from_files(self, history: int, target_steps: int, stride: int) -> Windows:
        return ReadWindows(self.read, self.all_steps, history, target_steps, stride)

    @cached_property
    def _trajectories(self) -> list[Trajectory]:
        return [self.read(i, slice(None)) for i in range(len(self.members))]

    def read(self, index: int, chosen: slice) -> Trajectory:
        """Reads some frames of a trajectory.

        Raises:
            ValueError: the file is damaged or was replaced, or a value is not finite.
        """
        source, number = self.members[index]
        more = f", trajectory {number}"
        with source.location.hdf5(more) as file:
            frames, times = source.frames(file, number, chosen), source.times(file, number)
        source.location.check_version(source.version)
        where = f"{source.location}{more}"
        values = torch.as_tensor(numbers(frames, f"the fields of {where}"))
        fields = finite_channels(values, 1, self.channels, where, self.replace_nan)
        return Trajectory(fields, None, self.boundary, None, times[chosen])


class PDEBench(WellData):
    """Batches of a PDEBench file, or of a folder of files of one kind, as `WellData` makes them.

    Reads incompressible and compressible flow, shallow water, and diffusion and reaction, all in
    2D, in physical units. Of each file, the first eight in ten trajectories train, the next one
    validates, and the last one tests. Mean, std and change come from 512 evenly spread pairs of
    training frames. The forcing of incompressible flow is left out, as in MATEY.

    Args: see `WellData`; the set is given by `path`, a file, folder or URL.
    """

    @cached_property
    def folder(self) -> Location:
        """The file or folder."""
        if self.path is None:
            raise ValueError("files of PDEBench are given by path=...")
        if self.skip_bad:
            raise ValueError("no file of PDEBench can be left out: skip_bad=false")
        return locate(self.path, self.storage_options)

    @cached_property
    def files(self) -> list[PDEBenchFile]:
        """The files, without their fields; they share family and grid.

        Raises:
            ValueError: there is none, or they differ.
        """
        is_folder = self.folder.is_folder()
        found = self.folder.hdf5_files() if is_folder else [self.folder]
        if not found or not (is_folder or self.folder.is_file()):
            raise ValueError(f"no file of PDEBench ({' or '.join(HDF5)}) at {self.folder}")
        files = [PDEBenchFile.describe(location) for location in found]
        first = files[0]
        for file in files:
            if (file.family, file.shape) != (first.family, first.shape):
                raise ValueError(
                    f"{file.location} holds {file.family.name} on {file.shape}, "
                    f"{first.location} {first.family.name} on {first.shape}; use a folder for each"
                )
        return files

    def _versions(self) -> dict[str, Any]:
        return {str(file.location): file.location.version() for file in self.files}

    def _open(self, split: str) -> PDEBenchSplit:
        return PDEBenchSplit(self.files, split, self._cache_bytes, self.replace_nan)

    def _statistics(self, split: Split) -> dict[str, Tensor]:
        pairs = self._split("train").windows(1, 1, self.stride)
        none = torch.empty(0)
        return {**pair_statistics(pairs), "constant_mean": none, "constant_std": none}
