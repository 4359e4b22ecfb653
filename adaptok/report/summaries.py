"""Means over seeds, ranks, Pareto fronts, budget transfer, and whether a comparison counts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from adaptok.report.grouping import BUDGETS, Group, label_of_keys
from adaptok.report.runs import Measure, Number, RunRecord, SettingResult

NAMED = 4  # models in a reason; the table says the rest


class Spread(NamedTuple):
    """Mean and sample standard deviation of n numbers; the latter is None for one number."""

    mean: float
    std: float | None
    n: int


def spread(values: Iterable[Number]) -> Spread | None:
    """Computes the spread of the values that are numbers; None without any."""
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
        pairs: every run with its result.
        home: whether the runs were trained at this setting.
    """

    group: Group
    setting: str
    pairs: Sequence[tuple[RunRecord, SettingResult]]
    home: bool

    @property
    def label(self) -> str:
        """Label of the group."""
        return self.group.label

    @property
    def measure(self) -> Measure:
        """What models are compared by."""
        return self.group.comparison.measure

    @property
    def diverged(self) -> int:
        """Number of runs without a finite error."""
        return sum(result.get(self.measure.key) is None for _, result in self.pairs)

    def diverged_in(self, name: str) -> int:
        """Counts the runs in which a number was measured and is not finite."""
        return sum(name in r.values and r.get(name) is None for _, r in self.pairs)

    @property
    def error(self) -> Spread | None:
        """Spread of the measure over the runs that did not diverge."""
        return self.spread(self.measure.key)

    def spread(self, name: str) -> Spread | None:
        """Spread over runs of a number of the setting or of the run, such as "parameters"."""
        return spread(r.values.get(name, run.values.get(name)) for run, r in self.pairs)

    def reference_of(self, name: str) -> Spread | None:
        """Spread over runs of a persistence metric."""
        return spread(run.references.get(name) for run, _ in self.pairs)

    @property
    def counts(self) -> bool:
        """Whether every run beats persistence (or chance); only then it can be best."""
        return all(run.beats_reference(result) for run, result in self.pairs)

    @property
    def is_reference(self) -> bool:
        """Whether the model is persistence itself."""
        return self.group.kind == "persistence"

    def lists(self, name: str) -> list[Sequence[Any]]:
        """Curves of the runs that have one of this name."""
        return [result.curves[name] for _, result in self.pairs if name in result.curves]

    def curve(self, name: str) -> list[Number]:
        """Mean curve over the runs, as long as the shortest; None where one of them diverged."""
        return mean_curve(self.lists(name))


def mean_curve(lists: Sequence[Sequence[Number]]) -> list[Number]:
    """Mean of curves step by step, as long as the shortest; None where one of them diverged."""
    steps = zip(*lists, strict=False)
    return [None if None in step else statistics.fmean(step) for step in steps]  # type: ignore[arg-type]


def summaries(groups: Sequence[Group]) -> list[Summary]:
    """Summarizes every group at every setting that one of its runs was tested at.

    Of runs that repeat or evaluate the same one, the newest counts at each setting.
    """
    found = []
    for group in groups:
        rows: dict[str, dict[Hashable, tuple[RunRecord, SettingResult]]] = {}
        for run, identity in sorted(
            zip(group.runs, group.identities, strict=True), key=lambda pair: pair[0].modified
        ):
            for result in run.results:
                rows.setdefault(result.label, {})[identity] = (run, result)
        pairs = {
            setting: sorted(newest.values(), key=lambda pair: (pair[0].seed is None, pair[0].seed))
            for setting, newest in rows.items()
        }
        # The setting that most runs were trained at; the first one if there is none.
        trained = {s: sum(run.trained_at(r) for run, r in own) for s, own in pairs.items()}
        home = max(trained, key=trained.__getitem__, default="")
        found += [Summary(group, s, own, s == home) for s, own in pairs.items()]
    return found


def rollouts(rows: Sequence[Summary]) -> tuple[list[Summary], Sequence[Number]]:
    """Finds the models with a rollout, at the settings of training, and that of persistence."""
    home = [row for row in rows if row.home and any(row.curve("rollout"))]
    return home, next((run.reference_rollout for row in home for run, _ in row.pairs), ())


