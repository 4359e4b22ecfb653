"""Few rows of choices in which every two choices meet: for tests of a product that is too large."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def pairs_of(row: Row) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every two choices of a row."""
    return set(itertools.combinations(sorted(row.items(), key=lambda item: item[0]), 2))


def covering(factors: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Rows with one choice of each factor, in which every two choices of different factors meet.

    The rows are the product of the two largest factors; each further factor gets, row by row, the
    choice that meets the most of what it has not met (in-parameter-order), and rows of its own for
    what is left.
    """
    names = sorted(factors, key=lambda name: -len(factors[name]))
    first, second = names[:2]
    rows = [{first: a, second: b} for a, b in itertools.product(factors[first], factors[second])]
    for done, name in enumerate(names[2:], start=2):
        missing = {
            pair
            for other in names[:done]
            for a, b in itertools.product(factors[other], factors[name])
            for pair in pairs_of({other: a, name: b})
        }
        for number, row in enumerate(rows):
            turn = number % len(factors[name])  # where all are equal, they take turns
            order = [*factors[name][turn:], *factors[name][:turn]]
            row[name] = max(order, key=lambda value: len(pairs_of(row | {name: value}) & missing))
            missing -= pairs_of(row)
        while missing:
            pair = dict(min(missing, key=str))
            rows.append({other: pair.get(other, factors[other][0]) for other in names[: done + 1]})
            missing -= pairs_of(rows[-1])
    return rows
