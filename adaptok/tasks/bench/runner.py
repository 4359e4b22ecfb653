"""Runs the jobs of a track one after the other: priced first, resumable, a row per file."""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from filelock import FileLock, Timeout

from adaptok.evaluation.standings import Folder, Row, read_rows, write_row
from adaptok.tasks.bench.job import Job
from adaptok.utils.atomic import replacing
from adaptok.utils.tables import table

Measure = Callable[[Job, Path], Row]
WORK = "work"  # below the folder of rows: sets, checkpoints, logs and locks
TIMES = "seconds.csv"  # in it: what jobs were expected to take, and took


def is_done(job: Job, found: Folder) -> bool:
    """Tells whether there is a row of this job and of its configuration as it is now."""
    row = found.rows.get(f"{job.stem}.json")
    return row is not None and row.key == job.key


def price_list(jobs: Sequence[Job], out: Path) -> str:
    """Says what is to be run and what it will take, as a table with a line per set and budget."""
    found, factor = _read(out), _correction(out)
    body = []
    of = lambda job: (job.set, f"{job.kind} {job.value or ''}".strip())  # noqa: E731
    for (data, budget), some in groupby(sorted(jobs, key=of), key=of):
        these = list(some)
        left = [job for job in these if not is_done(job, found)]
        minutes = factor * sum(job.price.seconds for job in left) / 60
        memory = max(job.price.memory for job in these) / 1e9
        methods = len({job.method for job in these})
        done = f"{len(these) - len(left)}/{len(these)}"
        body.append([data, budget, str(methods), done, f"{minutes:.1f}", f"{memory:.1f}"])
    left = [job for job in jobs if not is_done(job, found)]
    seconds = factor * sum(job.price.seconds for job in left)
    memory = max((job.price.memory for job in left), default=0.0) / 1e9
    header = ["set", "budget", "methods", "done", "minutes", "GB"]
    return table(header, body) + (
        f"\n{len(left)} of {len(jobs)} rows to measure: about {seconds / 3600:.2f} hours of one "
        f"core or GPU, {memory:.1f} GB of memory; {_free(out):.0f} GB are free on the disk"
    )


def run(jobs: Sequence[Job], out: Path, measure: Measure) -> dict[str, str]:
    """Measures what is not done yet. Several processes may run side by side: each row is one's.

    Args:
        jobs: in their order.
        out: gets a file per row; ``out/work`` is for what is in the making.
        measure: of the track.

    Returns:
        Why jobs failed, by the name of their row; a failure stops no other.
    """
    work, failed = out / WORK, {}
    work.mkdir(parents=True, exist_ok=True)
    for number, job in enumerate(jobs, 1):
        place = f"{number}/{len(jobs)} {job.stem}"
        try:
            with FileLock(work / f"{job.stem}.lock", timeout=0):
                if is_done(job, _read(out)):
                    continue
                start = time.process_time()
                with _logged(work / f"{job.stem}.log"):
                    row = measure(job, work)
                write_row(row, out)
                took = time.process_time() - start
        except Timeout:
            print(f"{place}: another process measures it", flush=True)
            continue
        except Exception as error:  # of one method; the others go on
            failed[job.stem] = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"{place}: failed: {failed[job.stem]}", flush=True)
            continue
        _note(out, job.price.seconds, took)
        shutil.rmtree(work / job.stem, ignore_errors=True)
        score = "diverged" if row.score is None else f"{row.score:.4g}"
        print(f"{place}: {score}, {took:.0f} s", flush=True)
    return failed


def _read(out: Path) -> Folder:
    return read_rows(out) if out.is_dir() else Folder()


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Sends what a training prints into a file."""
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def _note(out: Path, expected: float, took: float) -> None:
    """Keeps what a job took, for later prices."""
    path = out / WORK / TIMES
    lines = path.read_text().splitlines() if path.is_file() else []
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*lines, f"{expected:.2f},{took:.2f}"]) + "\n")


def _correction(out: Path) -> float:
    """By how much finished jobs took longer than their price."""
    path = out / WORK / TIMES
    if not path.is_file():
        return 1.0
    pairs = [line.split(",") for line in path.read_text().splitlines()]
    ratios = [float(took) / float(expected) for expected, took in pairs if float(expected) > 0]
    return statistics.median(ratios) if ratios else 1.0


def _free(out: Path) -> float:
    place = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    return shutil.disk_usage(place).free / 1e9
