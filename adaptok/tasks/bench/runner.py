"""Runs the jobs of a track one after the other: priced first, resumable, a row per file."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from adaptok.evaluation.bench.timing import clock_of
from adaptok.evaluation.standings import Row, read_rows, write_row
from adaptok.tasks.bench.job import Job
from adaptok.utils.tables import table

Measure = Callable[[Job, Path], Row]
WORK = "work"  # below the folder of rows: sets, checkpoints, logs and locks
TIMES = "seconds.csv"  # in it: track, what a job was expected to take, and took


def is_done(job: Job, out: Path) -> bool:
    """Tells whether there is a row of this job and of its configuration as it is now."""
    row = read_rows(out, f"{job.stem}.json").rows.get(f"{job.stem}.json") if out.is_dir() else None
    return row is not None and row.key == job.key


def price_list(jobs: Sequence[Job], out: Path) -> str:
    """Says what is to be run and what it will take, as a table with a line per set and budget."""
    factor = _correction(out, jobs[0].track)
    done = {job for job in jobs if is_done(job, out)}
    body = []
    of = lambda job: (job.set, f"{job.kind} {job.value or ''}".strip())  # noqa: E731
    for (data, budget), some in groupby(sorted(jobs, key=of), key=of):
        these = list(some)
        left = [job for job in these if job not in done]
        minutes = factor * sum(job.price.seconds for job in left) / 60
        memory = max(job.price.memory for job in these) / 1e9
        methods = len({job.method for job in these})
        share = f"{len(these) - len(left)}/{len(these)}"
        body.append([data, budget, str(methods), share, f"{minutes:.1f}", f"{memory:.1f}"])
    left = [job for job in jobs if job not in done]
    seconds = factor * sum(job.price.seconds for job in left)
    seconds += sum({job.set: job.price.shared for job in left}.values())
    memory = max((job.price.memory for job in left), default=0.0) / 1e9
    header = ["set", "budget", "methods", "done", "minutes", "GB"]
    return table(header, body) + (
        f"\n{len(left)} of {len(jobs)} rows to measure: about {seconds / 3600:.2f} hours of one "
        f"core or GPU, {memory:.1f} GB of memory; {_free(out):.0f} GB are free on the disk"
    )


def run(
    jobs: Sequence[Job], out: Path, measure: Measure, hours: float = math.inf
) -> dict[str, str]:
    """Measures what is not done yet. Several processes may run side by side: each row is one's.

    Args:
        jobs: of one track, in their order.
        out: gets a file per row; ``out/work`` is for what is in the making.
        measure: of the track.
        hours: no row is begun that is expected to end later.

    Returns:
        Why jobs failed, by the name of their row; a failure stops no other.
    """
    work, failed = out / WORK, {}
    work.mkdir(parents=True, exist_ok=True)
    others = read_rows(out).others
    clock = clock_of("cuda" if torch.cuda.is_available() else "cpu")
    began, factor = time.perf_counter(), _correction(out, jobs[0].track)
    for number, job in enumerate(jobs, 1):
        place = f"{number}/{len(jobs)} {job.stem}"
        until = time.perf_counter() - began + factor * job.price.seconds
        try:
            with FileLock(work / f"{job.stem}.lock", timeout=0):
                if is_done(job, out):
                    continue
                if f"{job.stem}.json" in others:
                    raise ValueError("there is a row of another schema: move it elsewhere")
                if until > 3600 * hours:
                    said = f"would end after {hours:g} hours; repeat the command to begin with it"
                    print(f"{place}: {said}")
                    break
                begun, start = (work / job.stem).exists(), clock()
                with _logged(work / f"{job.stem}.log"):
                    try:
                        row = measure(job, work)
                    finally:
                        _give_back()
                write_row(row, out)
                took = clock() - start
        except Timeout:
            print(f"{place}: another process measures it", flush=True)
            continue
        except Exception as error:  # of one method; the others go on
            failed[job.stem] = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"{place}: failed: {failed[job.stem]}", flush=True)
            continue
        if not begun:
            _note(out, job, took)
        shutil.rmtree(work / job.stem, ignore_errors=True)
        score = "diverged" if row.score is None else f"{row.score:.4g}"
        print(f"{place}: {score}, {took:.0f} s", flush=True)
    return failed


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Sends what a training prints into a file."""
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield


def _give_back() -> None:
    """Returns memory that was freed to the system: glibc keeps pieces of what the largest job had,
    and more of them after each.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _note(out: Path, job: Job, took: float) -> None:
    """Keeps what a job took, for later prices; other processes may do so at the same time."""
    with (out / WORK / TIMES).open("a", encoding="utf-8") as file:
        file.write(f"{job.track},{job.price.seconds:.2f},{took:.2f}\n")


def _correction(out: Path, track: str) -> float:
    """By how much finished jobs of a track took longer than their price; 1 before there are any."""
    path = out / WORK / TIMES
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.findall(rf"^{track},(\d+\.\d+),(\d+\.\d+)$", text, re.MULTILINE)
    ratios = [float(took) / float(expected) for expected, took in found if float(expected) > 0]
    return statistics.median(ratios) if ratios else 1.0


def _free(out: Path) -> float:
    place = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    return shutil.disk_usage(place).free / 1e9
