"""Paired timing of functions: they run in turn, so that drifts of the machine hit all of them."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from adaptok.evaluation.cost import environment, operation_counter
from adaptok.utils.atomic import replacing
from adaptok.utils.tables import table

TARGET = Path("docs/benchmarks")
SOURCE = Path(__file__).resolve().parents[3]  # the folder that contains the package
FULL = {"remark": "out of memory"}  # of a row that a device had no room for
Result = TypeVar("Result")
CLOCK = " On one thread of a CPU times are processor time."


def target_of(about: str | None, given: Sequence[str] | None = None) -> Path:
    """Reads the folder of results from the command line of a benchmark without other options.

    Args:
        about: documentation of the module, for ``--help``.
        given: arguments; by default those of the process.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=TARGET, help="of the results")
    return parser.parse_args(given).folder


def clock_of(device: str | torch.device) -> Callable[[], float]:
    """Returns a clock of processor time if one thread of the CPU does all the work, so that other
    programs do not count; else of wall time.
    """
    alone = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def paired(
    functions: Mapping[str, Callable[[], Any]],
    *,
    repeats: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Measures the seconds of each function, run in turn; waits for CUDA work.

    Each round has an order of its own: a function that always runs behind one with the same
    weights finds them in the cache.
    """
    shuffled = random.Random(0)
    for _ in range(warmup):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name in shuffled.sample(list(functions), len(functions)):
            _wait()
            start = clock()
            functions[name]()
            _wait()
            seconds[name].append(clock() - start)
    return seconds


def unless_full(call: Callable[[], Result]) -> Result | None:
    """Returns what a call does; None if the device has no memory for it, which is then freed."""
    try:
        return call()
    except torch.OutOfMemoryError:
        pass  # only outside of this block are the frames gone that hold the tensors
    gc.collect()
    torch.cuda.empty_cache()
    return None


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions in float32, which CUDA rounds to fewer digits by default: two ways to compute
    the same would not agree.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def digits(value: float) -> float:
    """Rounds to three significant digits."""
    return float(f"{value:.3g}")


def matmul_peak(device: torch.device, precision: str) -> float:
    """Measures operations per second of a large matrix product: a bound on the speed of a step."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    run = {"matmul": lambda: a @ a}
    times = paired(run, repeats=10, warmup=3, clock=clock_of(device))["matmul"]
    return 2 * size**3 / statistics.median(times)


def flops_of(function: Callable[[], Any]) -> int:
    """Counts the floating-point operations of one call."""
    with operation_counter() as counter:
        function()
    return counter.get_total_flops()


def median_ratio(over: list[float], under: list[float]) -> float:
    """Returns the median of the pairwise ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def machine() -> dict[str, Any]:
    """Says what was measured, and on what: for the commit see `commit_of`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = {**environment(device), "python": platform.python_version()}
    return {**about, "commit": commit_of(SOURCE) or f"version {about['adaptok']}"}


def commit_of(source: Path) -> str | None:
    """Returns the whole hash of the commit of a source tree, with a plus if files had changed.

    None if the folder is not the top of a repository: a package that was installed into one, such
    as into its ``.venv``, is no part of it.
    """
    try:
        top, commit = _git(source, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        changed = _git(source, "status", "--porcelain", "--untracked-files=no")
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    if Path(top).resolve() != source.resolve():
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    call = ["git", "--no-optional-locks", "-C", str(folder), *words]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()


def saved(folder: Path, name: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Collects rows as they come; `<name>.json` holds those so far after each, since a time limit
    may stop the process. Rows of functions that are timed in turn come together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept, about = [], machine()
    for row in rows:
        kept.append(row)
        with replacing(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps({"machine": about, "rows": kept}, indent=1))
    return kept


def write_results(
    folder: Path,
    name: str,
    rows: list[dict[str, Any]],
    note: str,
    draw: Callable[[list[dict[str, Any]], Path], None] | None = None,
    command: str = "",
) -> Path:
    """Writes `<name>.json` and `<name>.md` into a folder; returns the path of the Markdown file.

    Args:
        draw: draws the rows into `<name>.png`.
        command: that measured the rows; by default the module of this name in `benchmarks`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    with replacing(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))
    lines = [f"# {name.replace('_', ' ').capitalize()}", "", note, ""]
    lines += [f"`{command or f'python -m benchmarks.{name}'}`", ""]
    lines += [", ".join(f"{k} {v}" for k, v in about.items()), ""]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines += [table(columns, [[str(row.get(key, "")) for key in columns] for row in rows])]
    if draw is not None:
        draw(rows, folder / f"{name}.png")
        lines += [f"![{name}]({name}.png)", ""]
    path = folder / f"{name}.md"
    path.write_text("\n".join(lines))
    return path


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