def ranks(rows: Sequence[Summary], name: str, *, lower: bool = True) -> list[int | None]:
    """Ranks rows of the same setting: 1 for the best, 2 for the second best, None for the others.

    A row has no rank if one of its runs diverged, if it does not beat persistence, one step ahead
    and in this column, or if there is nothing to compare it with.
    """
    sign = 1 if lower else -1
    values = []
    for row in rows:
        value, reference = row.spread(name), row.reference_of(name)
        ranked = value and row.counts and not row.is_reference and not row.diverged_in(name)
        beaten = value and reference and sign * value.mean >= sign * reference.mean
        values.append(sign * value.mean if value and ranked and not beaten else math.nan)
    by_setting = pd.Series(values).groupby([row.setting for row in rows])
    places, counts = by_setting.rank(method="first"), by_setting.transform("count")
    pairs = zip(places, counts, strict=True)
    return [int(place) if place <= 2 and count > 1 else None for place, count in pairs]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Finds the points that no other one dominates, by the first coordinate; less is better.

    A point dominates another if it is as small in both coordinates and smaller in one. Equal points
    do not dominate each other.
    """
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front


class Verdict(NamedTuple):
    """Whether models may be compared at a setting, and why not.

    Attributes:
        setting: label of the setting.
        models: labels of all models.
        counts: whether two models or more count.
        reasons: objections to models, or to the test.
        without: models that do not count.
    """

    setting: str
    models: Sequence[str]
    counts: bool
    reasons: Sequence[str]
    without: Sequence[str] = ()


def verdicts(rows: Sequence[Summary]) -> list[Verdict]:
    """Judges every setting of a comparison.

    A model counts if each of its runs beats persistence (chance, for accuracy) on the test split
    and has a learning curve; comparisons with other models are no result.
    """
    found = []
    for setting in dict.fromkeys(row.setting for row in rows):
        own = [row for row in rows if row.setting == setting and not row.is_reference]
        if not own:
            continue
        models, reasons = [row.label for row in own], _objections(own)
        weak = [row.label for row in own if _is_weak(row)]
        counts = len(own) - len(weak) >= 2
        if own[0].group.comparison.split != "test":
            reasons.append(f"tested on the {own[0].group.comparison.split} split")
            counts = False
        if len(own) == 1:
            reasons.append("there is nothing to compare it with")
        elif len(own) - len(weak) == 1 and weak:
            reasons.append("one model is left")
        found.append(Verdict(setting, models, counts, reasons, weak))
    return found


def _is_weak(row: Summary) -> bool:
    return any(any(_objections_to(run, result).values()) for run, result in row.pairs)


def _objections(rows: Sequence[Summary]) -> list[str]:
    """Lists the objections to a comparison, each with the models it holds for."""
    models: dict[str, list[str]] = {}
    for row in rows:
        objections = [_objections_to(run, result) for run, result in row.pairs]
        for what in objections[0]:
            bad, count = sum(found[what] for found in objections), len(objections)
            part = f" ({bad} of {count} runs)" if bad < count else ""
            models.setdefault(what, []).extend([row.label + part] if bad else [])
    found = []
    for what, named in models.items():
        more = [f"{len(named) - NAMED} more"] if len(named) > NAMED else []
        found += [f"{what}: {'; '.join([*named[:NAMED], *more])}"] if named else []
    return found


def _objections_to(run: RunRecord, result: SettingResult) -> dict[str, bool]:
    """Maps every possible objection to a result to whether it holds."""
    better, diverged = run.beats_reference(result), result.get(run.measure.key) is None
    return {
        "diverged": diverged,
        f"not better than {run.measure.reference}": better is False and not diverged,
        f"{run.measure.reference} unknown": better is None,
        "no learning curve": len(run.curve) < 2,
    }


@dataclass(frozen=True)
class Transfer:
    """Errors of one model trained at several budgets: Table 7 of the IAP paper.

    Attributes:
        label: of the model, without what is about budgets.
        trained: tokens per sample in training, one row each.
        tested: tokens per sample in the test, one column each.
        cells: spread over the seeds; None where nothing was measured.
        diverged: number of diverged runs in each cell.
        reference: spread of persistence.
    """

    label: str
    trained: Sequence[int | str]
    tested: Sequence[int]
    cells: Sequence[Sequence[Spread | None]]
    diverged: Sequence[Sequence[int]]
    reference: Spread | None

    def beaten(self, value: Spread | None) -> bool:
        """Whether a cell is not better than persistence."""
        return bool(value and self.reference and value.mean >= self.reference.mean)


def transfers(rows: Sequence[Summary]) -> list[Transfer]:
    """Collects the models of one comparison that were tested at other budgets than their own."""
    records = []
    for row in rows:
        run, result = row.pairs[0]
        tested = result.budget
        if tested is None and not result.setting and isinstance(run.budget, int):
            tested = run.budget  # as built
        keys = {key: value for key, value in row.group.keys.items() if key not in BUDGETS}
        at = (label_of_keys(row.group.kind, keys), run.budget, tested, row.home)
        for run, result in row.pairs:
            model = (id(row.group), run.folder if run.seed is None else run.seed)
            records.append((*at, model, result.get("vrmse"), run.reference))
    names = ("label", "trained", "tested", "home", "model", "error", "reference")
    frame = pd.DataFrame(records, columns=list(names), dtype=object)
    found = []
    for label, own in frame.dropna(subset=["trained", "tested"]).groupby("label", sort=False):
        # One error per model: it may be tested as built and at the same budget by number.
        own = own.sort_values("home", ascending=False, kind="stable")
        each = own.drop_duplicates(["trained", "tested", "model"], keep="last")
        errors = {at: list(e) for at, e in each.groupby(["trained", "tested"], sort=False)["error"]}
        trained = sorted(set(own["trained"]), key=lambda budget: (isinstance(budget, str), budget))
        tested = sorted(set(own["tested"]))
        lists = [[errors.get((a, b), []) for b in tested] for a in trained]
        cells = [[spread(values) for values in row] for row in lists]
        diverged = [[values.count(None) for values in row] for row in lists]
        if any(sum(cell is not None for cell in row) > 1 for row in cells):
            reference = spread(own["reference"])
            found.append(Transfer(str(label), trained, tested, cells, diverged, reference))
    return found
