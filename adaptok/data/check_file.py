"""What is wrong with a file in the Well's format, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

from adaptok.data.location import Location
from adaptok.data.well_format import ATTRIBUTES, GROUPS, ORDERS
from adaptok.utils.boundary import BOUNDARIES

# Callback (field, tensor order, varies with time, values of one trajectory).
OnValues = Callable[[str, int, bool, np.ndarray], None]


def type_problem(kind: np.dtype) -> str:
    """Says why the Well's reader cannot read values of a type; empty if it can."""
    if kind.kind in "fiub" and kind.itemsize <= 8 and kind.isnative:
        return ""
    return (
        f"has type {kind.str}; write it as real numbers of at most 64 bits in this machine's byte "
        "order, such as float32"
    )


def check_file(location: Location, on_values: OnValues | None = None) -> list[str]:
    """Lists everything that is wrong with a file; empty for a good one.

    Reads all values, one trajectory at a time.

    Args:
        location: of the file.
        on_values: receives the values of every good field, so that they need not be read twice.
    """
    try:
        with location.hdf5() as file:
            # the other checks rely on the structure
            return [*_structure(file)] or [*_Content(file, on_values).problems()]
    except ValueError as error:
        return [f"damaged or truncated HDF5 file ({error.__cause__ or error})"]


def _structure(file: Any) -> Iterator[str]:
    missing = [group for group in GROUPS if not isinstance(file.get(group), h5py.Group)]
    if missing:
        yield f"missing group {', '.join(missing)}"
    absent = [name for name in ATTRIBUTES if name not in file.attrs]
    if absent:
        yield f"missing attribute {', '.join(absent)} of the file"
    if missing or absent:
        return
    count, ndim = file.attrs["n_trajectories"], file.attrs["n_spatial_dims"]
    if not (np.ndim(count) == 0 and np.issubdtype(type(count), np.integer) and count >= 1):
        yield f"n_trajectories must be a number of at least 1, got {count!r}"
    dimensions = file["dimensions"]
    axes = _listed(dimensions.attrs.get("spatial_dims", ()))
    if not all(isinstance(axis, str) for axis in axes):
        yield f"spatial_dims of dimensions must be names, got {axes}"
        return
    if len(axes) != ndim:
        yield f"n_spatial_dims is {ndim}, but dimensions names the axes {axes}"
    for name in ("time", *axes):
        if not isinstance(dimensions.get(name), h5py.Dataset):
            yield f"dimensions lacks {name}"
    for group in (*(f"t{order}_fields" for order in ORDERS), "scalars"):
        names = file[group].attrs.get("field_names")
        if names is None:
            yield f"{group} lacks the attribute field_names"
        elif any(isinstance(name, bytes) for name in _listed(names)):
            yield f"field_names of {group} are bytes, {list(names)}; write them as strings"
        elif not all(isinstance(name, str) for name in _listed(names)):
            yield f"field_names of {group} must be strings, got {_listed(names)}"


def _listed(values: Any) -> list[Any]:
    """Lists what an attribute holds, which may be one value."""
    return list(values) if isinstance(values, str) else np.atleast_1d(values).tolist()


