"""Writes predicted trajectories in the Well's format, for the_well and `WellData(path=...)`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from torch import Tensor

from adaptok.data import WellData
from adaptok.data.well_files import WellFile, read_statistics
from adaptok.utils.atomic import replacing
from adaptok.utils.checksums import write_checksums

LONGEST = 100  # name of a folder, before the hash
Pair = tuple[Mapping[str, Tensor], Tensor]


def folder_name(label: str) -> str:
    """Turns a label into the name of a folder: ``budget=256``; of a long one, its beginning and a
    hash.
    """
    name = re.sub(r"[^\w.=-]+", "_", label).strip("_")
    if len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}_{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def sources_of(data: WellData, split: str) -> list[WellFile]:
    """Returns the files of the true trajectories of a split.

    Raises:
        ValueError: the set is not in the Well's format.
    """
    files = data.well_files(split)
    if files is None:
        raise ValueError(
            "predictions can only be kept of a set in the Well's format, which "
            f"{data.folder} is not"
        )
    return files


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

    Raises:
        ValueError: the set is not in the Well's format.
    """

    def __init__(
        self, folder: str | Path, data: WellData, split: str, steps: int, about: Mapping[str, Any]
    ):
        self.folder, self.split = Path(folder), split
        self.about = json.dumps({"prediction_of": data.info.name, **about})
        self.frames = data.stride * np.arange(data.history + steps)
        self._sources = sources_of(data, split)
        self.statistics = read_statistics(data.folder)
        self._stack = ExitStack()

    def __enter__(self) -> PredictionWriter:
        place = self._stack.enter_context(replacing(self.folder))
        (place / "data" / self.split).mkdir(parents=True)
        text = yaml.safe_dump(self.statistics, sort_keys=False)
        (place / "stats.yaml").write_text(text)
        self._stack.callback(write_checksums, place)
        # closes the last file before the folder gets its checksums and its name
        rows = self._rows(place / "data" / self.split)
        self._free_rows = self._stack.enter_context(closing(rows))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def passing(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Writes and yields the pairs, which come in the order of ``data.rollout_loader``."""
        for batch, prediction in pairs:
            whole = np.concatenate([batch["input"].numpy(), prediction.numpy()], 1)
            for trajectory in whole:
                _write(np.moveaxis(trajectory, 1, -1), *next(self._free_rows))  # (t, *space, c)
            yield batch, prediction

    def _rows(self, folder: Path) -> Generator[tuple[h5py.File, int], None, None]:
        """Makes one file after the other and yields the place of each trajectory."""
        for source in self._sources:
            with h5py.File(folder / source.location.name, "w") as file:
                with source.location.hdf5() as original:
                    file.attrs.update(original.attrs)
                    file.attrs["adaptok"] = self.about
                    for name in ("dimensions", "boundary_conditions", "scalars"):
                        original.copy(name, file)
                    for name in ("dimensions", "scalars"):
                        self._cut_in_time(file[name])
                    for order in range(3):
                        self._copy_fields(original[f"t{order}_fields"], order, file, source)
                yield from ((file, row) for row in range(source.trajectories))

    def _cut_in_time(self, group: Any) -> None:
        """Keeps the values at the predicted frames; time is the last axis of everything here."""
        for name in list(group):
            if name == "time" or group[name].attrs.get("time_varying", False):
                values, attributes = group[name][...][..., self.frames], dict(group[name].attrs)
                del group[name]
                group.create_dataset(name, data=values).attrs.update(attributes)

    def _copy_fields(self, original: Any, order: int, file: h5py.File, source: WellFile) -> None:
        group = file.create_group(f"t{order}_fields")
        group.attrs.update(original.attrs)
        dimensions: Any = file["dimensions"]
        space = [len(dimensions[axis]) for axis in dimensions.attrs["spatial_dims"]]
        for name in original.attrs["field_names"]:
            if not original[name].attrs["time_varying"]:
                original.copy(name, group)
                continue
            shape = (source.trajectories, len(self.frames), *space, *[len(space)] * order)
            frame = (1, 1, *shape[2:])
            dataset = group.create_dataset(
                name, shape, dtype=np.float32, chunks=frame, fletcher32=True
            )
            dataset.attrs.update(original[name].attrs)
            dataset.attrs["sample_varying"] = True
            dataset.attrs["dim_varying"] = [True] * len(space)


def _write(trajectory: np.ndarray, file: h5py.File, row: int) -> None:
    first, ndim = 0, trajectory.ndim - 2
    for order in range(3):
        group: Any = file[f"t{order}_fields"]
        for name in group.attrs["field_names"]:
            if group[name].attrs["time_varying"]:
                parts = trajectory[..., first : first + ndim**order]
                first += ndim**order
                group[name][row] = parts.reshape(group[name].shape[1:])
