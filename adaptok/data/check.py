"""What is wrong with a data set, in words: its files, splits and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptok.data.check_file import OnValues, check_file
from adaptok.data.location import Location, locate
from adaptok.data.synthetic.store import Statistics
from adaptok.data.well_files import WellFile, read_statistics
from adaptok.data.well_format import HDF5, SPLITS, TABLES
from adaptok.utils.checksums import CHECKSUMS, sha256_of

TOLERANCE = 0.01  # of the spread, by which statistics may be off


class Defect(NamedTuple):
    """Something wrong: where (a file or folder), and what, in words."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Report(NamedTuple):
    """What a check found.

    Attributes:
        files: number of files that were read.
        problems: every defect; none in a set that can be trained on.
    """

    files: int
    problems: list[Defect]


def check(path: str | Path, options: Mapping[str, Any] | None = None) -> Report:
    """Checks a file, a folder of files or a whole set, reading every value once.

    Args:
        path: of an HDF5 file, a folder with such files, or a set (with ``data/train`` ...); any URL
            of fsspec.
        options: keyword arguments of the file system.

    Raises:
        ValueError: if there is nothing to check.
    """
    location = locate(path, options)
    if location.name.endswith(HDF5):
        if not location.is_file():
            raise ValueError(f"no such file: {location}")
        return Report(1, [Defect(str(location), what) for what in check_file(location)])
    if not location.is_folder():
        if location.is_file():
            raise ValueError(
                f"{location} is not an HDF5 file; its name must end in {' or '.join(HDF5)}"
            )
        raise ValueError(f"no such file or folder: {location}")
    if (location / "data").is_folder():
        return _check_set(location)
    files = location.hdf5_files()
    if not files:
        raise ValueError(
            f"{location} is not a data set: it has neither a folder named data nor any .hdf5 or "
            ".h5 file"
        )
    return Report(len(files), check_files(files)[0])


def _check_set(folder: Location) -> Report:
    problems, count, first = [], 0, None
    statistics, complete = Statistics(), True
    for split in SPLITS:
        files = (folder / "data" / split).hdf5_files()
        count += len(files)
        if not files:
            problems.append(Defect(str(folder), f"split {split} is missing or empty"))
        found, good = check_files(files, statistics.accumulate if split == "train" else None)
        problems += found
        if split == "train":
            complete = not found
        if good is not None:  # one file speaks for its split
            first = first or good
            problems += _mismatch(good, first)
    problems += _check_statistics(folder, statistics if complete else None)
    return Report(count, problems + _check_checksums(folder))


def check_files(
    files: list[Location], on_values: OnValues | None = None
) -> tuple[list[Defect], WellFile | None]:
    """Checks the files of one split, which share their schema; returns also the first good file."""
    problems, first = [], None
    for file in files:
        found = [Defect(str(file), what) for what in check_file(file, on_values)]
        if not found:
            described = WellFile.describe(file)
            first = first or described
            found = _mismatch(described, first)
        problems += found
    return problems, first


def _mismatch(file: WellFile, first: WellFile) -> list[Defect]:
    what = file.difference(first)
    return [Defect(str(file.location), what)] if what else []


def _check_statistics(folder: Location, statistics: Statistics | None) -> list[Defect]:
    """Compares stats.yaml with the values of the training split; None: not all are known."""
    where = str(folder / "stats.yaml")
    try:
        stored = read_statistics(folder)
    except ValueError as error:
        return [Defect(where, str(error).removeprefix(where).lstrip(": "))]
    if statistics is None:
        return [Defect(where, "was not compared with the training files, as some are defective")]
    problems = []
    expected = statistics.summary()
    for table in TABLES:
        spreads = expected.get(table.replace("mean", "std"), {})
        for name, values in expected.get(table, {}).items():
            what = _disagreement(stored[table].get(name), values, spreads[name])
            if what:
                problems.append(Defect(where, f"{table} of {name} {what}"))
    return problems


def _check_checksums(folder: Location) -> list[Defect]:
    """Compares the files with their SHA-256, if the set has any."""
    there = folder / CHECKSUMS
    if not there.is_file():
        return []
    problems = []
    for line in there.text().splitlines():
        wanted, _, name = line.partition("  ")
        file = folder / name
        if ".." in name.split("/") or not file.is_file():
            if name == "stats.yaml":  # which is reported already
                continue
            problems.append(Defect(str(there), f"names {name!r}, which is not in the set"))
            continue
        with file.fs.open(file.path, "rb") as content:
            if sha256_of(content) != wanted:
                problems.append(Defect(str(file), f"is not as written: {CHECKSUMS} says otherwise"))
    return problems


def _disagreement(stored: Any, expected: Any, spread: Any) -> str:
    """Says how stored statistics differ from the expected ones; empty if they agree."""
    if stored is None:
        return "is missing"
    try:
        found = np.asarray(stored, dtype=np.float64)
    except (ValueError, TypeError):
        return f"is not made of numbers: {stored!r}"
    wanted = np.asarray(expected)
    if found.shape != wanted.shape:
        return f"has shape {found.shape}, expected {wanted.shape}"
    if not np.isfinite(found).all():
        return "is not finite"
    if (np.abs(found - wanted) > TOLERANCE * np.asarray(spread) + 1e-12).any():
        return f"is {stored}, but the training files have {wanted.round(6).tolist()}"
    return ""
