"""What studies share: rows that run one after the other, each in a process of its own, for a price
that is known before; the ledger of what they took; and parts of pages that are written again.

A study is a package beside this file with a `Command`. What is finished is skipped, what was
interrupted resumes, and a failed row stops no other.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from filelock import FileLock, Timeout

from adaptok.utils.tables import table

EXPERIMENTS = Path(__file__).parent
GRACE = 120.0  # seconds for a row to leave its place
LEDGER = ("row", "seconds", "outcome")
Found = dict[str, Any]


class Row(Protocol):
    """What runs as one process. Rows are listed wave by wave."""

    @property
    def data(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def wave(self) -> int: ...
    @property
    def label(self) -> str: ...


@dataclass
class Study:
    """What the files say.

    Attributes:
        done: finished rows by label.
        bad: why a file is left out, by its name.
    """

    done: dict[str, Found] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)


class Results(ABC):
    """The folder of a study: files of rows, and the ledger."""

    def __init__(self, folder: Path):
        self.folder = folder

    @abstractmethod
    def read(self) -> Study:
        """Reads all rows; those that are damaged, or of another definition, are left out."""

    def spent(self) -> float:
        """Returns the core seconds of all rows so far, failed and interrupted ones included."""
        path = self.folder / "ledger.csv"
        if not path.is_file():
            return 0.0
        with path.open(newline="") as file:
            return sum(float(line["seconds"]) for line in csv.DictReader(file))

    def spend(self, row: Row, seconds: float, outcome: str) -> None:
        """Adds a line to the ledger."""
        path = self.folder / "ledger.csv"
        self.folder.mkdir(parents=True, exist_ok=True)
        first = not path.is_file()
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if first:
                writer.writerow(LEDGER)
            writer.writerow([row.label, f"{seconds:.1f}", outcome])


class Priced(NamedTuple):
    """A row with its estimated seconds of one core, and whether it is finished."""

    row: Row
    seconds: float
    done: bool


def plan(
    rows: Sequence[Priced], spent: float, total: float, waves: Mapping[int, str], *, full: bool
) -> str:
    """Says what is to be run, in its order, and whether it fits into the core-hours.

    Args:
        spent: core seconds so far.
        total: core seconds of the study.
        waves: what they are for.
        full: with a line per wave and set, else one line in all.
    """
    open_rows = [one for one in rows if not one.done]
    needed = sum(one.seconds for one in open_rows)
    fits = "fits" if spent + needed <= total else "does not fit: the last rows stay open"
    said = (
        f"{len(open_rows)} of {len(rows)} rows to run, about {needed / 3600:.1f} core-hours; "
        f"{spent / 3600:.1f} of {total / 3600:g} are spent: it {fits}"
    )
    if not full:
        return said
    key = lambda one: (one.row.wave, one.row.data)  # noqa: E731
    body, sum_so_far = [], spent
    for (wave, data), some in groupby(sorted(rows, key=key), key=key):
        these = list(some)
        price = sum(one.seconds for one in these if not one.done)
        sum_so_far += price
        names = dict.fromkeys(one.row.name for one in these)
        cells = [waves[wave], data, f"{sum(one.done for one in these)}/{len(these)}"]
        hours = [f"{price / 3600:.2f}", f"{sum_so_far / 3600:.2f}"]
        body.append([*cells, *hours, ", ".join(names)])
    header = ["wave", "set", "done", "core-hours", "in all", "rows"]
    return table(header, body) + "\n" + said


def finish(process: subprocess.Popen, deadline: float) -> str:
    """Waits for a row until a deadline, and then asks it to stop; returns what became of it."""
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if isinstance(reason, KeyboardInterrupt):  # also of a row that has just finished
            raise
        if process.returncode != 0:
            return "interrupted"
    return "finished" if process.returncode == 0 else f"failed with {process.returncode}"


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True)
class Command:
    """The command of a study, `run.py [--plan] [--rows PATTERN] [--hours H]` and `run.py table`.

    Attributes:
        study: its package, whose module `train` runs a row.
        total: core-hours of the whole study.
        rows: lists all rows, in the order in which they run.
        results: opens a folder of results.
        ready: tells whether a row is to be run and does not wait for another one.
        plan: says what some rows will cost, shortly or in full.
        write: writes tables into a folder of pages; returns what is missing.
    """

    study: str
    total: float
    rows: Callable[[], Sequence[Row]]
    results: Callable[[Path], Results]
    ready: Callable[[Any, Any], bool]
    plan: Callable[[Sequence[Any], Any, bool], str]
    write: Callable[[Any, Path], str]

    def chosen(self, pattern: str) -> list[Row]:
        """Returns the rows whose label matches.

        Raises:
            ValueError: there is none.
        """
        rows = [row for row in self.rows() if fnmatch(row.label, pattern)]
        if not rows:
            some = ", ".join(row.label for row in self.rows()[:4])
            raise ValueError(f"no row matches {pattern!r}; rows are called {some} ...")
        return rows

    def start(self, row: Row, results: Path, work: Path) -> subprocess.Popen:
        """Starts the process of a row, in a group of its own: Ctrl-C is handed on by `finish`."""
        paths = [str(EXPERIMENTS), str(EXPERIMENTS.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", f"{self.study}.train", row.label, str(results), str(work)]
        return subprocess.Popen(words, env=environment, start_new_session=True)

    def run(self, rows: Sequence[Row], results: Results, work: Path, hours: float) -> list[str]:
        """Runs rows until all are done, the time is over or the core-hours are spent.

        Returns:
            The labels of failed rows.
        """
        deadline, failed = time.monotonic() + 3600 * hours, []
        work.mkdir(parents=True, exist_ok=True)
        tried: set[str] = set()
        while True:
            left = min(deadline, time.monotonic() + 3600 * self.total - results.spent())
            todo = [row for row in rows if row.label not in tried and self.ready(row, results)]
            over = left <= time.monotonic()
            if over or not todo:
                print("the time is over" if over else "nothing is left to run", flush=True)
                return failed
            row = todo[0]
            tried.add(row.label)
            try:
                with FileLock(work / f"{row.label}.lock", timeout=0):
                    if not self.ready(row, results):  # another process did it meanwhile
                        continue
                    before, outcome = children_seconds(), "interrupted"
                    try:
                        outcome = finish(self.start(row, results.folder, work), left)
                    finally:
                        results.spend(row, children_seconds() - before, outcome)
            except Timeout:
                print(f"{row.label}: another process runs it", flush=True)
                continue
            spent = f"{results.spent() / 3600:.2f} core-hours in all"
            print(f"{row.label}: {outcome}; {spent}", flush=True)
            failed += [row.label] if outcome.startswith("failed") else []

    def main(self, words: Sequence[str] | None = None) -> int:
        """Runs the command; returns its exit status."""
        results = EXPERIMENTS / self.study / "results"
        parser = argparse.ArgumentParser(description=f"The study {self.study}.")
        parser.add_argument("command", nargs="?", choices=("run", "table"), default="run")
        parser.add_argument("--plan", action="store_true", help="say what would run, and its price")
        parser.add_argument("--rows", default="*", help="labels, such as 'maze-coarse_fine*'")
        parser.add_argument(
            "--hours", type=float, default=self.total, help="stop after so many hours"
        )
        parser.add_argument("--results", type=Path, default=results)
        parser.add_argument("--work", type=Path, default=Path("outputs") / self.study)
        parser.add_argument("--pages", type=Path, default=EXPERIMENTS.parent / "docs")
        options = parser.parse_args(words)
        found = self.results(options.results.resolve())
        if options.command == "table":
            print(self.write(found, options.pages))
            return 0
        try:
            rows = self.chosen(options.rows)
        except ValueError as error:
            parser.error(str(error))
        print(self.plan(rows, found, options.plan))
        if options.plan:
            return 0
        try:
            failed = self.run(rows, found, options.work.resolve(), options.hours)
        except KeyboardInterrupt:
            print("stopped; the same command resumes", file=sys.stderr)
            return 130
        if failed:
            print(f"failed: {', '.join(failed)}", file=sys.stderr)
        return 1 if failed else 0


def as_process(main: Callable[[str, Path, Path], None]) -> None:
    """Runs a row as its own process: `LABEL RESULTS WORK`."""
    # It is ignored in what a shell runs behind itself.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    except KeyboardInterrupt as stopped:
        sys.exit(f"{sys.argv[1]}: stopped {stopped}")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def commit() -> str:
    """Names the commit of the working tree, with a plus if it was changed."""
    words = ["git", "-C", str(EXPERIMENTS), "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def replace_part(page: Path, name: str, text: str) -> None:
    """Replaces what a page has between two comments, `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the page lacks them.
    """
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    content = page.read_text()
    if content.count(first) != 1 or content.count(last) != 1:
        raise ValueError(f"{page} needs {first} and {last} once each")
    before, _, rest = content.partition(first)
    after = rest.partition(last)[2]
    page.write_text(f"{before}{first}\n\n{text.strip()}\n\n{last}{after}")


def mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    more = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{more}"
