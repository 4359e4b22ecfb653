"""Means over seeds, ranks, Pareto fronts, and whether a comparison counts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from adaptok.report.grouping import Group
from adaptok.report.records import Measure, Number, Result, Run

NAMED = 4  # models in a reason; the table says the rest


class Spread(NamedTuple):
    """Mean and sample standard deviation of n numbers; the latter is None for one number."""

    mean: float
    std: float | None
    n: int


def spread(values: Iterable[Number]) -> Spread | None:
    """Of those that are numbers; None without any."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    std = statistics.stdev(known) if len(known) > 1 else None
    return Spread(statistics.fmean(known), std, len(known))


@dataclass(frozen=True)
class Summary:
    """A group at one setting.

    Attributes:
        group: the runs.
        setting: label of the setting.
        pairs: a run and its result each.
        home: whether it is the setting that the runs were trained at.
    """

    group: Group
    setting: str
    pairs: Sequence[tuple[Run, Result]]
    home: bool = field(default=True)

    @property
    def measure(self) -> Measure:
        """What models are compared by."""
        return self.group.table.measure

    @property
    def diverged(self) -> int:
        """Number of runs without a finite error."""
        return sum(result.get(self.measure.key) is None for _, result in self.pairs)

    def diverged_in(self, name: str) -> int:
        """Number of runs in which a number was measured and is not finite."""
        return sum(name in r.values and r.get(name) is None for _, r in self.pairs)

    @property
    def error(self) -> Spread | None:
        """The measure, over the runs that did not diverge."""
        return self.spread(self.measure.key)

    def spread(self, name: str) -> Spread | None:
        """Of a number over the runs."""
        return spread(result.get(name) for _, result in self.pairs)

    def of_runs(self, name: str) -> Spread | None:
        """Of a number of the whole run, such as "parameters"."""
        return spread(run.values.get(name) for run, _ in self.pairs)

    def reference_of(self, name: str) -> Spread | None:
        """Of a number of persistence."""
        return spread(run.reference_of(name) for run, _ in self.pairs)

    @property
    def counts(self) -> bool:
        """Whether every run of it beats persistence (or chance); then it may be best."""
        return all(run.beats_reference(result) for run, result in self.pairs)

    @property
    def is_reference(self) -> bool:
        """Whether the model is persistence itself."""
        return self.group.kind == "persistence"

    def curve(self, name: str) -> list[Number]:
        """Mean over the runs of a list of numbers, step by step, as long as all have it."""
        lists = [result.curves[name] for _, result in self.pairs if name in result.curves]
        return [
            None if any(v is None for v in step) else statistics.fmean(step)
            for step in zip(*lists, strict=False)
        ]


def summaries(groups: Sequence[Group]) -> list[Summary]:
    """Every group at every setting that one of its runs was tested at.

    Of runs that repeat or evaluate the same one, the newest counts at each setting.
    """
    found = []
    for group in groups:
        rows: dict[str, dict[Hashable, tuple[Run, Result]]] = {}
        for run, identity in sorted(
            zip(group.runs, group.identities, strict=True), key=lambda pair: pair[0].modified
        ):
            for result in run.results:
                rows.setdefault(result.label, {})[identity] = (run, result)
        pairs = {
            setting: sorted(newest.values(), key=lambda pair: (pair[0].seed is None, pair[0].seed))
            for setting, newest in rows.items()
        }
        home = _home(pairs)
        found += [Summary(group, s, own, s == home) for s, own in pairs.items()]
    return found


def _home(rows: Mapping[str, Sequence[tuple[Run, Result]]]) -> str:
    """The setting that most runs were trained at; where none was, the first one."""
    trained = {s: sum(run.trained_at(r) for run, r in pairs) for s, pairs in rows.items()}
    return max(trained, key=lambda setting: trained[setting], default="")


def ranks(rows: Sequence[Summary], name: str, *, lower: bool = True) -> list[int | None]:
    """1 for the best and 2 for the second best of a column, None for the others.

    Rows are ranked among those of the same setting. Those with a diverged run or that do not beat
    persistence, one step ahead and in this column, have no rank; neither has a row that is compared
    with nothing.
    """

    places: list[int | None] = [None] * len(rows)
    for setting in {row.setting for row in rows}:
        valued = [
            (value.mean if lower else -value.mean, i)
            for i, row in enumerate(rows)
            if row.setting == setting
            and row.counts
            and not row.is_reference
            and not row.diverged_in(name)
            and (value := row.spread(name)) is not None
            and not _beaten(value, row.reference_of(name), lower)
        ]
        if len(valued) > 1:
            for place, (_, i) in enumerate(sorted(valued)[:2], start=1):
                places[i] = place
    return places


def _beaten(value: Spread, reference: Spread | None, lower: bool) -> bool:
    if reference is None:
        return False
    return value.mean >= reference.mean if lower else value.mean <= reference.mean


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one dominates, by the first coordinate; less is better.

    A point dominates another if it is as small in both coordinates and smaller in one. Equal points
    do not dominate each other.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


class Verdict(NamedTuple):
    """Whether the models of a table may be compared at a setting, and why not."""

    setting: str
    models: Sequence[str]
    counts: bool
    reasons: Sequence[str]


def verdicts(rows: Sequence[Summary]) -> list[Verdict]:
    """A verdict per setting of a table.

    A comparison counts if every run of every model in it beats persistence (chance, for accuracy)
    on the test split and has a learning curve.
    """
    found = []
    for setting in dict.fromkeys(row.setting for row in rows):
        own = [row for row in rows if row.setting == setting and not row.is_reference]
        reasons = _objections(own)
        if own and own[0].group.table.split != "test":
            reasons.append(f"tested on the {own[0].group.table.split} split")
        if len(own) == 1:
            reasons.append("there is nothing to compare it with")
        if own:
            models = [row.group.label for row in own]
            found.append(Verdict(setting, models, not reasons, reasons))
    return found


def _objections(rows: Sequence[Summary]) -> list[str]:
    """What speaks against a comparison, each with the models that it is true of."""
    if not rows:
        return []
    measure = rows[0].measure
    tests: list[tuple[str, Callable[[Run, Result], bool]]] = [
        ("diverged", lambda run, result: result.get(measure.key) is None),
        (
            f"not better than {measure.reference}",
            lambda run, result: (
                run.beats_reference(result) is False and result.get(measure.key) is not None
            ),
        ),
        (f"{measure.reference} unknown", lambda run, result: run.beats_reference(result) is None),
        ("no learning curve", lambda run, result: len(run.curve) < 2),
    ]
    found = []
    for what, test in tests:
        models = []
        for row in rows:
            bad = sum(test(run, result) for run, result in row.pairs)
            if bad:
                part = "" if bad == len(row.pairs) else f" ({bad} of {len(row.pairs)} runs)"
                models.append(row.group.label + part)
        more = [f"{len(models) - NAMED} more"] if len(models) > NAMED else []
        if models:
            found.append(f"{what}: {'; '.join([*models[:NAMED], *more])}")
    return found
