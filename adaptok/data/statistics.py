"""Writes stats.yaml for a data set in the Well's format that lacks it."""

from __future__ import annotations

from pathlib import Path

from adaptok.data.check import check_files
from adaptok.data.location import locate
from adaptok.data.synthetic.store import Statistics
from adaptok.utils.atomic import replacing
from adaptok.utils.checksums import CHECKSUMS, sha256_of

STATISTICS = "stats.yaml"


def write_statistics(folder: str | Path, *, overwrite: bool = False) -> Path:
    """Writes mean and spread of the training split, and of its change from frame to frame.

    Reads every value of the training files once. If the set has checksums, that of the new file is
    put among them.

    Args:
        folder: of the set, with the training files in ``data/train``.
        overwrite: replace statistics that are there.

    Returns:
        The file.

    Raises:
        ValueError: no training files, one that is damaged or not in the Well's format, or
            statistics that are there.
    """
    folder = Path(folder)
    path, place = folder / STATISTICS, folder / "data" / "train"
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists; overwrite=true replaces it")
    files = locate(place).hdf5_files()
    if not files:
        raise ValueError(f"no training files: there is no .hdf5 or .h5 file in {place}")
    statistics = Statistics()
    problems, _ = check_files(files, statistics.accumulate)
    if problems:
        more = f", and {len(problems) - 1} further problems" if len(problems) > 1 else ""
        raise ValueError(f"{problems[0]}{more}; adaptok data check {folder} names all")
    with replacing(path) as new:
        statistics.write(new)
    _put_checksum(folder, path)
    return path


def _put_checksum(folder: Path, path: Path) -> None:
    there = folder / CHECKSUMS
    if not there.is_file():
        return
    lines = there.read_text().splitlines()
    lines = [line for line in lines if line.partition("  ")[2] != path.name]
    with path.open("rb") as file:
        lines.append(f"{sha256_of(file)}  {path.name}")
    with replacing(there) as new:
        new.write_text("\n".join(lines) + "\n")
