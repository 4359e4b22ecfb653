"""Where rows come from: what they have to share to be averaged, and what is usual among them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import datetime
from typing import Any

from adaptok.evaluation.standings.row import Row

HASH = re.compile(r"([0-9a-f]{7,64})(\+?)")


def whole_commits(rows: Iterable[Row]) -> dict[str, str]:
    """Maps each commit to the longest form that the rows have of it: how far a hash is shortened
    depends on the clone.
    """
    names = {row.commit for row in rows}
    found = {}
    for name in names:
        longer = [other for other in names if _begins(other, name)]
        whole = max(longer, key=len)
        # a hash that begins two commits is neither
        found[name] = whole if all(_begins(whole, other) for other in longer) else name
    return found


def _begins(commit: str, start: str) -> bool:
    long, short = HASH.fullmatch(commit), HASH.fullmatch(start)
    if long is None or short is None:
        return commit == start
    return long[1].startswith(short[1]) and long[2] == short[2]


def short_commit(commit: str) -> str:
    """Shortens a hash for readers; a plus stays."""
    found = HASH.fullmatch(commit)
    return commit if found is None else found[1][:10] + found[2]


def place_of(row: Row) -> tuple[Any, ...]:
    """What competes: track, set, method, and the budget's kind and value."""
    return row.track, row.set, row.method, row.budget["kind"], row.budget["value"]


def origin_of(row: Row, commits: Mapping[str, str]) -> tuple[Any, ...]:
    """What rows of a place share if only their seeds differ.

    Args:
        row: of the benchmark.
        commits: see `whole_commits`.
    """
    commit = commits[row.commit]
    code = commit if HASH.fullmatch(commit) else (commit, row.versions.get("adaptok"))
    by = (code, row.hardware, row.versions.get("torch"))
    return (*by, row.measured, row.source, row.definition)


def usual(
    rows: Iterable[Row], place: Callable[[Row], Hashable], value: Callable[[Row], str]
) -> dict[Hashable, str]:
    """Finds the value that most rows of each place have; of several, that of the latest row."""
    seen: dict[Hashable, dict[str, list[datetime]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        seen[place(row)][value(row)].append(row.moment)
    return {
        where: max(values, key=lambda one: (len(values[one]), max(values[one])))
        for where, values in seen.items()
    }