class _Content:
    """Checks of a file whose structure is right; each yields what is wrong."""

    def __init__(self, file: Any, on_values: OnValues | None):
        self.file, self.on_values = file, on_values
        sizes = file["dimensions"]
        self.axes = {axis: sizes[axis].shape[-1] for axis in sizes.attrs["spatial_dims"]}
        self.trajectories = int(file.attrs["n_trajectories"])
        self.steps = sizes["time"].shape[-1]

    def problems(self) -> Iterator[str]:
        yield from self.grid()
        for name, condition in self.file["boundary_conditions"].items():
            yield from self.boundary(name, condition)
        yield from self.scalars()
        yield from self.fields()

    def grid(self) -> Iterator[str]:
        for name in ("time", *self.axes):
            points = self.file["dimensions"][name]
            varying = points.attrs.get("sample_varying")
            if varying is None:
                yield f"dimensions/{name} lacks the attribute sample_varying"
                continue
            if problem := type_problem(points.dtype):
                yield f"dimensions/{name} {problem}"
                continue
            expected = (self.trajectories,) * bool(varying) + points.shape[-1:]
            if points.shape != expected:
                yield f"dimensions/{name} has shape {points.shape}, expected {expected}"
            values = np.asarray(points[...], dtype=np.float64)
            steps = np.diff(values, axis=-1)
            if not np.isfinite(values).all():
                yield f"NaN or Inf in dimensions/{name}"
            elif name == "time" and not (steps > 0).all():
                yield "the times do not increase"
            elif not ((steps > 0).all() or (steps < 0).all()):
                yield f"the coordinates along {name} are not in order"
        if self.steps < 2:
            yield "trajectories of one frame: there is nothing to predict"

    def boundary(self, name: str, condition: Any) -> Iterator[str]:
        kind = str(condition.attrs.get("bc_type", "")).upper()
        where = [str(axis) for axis in _listed(condition.attrs.get("associated_dims", ()))]
        expected = tuple(self.axes.get(axis) for axis in where)
        mask = condition.get("mask") if isinstance(condition, h5py.Group) else None
        if kind not in BOUNDARIES:
            accepted = ", ".join(BOUNDARIES)
            yield f"boundary condition {name} has type {kind or None}, not one of {accepted}"
        elif not where or None in expected:
            yield f"boundary condition {name} belongs to the axes {where}"
        elif not isinstance(mask, h5py.Dataset):
            yield f"boundary condition {name} has no mask"
        elif mask.shape != expected:
            yield (
                f"the mask of boundary condition {name} has shape {mask.shape}, expected {expected}"
            )
        elif problem := type_problem(mask.dtype):
            yield f"the mask of boundary condition {name} {problem}"
        else:  # the Well's reader looks at the ends only
            values = mask[...]
            ends = [values.take(end, axis).any() for axis in range(values.ndim) for end in (0, -1)]
            if kind == "PERIODIC" and not all(ends):
                yield (
                    f"the mask of the periodic boundary {name} is False at an end, so that it is "
                    "read as open; it must be True at both"
                )
            elif not any(ends):
                yield f"the mask of boundary condition {name} is False at both ends: acts nowhere"

    def scalars(self) -> Iterator[str]:
        group = self.file["scalars"]
        for name in group.attrs["field_names"]:
            problem = self.announced(group.get(name), f"scalar {name}", "")
            if not problem and (unreadable := type_problem(group[name].dtype)):
                problem = f"scalar {name} {unreadable}"
            if not problem and not np.isfinite(group[name][...]).all():
                problem = f"NaN or Inf in scalar {name}"
            if problem:
                yield problem

    def fields(self) -> Iterator[str]:
        varying = wrong = False
        for order in ORDERS:
            group = self.file[f"t{order}_fields"]
            names = [str(name) for name in group.attrs["field_names"]]
            for name in group:
                if name not in names:
                    wrong = True
                    yield f"field {name} is not among the field_names of t{order}_fields"
            for name in names:
                what, data = f"field {name}", group.get(name)
                problem = self.announced(data, what, f" in t{order}_fields", order)
                if not problem and (unreadable := type_problem(data.dtype)):
                    problem = f"{what} {unreadable}"
                if not problem:
                    varying |= bool(group[name].attrs["time_varying"])
                    problem = self.values(group[name], name, order)
                if problem:
                    wrong = True
                    yield problem
        if not varying and not wrong:
            yield "no field changes with time: there is nothing to predict"

    def announced(self, data: Any, what: str, where: str, order: int | None = None) -> str:
        """What is wrong with a scalar, or a field of an order, before its values are read."""
        if not isinstance(data, h5py.Dataset):
            return f"{what} is announced{where} but missing"
        sizes = {"sample_varying": self.trajectories, "time_varying": self.steps}
        needed = [*sizes] if order is None else [*sizes, "dim_varying"]
        lacks = [attribute for attribute in needed if attribute not in data.attrs]
        if lacks:
            return f"{what} lacks the attribute {lacks[0]}"
        shape = tuple(size for attribute, size in sizes.items() if data.attrs[attribute])
        if order is not None:
            kept = _listed(data.attrs["dim_varying"])
            if len(kept) != len(self.axes):
                return f"dim_varying of {what} is {kept}, one per axis is needed"
            shape += tuple(n for n, keep in zip(self.axes.values(), kept, strict=True) if keep)
            shape += (len(self.axes),) * order
        return "" if data.shape == shape else f"{what} has shape {data.shape}, expected {shape}"

    def values(self, data: h5py.Dataset, name: str, order: int) -> str:
        """Says where a field is not finite, and passes on its good trajectories."""
        bad = []
        timed, sampled = (bool(data.attrs[f"{kind}_varying"]) for kind in ("time", "sample"))
        for number in range(data.shape[0] if sampled else 1):
            values = np.asarray(data[number] if sampled else data[...])
            wrong = ~np.isfinite(values)
            if not wrong.any():
                if self.on_values:
                    self.on_values(name, order, timed, values)
                continue
            frame = f", frame {int(np.argwhere(wrong)[0, 0])}" if timed else ""
            bad.append(f"trajectory {number}{frame}" if sampled else f"all trajectories{frame}")
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        return f"NaN or Inf in field {name}: {'; '.join(bad[:3])}{more}" if bad else ""
