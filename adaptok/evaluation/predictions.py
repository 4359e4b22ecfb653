"""Writes predicted trajectories in the Well's format, for the_well and `WellData(path=...)`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from torch import Tensor

from adaptok.data import WellData
from adaptok.data.well_files import WellFile, find_well_files, read_statistics
from adaptok.utils.atomic import replacing

Pair = tuple[Mapping[str, Tensor], Tensor]


def folder_name(label: str) -> str:
    """Turns a label into the name of a folder: ``budget=256``."""
    return re.sub(r"[^\w.=-]+", "_", label).strip("_")


class PredictionWriter:
    """Writes rollouts as a data set of one split: true first frames, then the predicted ones.

    Each file takes its grid, boundary, scalars and constant fields from the file that holds the
    true trajectories. The set appears under its name once it is complete; a killed process leaves
    nothing that loads.

    Args:
        folder: of the new set; an existing one is replaced.
        data: the set that is predicted.
        split: "train", "valid" or "test".
        steps: predicted frames per trajectory.
        about: plain values to keep in the attribute ``adaptok`` of each file.
    """

    def __init__(
        self, folder: str | Path, data: WellData, split: str, steps: int, about: Mapping[str, Any]
    ):
        self.folder, self.split = Path(folder), split
        self.about = json.dumps({"prediction_of": data.info.name, **about})
        self.frames = data.stride * np.arange(data.history + steps)
        self.statistics = read_statistics(data.folder)
        self._sources = iter(find_well_files(data.folder, split))
        self._stack = ExitStack()
        self._file: h5py.File | None = None
        self._row = self._rows = 0

    def __enter__(self) -> PredictionWriter:
        self._place = self._stack.enter_context(replacing(self.folder))
        (self._place / "data" / self.split).mkdir(parents=True)
        text = yaml.safe_dump(self.statistics, sort_keys=False)
        (self._place / "stats.yaml").write_text(text)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._file is not None:
            self._file.close()
        self._stack.__exit__(*error)

    def passing(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Writes and yields the pairs, which come in the order of ``data.rollout_loader``."""
        for batch, prediction in pairs:
            whole = np.concatenate([batch["input"].numpy(), prediction.numpy()], 1)
            for trajectory in whole:
                self._write(np.moveaxis(trajectory, 1, -1))  # (t, *space, c)
            yield batch, prediction

    def _write(self, trajectory: np.ndarray) -> None:
        if self._row == self._rows:
            self._next_file(next(self._sources))
        assert self._file is not None
        first, ndim = 0, trajectory.ndim - 2
        for order in range(3):
            group: Any = self._file[f"t{order}_fields"]
            for name in group.attrs["field_names"]:
                if not group[name].attrs["time_varying"]:
                    continue
                parts = trajectory[..., first : first + ndim**order]
                first += ndim**order
                group[name][self._row] = parts.reshape(group[name].shape[1:])
        self._row += 1

    def _next_file(self, source: WellFile) -> None:
        if self._file is not None:
            self._file.close()
        path = (
            self._place / "data" / self.split / Path(source.location.name).with_suffix(".hdf5").name
        )
        self._file = h5py.File(path, "w")
        self._row, self._rows = 0, source.trajectories
        with source.location.hdf5() as original:
            self._file.attrs.update(original.attrs)
            self._file.attrs["adaptok"] = self.about
            for name in ("dimensions", "boundary_conditions", "scalars"):
                original.copy(name, self._file)
            for name in ("dimensions", "scalars"):
                self._cut_in_time(self._file[name])
            for order in range(3):
                self._copy_fields(original[f"t{order}_fields"], order)

    def _cut_in_time(self, group: Any) -> None:
        """Keeps the values at the predicted frames; time is the last axis of everything here."""
        for name in list(group):
            if name == "time" or group[name].attrs.get("time_varying", False):
                values, attributes = group[name][...][..., self.frames], dict(group[name].attrs)
                del group[name]
                group.create_dataset(name, data=values).attrs.update(attributes)

    def _copy_fields(self, original: Any, order: int) -> None:
        assert self._file is not None
        group = self._file.create_group(f"t{order}_fields")
        group.attrs.update(original.attrs)
        dimensions: Any = self._file["dimensions"]
        space = [len(dimensions[axis]) for axis in dimensions.attrs["spatial_dims"]]
        for name in original.attrs["field_names"]:
            if not original[name].attrs["time_varying"]:
                original.copy(name, group)
                continue
            shape = (self._rows, len(self.frames), *space, *[len(space)] * order)
            dataset = group.create_dataset(name, shape, dtype=np.float32)
            dataset.attrs.update(original[name].attrs)
            dataset.attrs["sample_varying"] = True
            dataset.attrs["dim_varying"] = [True] * len(space)
