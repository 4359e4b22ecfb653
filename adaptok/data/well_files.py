"""Finding and describing the files of a data set before their fields are read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from adaptok.data.check_file import check_file, type_problem
from adaptok.data.location import Location, locate
from adaptok.data.synthetic import SOLVERS
from adaptok.data.well_format import GROUPS, ORDERS, SPLITS, TABLES
from adaptok.data.windows import increasing_times
from adaptok.registry import choice, close_matches
from adaptok.utils.keys import is_small


class WellFile(NamedTuple):
    """What is known of a file without reading its fields.

    Attributes:
        location: where it is.
        trajectories: how many it holds.
        times: of the frames, (t,), or (trajectories, t) if they differ.
        schema: name of the set, grid, names of the fields by order, and names of the scalars; all
            files of a set share it.
        version: of the file that was described, see `Location.version`.
    """

    location: Location
    trajectories: int
    times: np.ndarray
    schema: tuple[Any, ...]
    version: tuple[int, int] | None

    @property
    def steps(self) -> int:
        """Frames per trajectory."""
        return self.times.shape[-1]

    def times_of(self, row: int) -> np.ndarray:
        """Returns the times of the frames of a trajectory, (t,)."""
        return self.times[row] if self.times.ndim == 2 else self.times

    @classmethod
    def describe(cls, location: Location) -> WellFile:
        """Reads what describes a file.

        Raises:
            ValueError: if it is damaged or not in the Well's format.
        """
        version = location.version()
        with location.hdf5() as file:
            missing = [group for group in GROUPS if group not in file]
            if missing:
                lacks = ", ".join(missing)
                raise ValueError(f"not in the Well's format, {location} lacks {lacks}")
            sizes = file["dimensions"]
            shape = tuple(int(sizes[a].shape[-1]) for a in sizes.attrs["spatial_dims"])
            groups = [file[f"t{order}_fields"] for order in ORDERS] + [file["scalars"]]
            if problem := next(filter(None, map(_unreadable, groups)), ""):
                raise ValueError(f"{location}: {problem}")
            names = [tuple(map(str, group.attrs["field_names"])) for group in groups]
            times = increasing_times(sizes["time"][...], str(location))
            schema = (str(file.attrs["dataset_name"]), shape, *names)
            return cls(location, int(file.attrs["n_trajectories"]), times, schema, version)

    def difference(self, first: WellFile) -> str:
        """Says how the schema differs from that of another file of the set; empty if equal."""
        if self.schema == first.schema:
            return ""
        what = ("data set", "grid", "scalar fields", "vector fields", "tensor fields", "scalars")
        pairs = zip(what, self.schema, first.schema, strict=True)
        parts = [f"{name} {mine} in place of {its}" for name, mine, its in pairs if mine != its]
        return f"it has {', '.join(parts)} in {first.location.name}"


def _unreadable(group: Any) -> str:
    """Says which name or type of a group of fields the Well's reader cannot read; empty if none."""
    for name in group.attrs["field_names"]:
        if isinstance(name, bytes):
            return f"field_names of {group.name} are bytes, {name!r}; write them as strings"
        if name in group and (problem := type_problem(group[name].dtype)):
            return f"field {name} {problem}"
    return ""


def find_folder(
    name: str | None,
    base: str | Path | None,
    path: str | Path | None,
    official: list[str],
    options: Mapping[str, Any] | None = None,
) -> Location:
    """Returns the folder of a set, given as `path` or as `name` below `base`; each may be a URL.

    Raises:
        ValueError: if it does not exist, saying how to get it.
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
    how = (
        f"download it with `the-well-download --base-path BASE --dataset {name}` and use "
        "base=BASE/datasets, or read it from base=hf://datasets/polymathic-ai"
    )
    if name in SOLVERS.names():
        how += f"; a small one of the same equations: `adaptok data data={name}`"
    raise ValueError(f"no data set at {folder} (in {base}: {', '.join(there) or 'none'}); {how}")


def find_well_files(folder: Location, split: str, *, skip_bad: bool = False) -> list[WellFile]:
    """Returns the checked files of one split, sorted by name.

    Args:
        folder: of the set.
        split: "train", "valid" or "test".
        skip_bad: read every file once, and leave out those with any defect, with a warning that
            names it.

    Raises:
        ValueError: for an unknown or missing split, and for a damaged file, naming it.
    """
    where = folder / "data" / choice("split", split, SPLITS)
    found = where.hdf5_files()
    if not found:
        raise ValueError(f"split {split!r} of {folder} is missing: no .hdf5 or .h5 file in {where}")
    files: list[WellFile] = []
    for location in found:
        problems = "; ".join(check_file(location)) if skip_bad else ""
        if not problems:
            file = WellFile.describe(location)
            problems = file.difference(files[0]) if files else ""
            files += [] if problems else [file]
        if problems and not skip_bad:
            raise ValueError(f"{location}: {problems}")
        if problems:
            warnings.warn(f"left out {location}: {problems}", stacklevel=2)
    if not files:
        raise ValueError(f"every file of split {split!r} of {folder} is defective")
    return files


def read_statistics(folder: Location) -> dict[str, Any]:
    """Returns the content of stats.yaml.

    Raises:
        ValueError: if it is missing or not what the Well writes.
    """
    path = folder / "stats.yaml"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: the statistics of the training split; "
            "`adaptok data stats FOLDER` computes them"
        )
    try:
        content = yaml.safe_load(path.text())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    tables = content if isinstance(content, dict) and is_small(content) else {}
    if not all(isinstance(tables.get(name), dict) for name in TABLES):
        raise ValueError(f"{path} must have the tables {', '.join(TABLES)}, each by field name")
    return tables
