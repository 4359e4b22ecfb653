"""The study of adaptivity: `python experiments/adaptivity/run.py [--plan] [--rows PATTERN]
[--hours H]`, and `python experiments/adaptivity/run.py table`.

Several may run side by side: each row is one process's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from adaptivity.plan import WAVES, priced  # noqa: E402
from adaptivity.results import Results  # noqa: E402
from adaptivity.rows import Row, all_rows, decided  # noqa: E402
from studies import Command, plan  # noqa: E402

TOTAL = 12.0  # core-hours


def ready(row: Row, results: Results) -> bool:
    """Tells whether a row is to be run and does not wait for another one."""
    study = results.read()
    if row.label in study.done:
        return False
    known, why = decided(row, study.done, results.widths())
    return known is not None or "equal seconds" in why  # which its own process measures


def said(rows: Sequence[Row], results: Results, full: bool) -> str:
    """Says what rows will cost."""
    found = priced(rows, results.read())
    return plan(found, results.spent(), 3600 * TOTAL, WAVES, full=full)


def write(results: Results, pages: Path) -> str:
    """Writes pages and picture."""
    from adaptivity import pages as drawing  # with matplotlib

    return drawing.write(results, pages)


COMMAND = Command("adaptivity", TOTAL, all_rows, Results, ready, said, write)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
