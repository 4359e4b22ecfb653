"""The study of adaptivity: `python experiments/adaptivity/run.py [--plan] [--rows PATTERN]
[--hours H]`, and `python experiments/adaptivity/run.py table`.

Rows run one after the other, the decisive ones first. What is finished is skipped, what was
interrupted resumes from its checkpoint, and a failed row stops no other. Several may run side by
side: each row is one process's.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from adaptivity.plan import plan, priced  # noqa: E402
from adaptivity.results import Results, Study  # noqa: E402
from adaptivity.rows import Row, all_rows, decided  # noqa: E402
from filelock import FileLock, Timeout  # noqa: E402

TOTAL = 12.0  # core-hours of the whole study
GRACE = 120.0  # seconds for a row to leave its place


def chosen(pattern: str) -> list[Row]:
    """Returns the rows whose label matches.

    Raises:
        ValueError: there is none.
    """
    rows = [row for row in all_rows() if fnmatch(row.label, pattern)]
    if not rows:
        some = ", ".join(row.label for row in all_rows()[:4])
        raise ValueError(f"no row matches {pattern!r}; rows are called {some} ...")
    return rows


def ready(row: Row, study: Study, widths: Mapping[str, int]) -> bool:
    """Tells whether a row is to be run and does not wait for another one."""
    if row.label in study.done:
        return False
    known, why = decided(row, study.done, widths)
    return known is not None or "equal seconds" in why  # which its own process measures


def start(row: Row, results: Path, work: Path) -> subprocess.Popen:
    """Starts the process of a row, in a group of its own: Ctrl-C is handed on by `finish`."""
    paths = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "adaptivity.train", row.label, str(results), str(work)]
    return subprocess.Popen(words, env=environment, start_new_session=True)


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


def run(rows: Sequence[Row], results: Results, work: Path, hours: float) -> list[str]:
    """Runs rows until all are done, the time is over or the core-hours are spent.

    Returns:
        The labels of failed rows.
    """
    deadline, failed = time.monotonic() + 3600 * hours, []
    work.mkdir(parents=True, exist_ok=True)
    tried: set[str] = set()
    while True:
        study, widths = results.read(), results.widths()
        left = min(deadline, time.monotonic() + 3600 * TOTAL - results.spent())
        todo = [row for row in rows if ready(row, study, widths) and row.label not in tried]
        over = left <= time.monotonic()
        if over or not todo:
            print("the time is over" if over else "nothing is left to run", flush=True)
            return failed
        row = todo[0]
        tried.add(row.label)
        try:
            with FileLock(work / f"{row.label}.lock", timeout=0):
                if row.label in results.read().done:  # by another process, meanwhile
                    continue
                before, outcome = children_seconds(), "interrupted"
                try:
                    outcome = finish(start(row, results.folder, work), left)
                finally:
                    results.spend(row, children_seconds() - before, outcome)
        except Timeout:
            print(f"{row.label}: another process runs it", flush=True)
            continue
        print(f"{row.label}: {outcome}; {results.spent() / 3600:.2f} core-hours in all", flush=True)
        failed += [row.label] if outcome.startswith("failed") else []


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--plan", action="store_true", help="say what would run, and its price")
    parser.add_argument("--rows", default="*", help="labels, such as 'maze-coarse_fine*'")
    parser.add_argument("--hours", type=float, default=TOTAL, help="stop after so many hours")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("outputs/adaptivity"))
    parser.add_argument("--pages", type=Path, default=HERE.parents[1] / "docs")
    options = parser.parse_args(words)
    results = Results(options.results.resolve())
    if options.command == "table":
        from adaptivity.pages import write  # which draws

        print(write(results, options.pages))
        return 0
    try:
        rows = chosen(options.rows)
    except ValueError as error:
        parser.error(str(error))
    print(plan(priced(rows, results.read()), results.spent(), 3600 * TOTAL, full=options.plan))
    if options.plan:
        return 0
    try:
        failed = run(rows, results, options.work.resolve(), options.hours)
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return 130
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
