"""What rows will cost, from a few measured seconds and from the rows that are there."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence

from rollouts.results import Results
from rollouts.rows import CHECKS, SETS, TRAINED, VALIDATED, Row, all_rows
from studies import Priced

WAVES = {
    1: "decisive: models as they are, each with everything that needs no training",
    2: "trainings for rollouts, and the price of tokens",
    3: "decisive, two more sets",
    4: "trainings for rollouts, two more sets",
    5: "decisive, two more seeds",
    6: "trainings for rollouts, two more seeds",
}
# Of one core: a training step and a step of a rollout in 2D, batches of 8; and per process.
STEP, ROLLED, START = 0.09, 0.035, 10.0
COUNTED = 80  # steps as many as a test's single predictions, counted operations and timing take
UNROLLED = 1.75  # training steps in one of the curriculum, on average


def priced(rows: Sequence[Row], results: Results) -> list[Priced]:
    """Estimates rows; estimates are corrected by what finished rows of the same set took."""
    took, done = seconds_spent(results), results.read().done
    factors = {}
    for data in SETS:
        known = [r for r in all_rows() if r.data == data and r.label in took and r.label in done]
        ratios = [took[row.label] / estimate(row) for row in known]
        factors[data] = statistics.median(ratios) if ratios else 1.0
    return [Priced(row, factors[row.data] * estimate(row), row.label in done) for row in rows]


def estimate(row: Row) -> float:
    """Estimates the seconds of a row."""
    about = SETS[row.data]
    making = about.making if (row.name, row.seed) == ("uniform", 0) else 0.0
    steps = (
        TRAINED * (UNROLLED if row.name.endswith(("_unroll", "_all")) else 1)
        + CHECKS * VALIDATED / 3
    )
    tested = len(row.variants()) * (row.steps + COUNTED)
    return START + making + about.slower * (steps * STEP + tested * ROLLED)


def seconds_spent(results: Results) -> dict[str, float]:
    """Sums the ledger by row."""
    path = results.folder / "ledger.csv"
    spent: dict[str, float] = {}
    if path.is_file():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                spent[line["row"]] = spent.get(line["row"], 0.0) + float(line["seconds"])
    return spent
