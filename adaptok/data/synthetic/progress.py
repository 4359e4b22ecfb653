"""A progress bar without requirements: rich if it is installed, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, total: int, *, enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Shows progress on stderr; yields a function to call after each of the `total` steps."""
    if not enabled:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield _plain(label, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def _plain(label: str, total: int) -> Callable[[], None]:
    """Prints a line at every tenth of the job."""
    done, start = 0, time.perf_counter()

    def advance() -> None:
        nonlocal done
        before, done = done, done + 1
        if 10 * done // total > 10 * before // total:
            seconds = time.perf_counter() - start
            print(f"{label}: {100 * done // total}% ({seconds:.0f} s)", file=sys.stderr, flush=True)

    return advance
