"""The study of long rollouts: `python experiments/rollouts/run.py [--plan] [--rows PATTERN]
[--hours H]`, and `python experiments/rollouts/run.py table`.

Several may run side by side: each row is one process's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from rollouts.plan import WAVES, priced  # noqa: E402
from rollouts.results import Results  # noqa: E402
from rollouts.rows import Row, all_rows  # noqa: E402
from studies import Command, plan  # noqa: E402

TOTAL = 6.0  # core-hours


def ready(row: Row, results: Results) -> bool:
    """Tells whether something of a row is to be run."""
    return not results.content(row).complete(row)


def said(rows: Sequence[Row], results: Results, full: bool) -> str:
    """Says what rows will cost."""
    return plan(priced(rows, results), results.spent(), 3600 * TOTAL, WAVES, full=full)


def write(results: Results, pages: Path) -> str:
    """Writes the page and its picture."""
    from rollouts import pages as drawing  # with matplotlib

    return drawing.write(results, pages)


COMMAND = Command("rollouts", TOTAL, all_rows, Results, ready, said, write)

if __name__ == "__main__":
    sys.exit(COMMAND.main())
