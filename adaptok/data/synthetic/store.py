"""Writing the Well's format: one HDF5 file per batch of trajectories, one stats.yaml per set."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from torch import Tensor

from adaptok.data.synthetic.solver import Trajectories
from adaptok.data.well_format import ORDERS


def write_file(
    path: Path,
    data: Trajectories,
    *,
    name: str,
    boundary: tuple[str, ...],
    attributes: Mapping[str, Any],
) -> None:
    """Writes trajectories as one file in the Well's format.

    Args:
        path: the new file.
        data: what to write, stored as float32.
        name: of the set, the attribute ``dataset_name``.
        boundary: "WALL", "OPEN" or "PERIODIC" per axis.
        attributes: further attributes of the root; readers of the format ignore them.
    """
    axes = list(data.coordinates)
    batch = next(v for members in data.fields.values() for v in members.values()).shape[0]
    content = io.BytesIO()  # on a full disk HDF5 prints pages, and may crash
    with h5py.File(content, "w") as file:
        file.attrs.update(
            dataset_name=name,
            grid_type="cartesian",
            n_spatial_dims=len(axes),
            n_trajectories=batch,
            simulation_parameters=list(data.scalars),
            **data.scalars,
            **attributes,
        )
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = axes
        _dataset(dimensions, "time", data.time, time=True, sample=False)
        for axis, points in data.coordinates.items():
            _dataset(dimensions, axis, points, time=False, sample=False)
        _write_boundary(file.create_group("boundary_conditions"), data, boundary)
        scalars = file.create_group("scalars")
        scalars.attrs["field_names"] = list(data.scalars)
        for key, value in data.scalars.items():
            _dataset(scalars, key, np.float32(value), time=False, sample=False)
        for order in ORDERS:
            _write_fields(file.create_group(f"t{order}_fields"), data, order)
    path.write_bytes(content.getbuffer())


def _write_boundary(group: h5py.Group, data: Trajectories, boundary: tuple[str, ...]) -> None:
    for (axis, points), kind in zip(data.coordinates.items(), boundary, strict=True):
        condition = group.create_group(f"{axis}_{kind.lower()}")
        condition.attrs.update(
            associated_dims=[axis],
            associated_fields=[],
            bc_type=kind,
            sample_varying=False,
            time_varying=False,
        )
        # True at both ends, also if PERIODIC: otherwise the Well's reader takes the ends for OPEN
        mask = np.zeros(len(points), dtype=bool)
        mask[[0, -1]] = True
        condition.create_dataset("mask", data=mask)


def _write_fields(group: h5py.Group, data: Trajectories, order: int) -> None:
    fields, constants = data.fields.get(order, {}), data.constants.get(order, {})
    group.attrs["field_names"] = [*fields, *constants]
    for varying, members in ((True, fields), (False, constants)):
        for key, value in members.items():
            dataset = _dataset(group, key, value, time=varying, sample=True)
            dataset.attrs["dim_varying"] = [True] * len(data.coordinates)


def _dataset(
    group: h5py.Group, key: str, value: Tensor | np.generic, *, time: bool, sample: bool
) -> h5py.Dataset:
    array = value.cpu().numpy() if isinstance(value, Tensor) else value
    data = np.asarray(array, dtype=np.float32)
    # HDF5 keeps checksums per chunk: here a frame of a trajectory, or the whole of what is small
    frame = data.shape[:2] if time and sample else data.shape[:1]
    chunks = (1,) * len(frame) + data.shape[len(frame) :] if sample else data.shape
    checked = {"chunks": chunks, "fletcher32": True} if data.ndim else {}
    dataset = group.create_dataset(key, data=data, **checked)
    dataset.attrs.update(time_varying=time, sample_varying=sample)
    return dataset


class Statistics:
    """Mean, spread and root mean square of every field and of its change from frame to frame.

    Population statistics per tensor component, accumulated in float64 file by file.
    """

    def __init__(self) -> None:
        # (field, of its change) -> count, mean, sum of squared deviations
        self._moments: dict[tuple[str, bool], np.ndarray] = {}

    def add(self, data: Trajectories) -> None:
        """Adds the trajectories of one training file."""
        for varying, orders in ((True, data.fields), (False, data.constants)):
            for order, members in orders.items():
                for key, value in members.items():
                    for trajectory in value:
                        self.accumulate(key, order, varying, trajectory)

    def accumulate(self, key: str, order: int, varying: bool, value: Tensor | np.ndarray) -> None:
        """Adds one trajectory of a field of a tensor order; time is axis 0 of a varying one."""
        value = torch.as_tensor(value)
        if not value.is_floating_point():  # of which a change may not be of the same type
            value = value.double()
        parts = {(key, False): value} | ({(key, True): value.diff(dim=0)} if varying else {})
        for name, part in parts.items():
            flat = part.double().flatten(0, part.ndim - order - 1)
            away = flat - flat[:1]  # exactly 0 for a constant
            shift = away.mean(0)
            square = (away - shift).square().sum(0)
            count = torch.full_like(shift, len(flat))
            new = torch.stack([count, flat[0] + shift, square]).cpu().numpy()
            known = self._moments.get(name)
            self._moments[name] = new if known is None else _merged(known, new)

    def summary(self) -> dict[str, dict[str, Any]]:
        """Returns the content of stats.yaml."""
        out: dict[str, dict[str, Any]] = {}
        for (field, delta), (count, mean, square) in self._moments.items():
            std = np.sqrt(square / count)
            values = {"mean": mean, "std": std, "rms": np.hypot(mean, std)}
            for statistic, value in values.items():
                table = out.setdefault(statistic + ("_delta" if delta else ""), {})
                table[field] = value.tolist()
        return out

    def write(self, path: Path) -> None:
        """Writes stats.yaml."""
        path.write_text(yaml.safe_dump(self.summary(), sort_keys=False))


def _merged(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Count, mean and squared deviations of two parts together (Chan, Golub & LeVeque, 1983)."""
    count, away = one[0] + other[0], other[1] - one[1]
    square = one[2] + other[2] + away**2 * one[0] * other[0] / count
    return np.stack([count, one[1] + away * other[0] / count, square])
