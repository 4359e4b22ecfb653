"""Rows side by side: means over seeds, marks, and what a track still lacks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from adaptok.evaluation.standings.row import MEASURES, Row

SEEDS = 3
OVER = 1.1  # tokens over those of the budget from which on a row is marked
MANDATORY = {
    "T0": ("optimal tree", "oracle", "uniform", "random", "radial"),
    "T1": (
        *("persistence", "uniform", "uniform_help", "random", "radial", "oracle"),
        *("lower_resolution", "cnextunet", "fno", "tfno", "ckm_cyclic", "csm_cyclic"),
    ),
    "T2": ("chance", "uniform", "random", "radial", "lower_resolution", "tome"),
}


@dataclass(frozen=True)
class Standing:
    """The rows of one set, method and budget that one commit measured on one machine.

    Attributes:
        rows: one per seed.
        marks: what a reader has to know, in words.
    """

    rows: tuple[Row, ...]
    marks: tuple[str, ...]

    @property
    def first(self) -> Row:
        """A row, for what all have in common."""
        return self.rows[0]

    def mean(self, name: str) -> float | None:
        """Mean of a metric over seeds; None if one has none."""
        return _mean([row.metrics.get(name) for row in self.rows])

    @property
    def score(self) -> float | None:
        """Mean of what the track is sorted by."""
        return self.mean(MEASURES[self.first.track])

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the score over seeds; None for fewer than two."""
        values = [row.score for row in self.rows if row.score is not None]
        return statistics.stdev(values) if len(values) > 1 else None

    def cost(self, name: str) -> float | None:
        """Mean of "tokens", "flops", or one of the seconds, over seeds."""
        if name in ("tokens", "flops"):
            return _mean([getattr(row, name) for row in self.rows])
        return _mean([(row.seconds or {}).get(name) for row in self.rows])

    def window(self, name: str) -> float | None:
        """Mean of a window of the rollout over seeds; None if one diverged or has none."""
        return _mean([(row.rollout or {}).get("windows", {}).get(name) for row in self.rows])


def standings(rows: Iterable[Row]) -> list[Standing]:
    """Groups rows over seeds, never over commits, machines or configurations; best first.

    In each track, set and budget those that count come before those that do not beat persistence
    or chance, and quoted ones come last.
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        key = (row.track, row.set, row.method, row.budget["kind"], row.budget["value"])
        same = (row.commit, row.hardware, row.measured, row.source, row.definition)
        groups.setdefault((key, same), []).append(row)
    newest = _newest(row for group in groups.values() for row in group)
    made = [_standing(group, newest) for group in groups.values()]
    return sorted(made, key=_order)


def _standing(group: Sequence[Row], newest: dict[tuple[str, str], str]) -> Standing:
    by_seed = sorted(group, key=lambda row: (row.seed is None, row.seed or 0))
    return Standing(tuple(by_seed), tuple(_marks(by_seed, newest)))


def _newest(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """The commit of the latest row of each track and set."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for row in rows:
        if row.measured:
            place = (row.track, row.set)
            found[place] = max(found.get(place, ("", "")), (row.when, row.commit))
    return {place: commit for place, (_, commit) in found.items()}


def _marks(group: Sequence[Row], newest: dict[tuple[str, str], str]) -> Iterable[str]:
    row = group[0]
    if not row.measured:
        yield "published, not measured here"
    seeds = {one.seed for one in group if one.seed is not None}
    if row.measured and len(seeds) < SEEDS:
        yield f"{len(seeds)} of {SEEDS} seeds" if seeds else "no seed"
    if len(group) > max(len(seeds), 1):
        yield "a seed more than once"
    if not any(one.seconds for one in group):
        yield "no seconds"
    if row.measured and row.commit != newest[row.track, row.set]:
        yield f"commit {row.commit}, others {newest[row.track, row.set]}"
    if not _counts(group):
        yield {"T1": "does not beat persistence", "T2": "does not beat chance"}[row.track]
    tokens, value = _mean([one.tokens for one in group]), row.budget["value"]
    if row.budget["kind"] == "tokens" and tokens and value and tokens > OVER * value:
        yield f"{tokens / value:.2f} times the tokens"


def _counts(group: Sequence[Row]) -> bool:
    """Tells whether a method beats what knows nothing; that itself always counts."""
    name = {"T1": "persistence", "T2": "chance"}.get(group[0].track)
    if name is None or group[0].method == name or not group[0].measured:
        return True
    scores, blank = _mean([row.score for row in group]), group[0].metrics.get(name)
    return scores is not None and (blank is None or scores < blank)


def _order(one: Standing) -> Any:
    row, score = one.first, one.score
    place = (row.track, row.set, row.budget["kind"], row.budget["value"] or 0)
    last = not row.measured, not _counts(one.rows), score is None
    return (*place, *last, score or 0, row.method, row.commit)


def missing(rows: Iterable[Row]) -> list[tuple[str, str, str]]:
    """Lists the track, set and method of mandatory rows that were not measured, for every set that
    has a measured row.
    """
    measured = {(row.track, row.set, row.method) for row in rows if row.measured}
    places = sorted({place[:2] for place in measured})
    return [
        (*place, method)
        for place in places
        for method in MANDATORY[place[0]]
        if (*place, method) not in measured
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if values and len(known) == len(values) else None
