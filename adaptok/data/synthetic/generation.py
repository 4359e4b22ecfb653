"""Making a data set: seeded, cached, and either complete or absent."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from adaptok.data.synthetic.solver import SOLVERS, OnFrame, Solver, Trajectories
from adaptok.data.synthetic.store import Statistics, write_file
from adaptok.data.well_format import SPLITS
from adaptok.utils.arguments import NonNegative, check_value
from adaptok.utils.checksums import write_checksums
from adaptok.utils.disk import why_full

MAX_WORKERS = 4
LOCK = ".adaptok.lock"  # stays in the folder of all sets


class DifferentSetError(ValueError):
    """The place of a set holds another one; `found` says so without advice."""

    def __init__(self, found: str):
        super().__init__(f"{found}; overwrite=True replaces it, another root keeps both")
        self.found = found


def generate(
    name: str,
    root: str | Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    device: str = "cpu",
    **knobs: Any,
) -> Path:
    """Generates a data set in the Well's format, or finds it already there.

    The set is written beside its place and moved there when it is complete, so an interrupted run
    leaves nothing that loads; the next call removes what it left.

    Args:
        name: solver, which is also the name of the set ("acoustic_scattering_maze").
        root: folder of all sets; the set becomes ``<root>/<name>``.
        seed: an integer of at least 0 that decides every initial state.
        overwrite: replace a generated set that differs in solver version, seed or knobs.
        progress: show a progress bar on stderr.
        device: that simulates.
        knobs: of the solver, see ``SOLVERS.describe(name)``.

    Returns:
        The folder of the set.

    Raises:
        ValueError: for an unknown solver or knob, or a different set in the same place.
    """
    solver = SOLVERS.create(name, **knobs)
    check_value(seed, NonNegative, "seed")
    wanted = _identity(name, solver, seed)
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    folder = root / name
    # waits for other generators; where nothing can be written, there is none to wait for
    lock = FileLock(root / LOCK, mode=0o666) if os.access(root, os.W_OK) else nullcontext()
    with lock:
        for leftover in root.glob(f".{glob.escape(name)}.partial-*"):
            shutil.rmtree(leftover)
        if folder.exists() and any(folder.iterdir()):
            difference = _difference(folder, wanted, [chunk.file for chunk in _chunks(solver)])
            if not difference:
                return folder
            if not overwrite:
                raise DifferentSetError(f"{folder} holds a different set: {difference}")
        with tempfile.TemporaryDirectory(
            prefix=f".{name}.partial-", dir=root, ignore_cleanup_errors=True
        ) as partial:
            new = Path(partial, "new")
            try:
                _write_set(new, solver, wanted, progress, device)
            except OSError as error:
                reason = why_full(error) or error
                raise OSError(f"cannot write the set {folder}: {reason}") from error
            if folder.exists():
                os.replace(folder, Path(partial, "old"))
            os.replace(new, folder)
    return folder


def _identity(name: str, solver: Solver, seed: int) -> dict[str, Any]:
    """Returns what decides the content of a set; written into every file."""
    return {
        "adaptok_generated": True,
        "adaptok_solver": name,
        "adaptok_version": solver.version,
        "adaptok_seed": seed,
        "adaptok_resolution": solver.resolution,
        "adaptok_knobs": json.dumps(solver.knobs, sort_keys=True),
    }


def _difference(folder: Path, wanted: dict[str, Any], files: list[Path]) -> str:
    """Says how the set in `folder` differs from the wanted one; empty if it does not.

    Raises:
        ValueError: if the folder holds something that was not generated; it is never replaced.
    """
    present = sorted(folder.glob("data/*/*"))
    damaged, generated = [], False
    for file in present:
        try:
            with h5py.File(file, "r") as content:
                found = {k: content.attrs[k] for k in wanted if k in content.attrs}
        except OSError:
            damaged.append(f"{file.relative_to(folder)} is damaged")
            continue
        if not found.get("adaptok_generated"):
            raise ValueError(f"{folder} holds a set that adaptok did not generate: {file}")
        generated = True
        there, here = _flat(found), _flat(wanted)
        keys = [k for k in {**there, **here} if there.get(k) != here.get(k)]
        if keys:
            return ", ".join(f"{k} is {there.get(k)} there, {here.get(k)} wanted" for k in keys)
    if not generated:
        raise ValueError(f"{folder} is not empty, and holds no readable generated set")
    expected = [Path("stats.yaml"), *files]
    missing = [f"{file} is missing" for file in expected if not (folder / file).is_file()]
    return ", ".join(damaged + missing)


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """Flattens the knobs of what :func:`_identity` returns."""
    knobs = json.loads(identity.get("adaptok_knobs", "{}"))
    rest = {k.removeprefix("adaptok_"): v for k, v in identity.items() if k != "adaptok_knobs"}
    return rest | knobs


class _Chunk(NamedTuple):
    """A file of a set, relative to its folder, and which trajectories of the split it holds."""

    file: Path
    split: str
    indices: range


def _chunks(solver: Solver) -> list[_Chunk]:
    """Plans the files of a set: at most `solver.batch` trajectories each, of one setting."""
    chunks, count, batch = [], len(solver.settings), solver.batch
    for split in SPLITS:
        members = [range(first, getattr(solver, split), count) for first in range(count)]
        parts = [m[low : low + batch] for m in members for low in range(0, len(m), batch)]
        for number, part in enumerate(parts):
            chunks.append(_Chunk(Path("data", split, f"{split}_{number:03d}.hdf5"), split, part))
    return chunks


def _write_set(
    folder: Path, solver: Solver, identity: dict[str, Any], progress: bool, device: str
) -> None:
    """Simulates a set and writes its files and statistics; `folder` is new."""
    name, seed = identity["adaptok_solver"], identity["adaptok_seed"]
    chunks, statistics = _chunks(solver), Statistics()
    attributes = {"name": name, "boundary": solver.boundary, "attributes": identity}
    for split in SPLITS:
        (folder / "data" / split).mkdir(parents=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    screen = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=screen, disable=not progress) as bar:
        task = bar.add_task(name, total=len(chunks) * solver.frames)
        results = _simulate(solver, seed, chunks, device, lambda: bar.advance(task))
        for chunk, data in zip(chunks, results, strict=True):
            write_file(folder / chunk.file, data, **attributes)
            if chunk.split == "train":
                statistics.add(data)
    statistics.write(folder / "stats.yaml")
    write_checksums(folder)


def _simulate(
    solver: Solver, seed: int, chunks: list[_Chunk], device: str, advance: OnFrame
) -> Iterator[Trajectories]:
    """Simulates the chunks, several at a time with one torch thread each, and yields in order.

    Arrays this small gain little from several threads in one operation, and lose much on a busy
    machine.
    """
    workers = 1
    if torch.device(device).type == "cpu":
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        workers = min(MAX_WORKERS, cores, len(chunks))
    stop = threading.Event()

    def on_frame() -> None:
        if stop.is_set():
            raise InterruptedError("generation was stopped")
        advance()

    def run(chunk: _Chunk) -> Trajectories:
        return solver.run(seed, chunk.split, chunk.indices, device=device, on_frame=on_frame)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers, initializer=_prepare_worker)
    try:
        yield from pool.map(run, chunks)
    finally:
        stop.set()  # after an error or Ctrl-C: do not wait for whole trajectories
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    # Ahead of a front, fields fade through the numbers below 1e-38, which are many times slower.
    torch.set_flush_denormal(True)
