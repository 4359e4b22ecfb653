"""Rows side by side: means over seeds, marks, and what a track still lacks."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adaptok.evaluation.standings.origins import (
    origin_of,
    place_of,
    short_commit,
    usual,
    whole_commits,
)
from adaptok.evaluation.standings.row import MEASURES, Row, digest_of

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
        commit: in the longest form that is known.
        marks: what a reader has to know, in words.
    """

    rows: tuple[Row, ...]
    commit: str
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
    """Groups rows over seeds, never over commits, versions of torch, machines or configurations;
    best first. A row that is there twice counts once; of rows of one seed that differ in numbers
    each stands alone.

    In each track, set and budget those that count come before those that do not beat persistence
    or chance, and quoted ones come last.
    """
    unique = {digest_of(asdict(row)): row for row in rows}
    commits = whole_commits(unique.values())
    alike = {name: (place_of(row), origin_of(row, commits)) for name, row in unique.items()}
    times = Counter((alike[name], row.seed) for name, row in unique.items())
    groups: dict[Any, list[Row]] = {}
    for name, row in unique.items():
        alone = name if times[alike[name], row.seed] > 1 else None
        groups.setdefault((alike[name], alone), []).append(row)
    others = _Usual([row for row in unique.values() if row.measured], commits)
    made = [
        _standing(group, alone is not None, commits, others) for (_, alone), group in groups.items()
    ]
    return sorted(made, key=_order)


class _Usual:
    """What most measured rows have: of a set, as far as all methods should; else of a place."""

    def __init__(self, rows: Sequence[Row], commits: Mapping[str, str]):
        self.commit = usual(rows, _set_of, lambda row: commits[row.commit])
        self.torch = usual(rows, _set_of, lambda row: row.versions["torch"])
        self.hardware = usual(rows, _set_of, lambda row: row.hardware)
        self.definition = usual(rows, place_of, lambda row: row.definition)


def _set_of(row: Row) -> Hashable:
    return row.track, row.set


def _standing(
    group: Sequence[Row], alone: bool, commits: Mapping[str, str], others: _Usual
) -> Standing:
    by_seed = sorted(group, key=lambda row: (row.seed is None, row.seed or 0))
    commit = commits[by_seed[0].commit]
    again = ["a seed more than once"] if alone else []
    marks = [*again, *_marks(by_seed), *_origin_marks(by_seed, commit, others)]
    return Standing(tuple(by_seed), commit, tuple(marks))


def _marks(group: Sequence[Row]) -> Iterable[str]:
    row = group[0]
    if not row.measured:
        yield "published, not measured here"
    seeds = {one.seed for one in group if one.seed is not None}
    if row.measured and len(seeds) < SEEDS:
        yield f"{len(seeds)} of {SEEDS} seeds" if seeds else "no seed"
    timed = [set(one.seconds or {}) for one in group]
    whole = sum(names == set.union(*timed) for names in timed)
    if not any(timed):
        yield "no seconds"
    elif whole < len(group):
        yield f"all seconds in {whole} of {len(group)} rows"
    if not _counts(group):
        yield {"T1": "does not beat persistence", "T2": "does not beat chance"}[row.track]
    tokens, value = _mean([one.tokens for one in group]), row.budget["value"]
    if row.budget["kind"] == "tokens" and tokens and value and tokens > OVER * value:
        yield f"{tokens / value:.2f} times the tokens"


def _origin_marks(group: Sequence[Row], commit: str, others: _Usual) -> Iterable[str]:
    row = group[0]
    if not row.measured:
        return
    where = _set_of(row)
    if commit != others.commit[where]:
        yield f"commit {short_commit(commit)}, others {short_commit(others.commit[where])}"
    if row.versions["torch"] != others.torch[where]:
        yield f"torch {row.versions['torch']}, others {others.torch[where]}"
    if row.hardware != others.hardware[where]:
        yield "another machine"
    if row.definition != others.definition[place_of(row)]:
        yield "another configuration"


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
    return (*place, *last, score or 0, row.method, one.commit)


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
