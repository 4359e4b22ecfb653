"""Finding and checking the files of a data set before anything is read from them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import yaml

from adaptok.data.check_file import GROUPS, ORDERS, check_file
from adaptok.data.location import Location, locate
from adaptok.data.synthetic import SOLVERS
from adaptok.registry import close_matches

SPLITS = ("train", "valid", "test")
TABLES = ("mean", "std", "mean_delta", "std_delta")


class WellFile(NamedTuple):
    """What is known of a file without reading its fields.

    Attributes:
        location: where it is.
        trajectories: how many it holds.
        times: of the frames, (t,), or (trajectories, t) where they differ.
        layout: names and grid, which all files of a set share.
    """

    location: Location
    trajectories: int
    times: np.ndarray
    layout: tuple[Any, ...]

    @property
    def steps(self) -> int:
        """Frames per trajectory."""
        return self.times.shape[-1]


def find_folder(
    name: str | None,
    base: str | Path | None,
    path: str | Path | None,
    official: list[str],
    options: Mapping[str, Any] | None = None,
) -> Location:
    """The folder of a set, given as `path` or as `name` below `base`; each may be a URL.

    Raises:
        ValueError: if it is not there, saying how to get it.
    """
    if path is not None and (name is not None or base is not None):
        raise ValueError(f"give either path, or name and base; got path={path!r} with them")
    if path is not None:
        folder = locate(path, options)
        if not folder.is_folder():
            raise ValueError(f"no such folder: {folder}")
        return folder
    if name is None or base is None:
        raise ValueError(f"give either path, or name and base; got name={name!r}, base={base!r}")
    root = locate(base, options)
    folder = root / name
    if folder.is_folder():
        return folder
    there = [member.name for member in root.members() if member.is_folder()]
    if name not in official:
        known = [*official, *there]
        raise ValueError(
            f"unknown data set {name!r}{close_matches(name, known)}; there is no folder {folder} "
            f"and the Well has only: {', '.join(official)}"
        )
    raise ValueError(
        f"no data set at {folder} (in {base}: {', '.join(there) or 'none'}); {_get(name)}"
    )


def _get(name: str) -> str:
    """How to get a set that is missing."""
    if name in SOLVERS.names():
        return f"generate it with adaptok.data.synthetic.generate({name!r}, base)"
    return (
        f"download it with `the-well-download --base-path BASE --dataset {name}` "
        "and use base=BASE/datasets, or read it from base=hf://datasets/polymathic-ai"
    )


def find_files(folder: Location, split: str, *, skip_bad: bool = False) -> list[WellFile]:
    """The checked files of one split, sorted by name.

    Args:
        folder: of the set.
        split: "train", "valid" or "test".
        skip_bad: read every file once, and leave out those that have anything wrong, with a warning
            that says what.

    Raises:
        ValueError: for an unknown or missing split, and for a file that is damaged, naming it.
    """
    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
    where = folder / "data" / split
    found = where.hdf5_files()
    if not found:
        raise ValueError(f"split {split!r} of {folder} is missing: no .hdf5 or .h5 file in {where}")
    files: list[WellFile] = []
    for location in found:
        problems = check_file(location) if skip_bad else []
        file = None if problems else inspect(location)
        if file is not None and files and file.layout != files[0].layout:
            problems = [difference(file, files[0])]
            if not skip_bad:
                raise ValueError(f"{location}: {problems[0]}")
        if problems:
            warnings.warn(f"left out {location}: {'; '.join(problems)}", stacklevel=2)
        elif file is not None:
            files.append(file)
    if not files:
        raise ValueError(f"every file of split {split!r} of {folder} has something wrong")
    return files


def inspect(location: Location) -> WellFile:
    """Reads what describes a file.

    Raises:
        ValueError: if it is damaged or not in the Well's format.
    """
    try:
        with location.hdf5() as file:
            missing = [group for group in GROUPS if group not in file]
            if missing:
                raise ValueError(f"not in the Well's format, {location} lacks {', '.join(missing)}")
            sizes: Any = file["dimensions"]  # h5py's types cannot say that it is a group
            count: Any = file.attrs["n_trajectories"]
            return WellFile(location, int(count), sizes["time"][...], _layout(file))
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"damaged or truncated HDF5 file {location}: {error}") from error


def _layout(file: h5py.File) -> tuple[Any, ...]:
    """Set, grid, fields and scalars of a file."""
    sizes: Any = file["dimensions"]
    axes = [str(axis) for axis in sizes.attrs["spatial_dims"]]
    groups = [f"t{order}_fields" for order in ORDERS] + ["scalars"]
    members: list[Any] = [file[group].attrs["field_names"] for group in groups]
    names = [tuple(str(name) for name in group) for group in members]
    shape = tuple(int(sizes[axis].shape[-1]) for axis in axes)
    return str(file.attrs["dataset_name"]), shape, *names


def difference(file: WellFile, first: WellFile) -> str:
    """What distinguishes the layouts of two files of a set."""
    what = ("data set", "grid", "scalar fields", "vector fields", "tensor fields", "scalars")
    pairs = zip(what, file.layout, first.layout, strict=True)
    parts = [f"{name} {mine} in place of {its}" for name, mine, its in pairs if mine != its]
    return f"it has {', '.join(parts)} in {first.location.name}"


def read_statistics(folder: Location) -> dict[str, Any]:
    """The content of stats.yaml.

    Raises:
        ValueError: if it is missing or not what the Well writes.
    """
    path = folder / "stats.yaml"
    if not path.is_file():
        raise ValueError(f"{path} is missing: the statistics of the training split")
    try:
        content = yaml.safe_load(path.text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(t), dict) for t in TABLES):
        raise ValueError(f"{path} must have the tables {', '.join(TABLES)}, each by field name")
    return content
