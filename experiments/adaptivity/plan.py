"""What rows will cost, from their operations and from the rows that are there."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from adaptivity.costs import SETS, seconds
from adaptivity.results import Study
from adaptivity.rows import Row, all_rows, coarse_fine

from adaptok.utils.tables import table

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


class Priced(NamedTuple):
    """A row with its estimated seconds of one core, and whether it is finished."""

    row: Row
    seconds: float
    done: bool


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


def plan(rows: Sequence[Priced], spent: float, total: float, *, full: bool) -> str:
    """Says what is to be run, in its order, and whether it fits into the core-hours.

    Args:
        spent: core seconds so far.
        total: core seconds of the study.
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
        cells = [WAVES[wave], data, f"{sum(one.done for one in these)}/{len(these)}"]
        hours = [f"{price / 3600:.2f}", f"{sum_so_far / 3600:.2f}"]
        body.append([*cells, *hours, ", ".join(names)])
    header = ["wave", "set", "done", "core-hours", "in all", "rows"]
    return table(header, body) + "\n" + said
