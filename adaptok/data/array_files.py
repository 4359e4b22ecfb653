"""Named arrays of a file, whatever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from adaptok.registry import close_matches


def read_arrays(path: str | Path) -> dict[str, Any]:
    """Opens a file of arrays: .npy, .npz, .h5 or .hdf5, .pt, .nc (needs xarray) or .zarr (zarr).

    Those of .npy, HDF5, netCDF and zarr are read from the disk when they are indexed.

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
        content = READERS[path.suffix](path)
    except ImportError as error:
        raise ValueError(f"cannot read {path} without the package {error.name}") from error
    except Exception as error:  # each reader raises what it likes
        raise ValueError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    arrays = as_mapping(content, path.stem)
    if not arrays:
        raise ValueError(f"{path} holds no arrays")
    return arrays


def as_mapping(source: Any, name: str) -> dict[str, Any]:
    """Returns arrays by key: of a mapping, an xarray Dataset, or one array, which gets `name`.

    Tensors become arrays of the host.
    """
    if hasattr(source, "data_vars"):  # xarray's; its mapping has no coordinates
        source = {str(key): source[key] for key in source.variables}
    if not isinstance(source, Mapping):
        source = {name: source}
    return {str(key): _plain(value) for key, value in source.items() if hasattr(value, "shape")}


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


def _hdf5(path: Path) -> dict[str, Any]:
    file = h5py.File(path, "r")  # open as long as its arrays are in use
    return {key: value for key, value in file.items() if isinstance(value, h5py.Dataset)}


def _netcdf(path: Path) -> Any:
    import xarray  # type: ignore[import-not-found]

    return xarray.open_dataset(path)


def _zarr(path: Path) -> Any:
    import zarr  # type: ignore[import-not-found]

    content = zarr.open(str(path), mode="r")
    return content if hasattr(content, "shape") else dict(content.arrays())


READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": lambda path: np.load(path, mmap_mode="r"),
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".pt": lambda path: torch.load(path, weights_only=True, map_location="cpu"),
    ".nc": _netcdf,
    ".zarr": _zarr,
}
