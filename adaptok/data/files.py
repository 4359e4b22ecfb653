"""Finding and checking the files of a data set before anything is read from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import yaml

from adaptok.data.synthetic import SOLVERS
from adaptok.registry import close_matches

SPLITS = ("train", "valid", "test")
GROUPS = ("dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields", "t2_fields")


class WellFile(NamedTuple):
    """What is known of a file without reading its fields."""

    path: Path
    trajectories: int
    steps: int


def find_folder(
    name: str | None, base: str | Path | None, path: str | Path | None, official: list[str]
) -> Path:
    """The folder of a set, given as `path` or as `name` below `base`.

    Raises:
        ValueError: if it is not there, saying how to get it.
    """
    if path is not None and (name is not None or base is not None):
        raise ValueError(f"give either path, or name and base; got path={path!r} with them")
    if path is not None:
        folder = Path(path)
        if not folder.is_dir():
            raise ValueError(f"no such folder: {folder}")
        return folder
    if name is None or base is None:
        raise ValueError(f"give either path, or name and base; got name={name!r}, base={base!r}")
    folder = Path(base) / name
    if folder.is_dir():
        return folder
    there = sorted(p.name for p in Path(base).glob("*/") if not p.name.startswith("."))
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
        "and use base=BASE/datasets"
    )


def find_files(folder: Path, split: str) -> list[WellFile]:
    """The checked files of one split, sorted by name.

    Raises:
        ValueError: for an unknown or missing split, and for a file that is damaged, naming it.
    """
    if split not in SPLITS:
        raise ValueError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
    where = folder / "data" / split
    paths = sorted([*where.glob("*.h5"), *where.glob("*.hdf5")])
    if not paths:
        raise ValueError(f"split {split!r} of {folder} is missing: no .hdf5 or .h5 file in {where}")
    return [_inspect(path) for path in paths]


def _inspect(path: Path) -> WellFile:
    try:
        with h5py.File(path, "r") as file:
            missing = [group for group in GROUPS if group not in file]
            if missing:
                raise ValueError(f"not in the Well's format, {path} lacks {', '.join(missing)}")
            sizes: Any = file["dimensions"]  # h5py's types cannot say that it is a group
            count: Any = file.attrs["n_trajectories"]
            return WellFile(path, int(count), sizes["time"].shape[-1])
    except (OSError, KeyError) as error:
        raise ValueError(f"damaged or truncated HDF5 file {path}: {error}") from error


def read_statistics(folder: Path) -> dict[str, Any]:
    """The content of stats.yaml.

    Raises:
        ValueError: if it is missing or not what the Well writes.
    """
    path = folder / "stats.yaml"
    if not path.is_file():
        raise ValueError(f"{path} is missing: the statistics of the training split")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    tables = ("mean", "std", "mean_delta", "std_delta")
    if not isinstance(content, dict) or not all(isinstance(content.get(t), dict) for t in tables):
        raise ValueError(f"{path} must have the tables {', '.join(tables)}, each by field name")
    return content
