"""Named arrays of a file, whatever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from adaptok.registry import close_matches


def read_arrays(path: str | Path) -> dict[str, Any]:
    """Opens a file of arrays: .npy, .npz, .h5 or .hdf5, .pt, .nc (needs xarray) or .zarr (zarr).

    Those of .npy, HDF5, netCDF and zarr are read from the disk when they are indexed. Arrays inside
    of groups, or of mappings in a .pt, have keys with their place, such as "tensors/density".

    Args:
        path: a file, for zarr a folder.

    Returns:
        The arrays by key; the key of a single array without one is the file's name.

    Raises:
        ValueError: no such file, an unknown kind, a missing package, or a damaged file.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(
            f"cannot read arrays from {path}: its name ends in none of {', '.join(READERS)}"
        )
    if not path.exists():
        raise ValueError(f"no such file: {path}")
    try:
        arrays = as_mapping(READERS[path.suffix](path), path.stem)
    except ImportError as error:
        raise ValueError(f"cannot read {path} without the package {error.name}") from error
    except Exception as error:  # each reader raises what it likes
        raise ValueError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    if not arrays:
        raise ValueError(f"{path} holds no arrays")
    return arrays


def as_mapping(source: Any, name: str) -> dict[str, Any]:
    """Returns arrays by key: of a mapping, an xarray Dataset, or one array, which gets `name`.

    Those of a mapping inside have keys with a "/". Tensors become arrays of the host.
    """
    if not _is_group(source):
        source = {name: source}
    return dict(_flat(source))


def _is_group(value: Any) -> bool:
    # groups of zarr 3 are no mappings
    return isinstance(value, Mapping) or hasattr(value, "data_vars") or hasattr(value, "members")


def _flat(group: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the arrays of a group and of those inside, by their place."""
    if hasattr(group, "data_vars"):  # xarray's; its mapping has no coordinates
        group = {key: group[key] for key in group.variables}
    for key, value in group.items() if isinstance(group, Mapping) else group.members():
        if getattr(value, "shape", None) is not None:
            yield f"{place}{key}", _plain(value)
        elif _is_group(value):
            yield from _flat(value, f"{place}{key}/")


def _plain(array: Any) -> Any:
    if not isinstance(array, torch.Tensor):
        return array
    array = array.detach().cpu()
    return (array.float() if array.is_floating_point() else array).numpy()  # bfloat16 too


def chosen_keys(arrays: Mapping[str, Any], keys: Sequence[str], what: str) -> list[str]:
    """Returns `keys`, all of them there.

    Raises:
        ValueError: an unknown key, named as `what`.
    """
    for key in keys:
        if key not in arrays:
            raise ValueError(
                f"{what}: there is no array {key!r}{close_matches(key, arrays)}; "
                f"the arrays are {', '.join(arrays)}"
            )
    return list(keys)


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as content:
        return dict(content)


def _hdf5(path: Path) -> h5py.File:
    return h5py.File(path, "r")  # open as long as its arrays are in use


def _netcdf(path: Path) -> Any:
    import xarray  # type: ignore[import-not-found]

    try:
        groups = xarray.open_groups(path)
    except (AttributeError, NotImplementedError):  # an old xarray, or netCDF 3 without groups
        return xarray.open_dataset(path)
    root = groups.pop("/")
    return {key: root[key] for key in root.variables} | {
        name.strip("/"): group for name, group in groups.items()
    }


def _zarr(path: Path) -> Any:
    import zarr  # type: ignore[import-not-found]

    return zarr.open(str(path), mode="r")


READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": lambda path: np.load(path, mmap_mode="r"),
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".pt": lambda path: torch.load(path, weights_only=True, map_location="cpu"),
    ".nc": _netcdf,
    ".zarr": _zarr,
}
