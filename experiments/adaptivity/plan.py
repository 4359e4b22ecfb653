"""What rows will cost, from their operations and from the rows that are there."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from adaptivity.costs import SETS, seconds
from adaptivity.rows import Row, all_rows, coarse_fine
from studies import Priced, Study

WAVES = {
    1: "decisive: coarse_fine and the dense help, both tuned, random points, as published",
    2: "large domains",
    3: "equal seconds; as published at equal operations",
    4: "adaptive cells with the same help",
    5: "ablations",
    6: "other tokenizers as published",
    7: "the second number of tokens",
    8: "longer trainings",
}


def priced(rows: Sequence[Row], study: Study) -> list[Priced]:
    """Estimates rows; estimates are corrected by what finished rows of the same set took."""
    factors = {data: _correction(data, study) for data in SETS}
    return [Priced(row, factors[row.data] * estimate(row), row.label in study.done) for row in rows]


def estimate(row: Row) -> float:
    """Estimates the seconds of a row; one whose model is open costs as much as what it matches."""
    about = SETS[row.data]
    making = about.making if (row.name, row.seed) == ("coarse_fine", 0) else 0.0
    return making + seconds(row.model or coarse_fine(about), about, row.steps)


def _correction(data: str, study: Study) -> float:
    took = [
        study.done[row.label]["seconds_total"] / estimate(row)
        for row in all_rows()
        if row.data == data and row.label in study.done
    ]
    return statistics.median(took) if took else 1.0
