"""What is wrong with a file in the Well's format, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from adaptok.data.location import Location

GROUPS = ("dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields", "t2_fields")
ORDERS = (0, 1, 2)
ATTRIBUTES = ("dataset_name", "grid_type", "n_spatial_dims", "n_trajectories")
BOUNDARIES = ("WALL", "OPEN", "PERIODIC")

# Is called with field, tensor order, whether it varies with time, and the values of one trajectory.
OnValues = Callable[[str, int, bool, np.ndarray], None]


def check_file(location: Location, on_values: OnValues = lambda *_: None) -> list[str]:
    """Everything that is wrong with a file; an empty list for a good one.

    All values are read, one trajectory at a time.

    Args:
        location: of the file.
        on_values: receives the values of every good field, so that they need not be read twice.
    """
    try:
        with location.hdf5() as file:
            problems = _structure(file)
            if problems:  # what follows relies on it
                return problems
            axes = _axes(file)
            problems = _grid(file, axes) + _boundaries(file, axes) + _scalars(file)
            return problems + _fields(file, axes, on_values)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        return [f"damaged or truncated HDF5 file ({error})"]


def _structure(file: h5py.File) -> list[str]:
    missing = [group for group in GROUPS if not isinstance(file.get(group), h5py.Group)]
    problems = [f"missing group {', '.join(missing)}"] if missing else []
    absent = [name for name in ATTRIBUTES if name not in file.attrs]
    if absent:
        problems.append(f"missing attribute {', '.join(absent)} of the file")
    if missing or absent:
        return problems
    count: Any = file.attrs["n_trajectories"]
    ndim: Any = file.attrs["n_spatial_dims"]
    if not (np.ndim(count) == 0 and np.issubdtype(type(count), np.integer) and count >= 1):
        problems.append(f"n_trajectories must be a number of at least 1, got {count!r}")
    dimensions: Any = file["dimensions"]
    axes = list(dimensions.attrs.get("spatial_dims", ()))
    if len(axes) != ndim:
        problems.append(f"n_spatial_dims is {ndim}, but dimensions names the axes {axes}")
    problems += [
        f"dimensions lacks {name}"
        for name in ("time", *axes)
        if not isinstance(dimensions.get(name), h5py.Dataset)
    ]
    for group in (*(f"t{order}_fields" for order in ORDERS), "scalars"):
        if "field_names" not in file[group].attrs:
            problems.append(f"{group} lacks the attribute field_names")
    return problems


def _axes(file: h5py.File) -> dict[str, int]:
    dimensions: Any = file["dimensions"]
    return {axis: dimensions[axis].shape[-1] for axis in dimensions.attrs["spatial_dims"]}


def _trajectories(file: h5py.File) -> int:
    count: Any = file.attrs["n_trajectories"]
    return int(count)


def _steps(file: h5py.File) -> int:
    dimensions: Any = file["dimensions"]
    return dimensions["time"].shape[-1]


def _grid(file: h5py.File, axes: dict[str, int]) -> list[str]:
    dimensions: Any = file["dimensions"]
    problems = []
    for name in ("time", *axes):
        points = dimensions[name]
        varying = points.attrs.get("sample_varying")
        if varying is None:
            problems.append(f"dimensions/{name} lacks the attribute sample_varying")
            continue
        lead = (_trajectories(file),) if varying else ()
        if points.shape[:-1] != lead:
            problems.append(
                f"dimensions/{name} has shape {points.shape}, expected {(*lead, points.shape[-1])}"
            )
        values = np.asarray(points[...], dtype=np.float64)
        steps = np.diff(values, axis=-1)
        if not np.isfinite(values).all():
            problems.append(f"NaN or Inf in dimensions/{name}")
        elif name == "time" and not (steps > 0).all():
            problems.append("the times do not increase")
        elif not ((steps > 0).all() or (steps < 0).all()):
            problems.append(f"the coordinates along {name} are not in order")
    if _steps(file) < 2:
        problems.append("trajectories of one frame: there is nothing to predict")
    return problems


def _boundaries(file: h5py.File, axes: dict[str, int]) -> list[str]:
    conditions: Any = file["boundary_conditions"]
    problems = []
    for name, condition in conditions.items():
        kind = str(condition.attrs.get("bc_type", "")).upper()
        where = [str(axis) for axis in condition.attrs.get("associated_dims", ())]
        if kind not in BOUNDARIES:
            problems.append(
                f"boundary condition {name} has type {kind or None}, not one of "
                f"{', '.join(BOUNDARIES)}"
            )
        elif not where or any(axis not in axes for axis in where):
            problems.append(f"boundary condition {name} belongs to the axes {where}")
        elif not isinstance(condition.get("mask"), h5py.Dataset):
            problems.append(f"boundary condition {name} has no mask")
        elif condition["mask"].shape != tuple(axes[axis] for axis in where):
            problems.append(
                f"the mask of boundary condition {name} has shape {condition['mask'].shape}, "
                f"expected {tuple(axes[axis] for axis in where)}"
            )
        else:
            problems += _ends(name, kind, condition["mask"][...])
    return problems


def _ends(name: str, kind: str, mask: np.ndarray) -> list[str]:
    """Whether a boundary condition acts where it should: the reader looks at the ends only."""
    ends = [mask.take(end, axis).any() for axis in range(mask.ndim) for end in (0, -1)]
    if kind == "PERIODIC" and not all(ends):
        return [
            f"the mask of the periodic boundary {name} is False at an end, so that it is read as "
            "open; it must be True at both"
        ]
    if not any(ends):
        return [f"the mask of boundary condition {name} is False at both ends: it acts nowhere"]
    return []


def _scalars(file: h5py.File) -> list[str]:
    scalars: Any = file["scalars"]
    problems = []
    for name in scalars.attrs["field_names"]:
        if not isinstance(scalars.get(name), h5py.Dataset):
            problems.append(f"scalar {name} is announced but not there")
            continue
        expected, lacks = _lead(file, scalars[name])
        if lacks:
            problems.append(f"scalar {name} lacks the attribute {lacks}")
        elif scalars[name].shape != expected:
            problems.append(f"scalar {name} has shape {scalars[name].shape}, expected {expected}")
        elif not np.isfinite(scalars[name][...]).all():
            problems.append(f"NaN or Inf in scalar {name}")
    return problems


def _lead(file: h5py.File, data: h5py.Dataset) -> tuple[tuple[int, ...], str]:
    """The leading shape that the attributes announce, and which attribute is missing."""
    shape: tuple[int, ...] = ()
    sizes = {"sample_varying": _trajectories(file), "time_varying": _steps(file)}
    for attribute, size in sizes.items():
        if attribute not in data.attrs:
            return (), attribute
        shape += (size,) if data.attrs[attribute] else ()
    return shape, ""


def _fields(file: h5py.File, axes: dict[str, int], on_values: OnValues) -> list[str]:
    problems, varying = [], 0
    for order in ORDERS:
        group: Any = file[f"t{order}_fields"]
        names = [str(name) for name in group.attrs["field_names"]]
        for name in group:
            if name not in names:
                problems.append(f"field {name} is not among the field_names of t{order}_fields")
        for name in names:
            found = _field(file, group, name, order, axes)
            if not found:
                varying += bool(group[name].attrs["time_varying"])
                found = _values(group[name], name, order, on_values)
            problems += found
    if not varying and not problems:
        problems.append("no field changes with time: there is nothing to predict")
    return problems


def _field(
    file: h5py.File, group: h5py.Group, name: str, order: int, axes: dict[str, int]
) -> list[str]:
    """What is wrong with a field before its values are read."""
    data: Any = group.get(name)
    if not isinstance(data, h5py.Dataset):
        return [f"field {name} is announced in t{order}_fields but not there"]
    shape, lacks = _lead(file, data)
    kept = data.attrs.get("dim_varying")
    if lacks or kept is None:
        return [f"field {name} lacks the attribute {lacks or 'dim_varying'}"]
    if len(kept) != len(axes):
        return [f"dim_varying of field {name} is {list(kept)}, one per axis is needed"]
    shape += tuple(n for n, keep in zip(axes.values(), kept, strict=True) if keep)
    shape += (len(axes),) * order
    if data.shape != shape:
        return [f"field {name} has shape {data.shape}, expected {shape}"]
    if data.dtype.kind != "f":
        return [f"field {name} has type {data.dtype}, not a floating-point one"]
    return []


def _values(data: h5py.Dataset, name: str, order: int, on_values: OnValues) -> list[str]:
    """Where a field is not finite; the good trajectories are passed on."""
    bad = []
    attributes = data.attrs
    timed, sampled = bool(attributes["time_varying"]), bool(attributes["sample_varying"])
    for number in range(data.shape[0] if sampled else 1):
        values = np.asarray(data[number] if sampled else data[...])
        wrong = ~np.isfinite(values)
        if not wrong.any():
            on_values(name, order, timed, values)
            continue
        frame = f", frame {int(np.argwhere(wrong)[0, 0])}" if timed else ""
        bad.append(f"trajectory {number}{frame}" if sampled else f"all trajectories{frame}")
    if not bad:
        return []
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return [f"NaN or Inf in field {name}: {'; '.join(bad[:3])}{more}"]
