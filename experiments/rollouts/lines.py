"""What the tests say, gathered over seeds: errors, ratios between two lines, and the aim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rollouts.results import Results
from rollouts.rows import MODELS, PLAIN, SETS, TRAINING, all_rows
from studies import Found, mean

AIM, AIMED = 0.75, 24  # of today's best error, and in which step
MOST = 1.05  # tokens over those of a set, so that a line is compared
OF_TODAY = (PLAIN, "cyclic 8, 4, 16", "cyclic, equal tokens")  # rollouts of before this study
WINDOWS = {"6:12": "steps 7 to 12", "13:30": "steps 14 to 30"}  # the Well's, whose first index is 0


class Line(NamedTuple):
    """A variant of a training on a set, without the seeds that do not beat persistence.

    Attributes:
        data: set.
        name: training.
        variant: what was tried in its rollouts.
        tests: by seed.
        trainings: by seed.
    """

    data: str
    name: str
    variant: str
    tests: dict[int, Found]
    trainings: dict[int, Found]

    @property
    def tokens(self) -> float:
        """Per sample and step."""
        return mean(mean(test["tokens"]) for test in self.tests.values())

    @property
    def is_compared(self) -> bool:
        """Whether it has no more tokens than the others; overlapping cells of CSM are fewer."""
        return self.tokens <= MOST * SETS[self.data].tokens

    def error(self, step: int = AIMED) -> float | None:
        """Mean error of a step, from 1; None if one seed diverged, or had fewer steps."""
        curves = [test["rollout"] for test in self.tests.values()]
        found = [curve[step - 1] if len(curve) >= step else None for curve in curves]
        return average(found)

    def window(self, name: str) -> float | None:
        """Mean error of a window of the Well; None if one seed diverged."""
        return average([test["windows"].get(name) for test in self.tests.values()])


def average(values: Sequence[float | None]) -> float | None:
    """Mean; None if one of them is, or there is none."""
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None


class Gathered(NamedTuple):
    """All lines, and what is left out.

    Attributes:
        lines: by set, training and variant.
        behind: labels of tests that do not beat persistence in one step.
        missing: sets and trainings, and what is open of each.
    """

    lines: dict[tuple[str, str, str], Line]
    behind: list[str]
    missing: list[str]


def gathered(results: Results) -> Gathered:
    """Reads all rows, finished or not."""
    found = Gathered({}, [], [])
    open_rows: dict[str, list[str]] = {}
    for row in all_rows():
        content = results.content(row)
        for variant in row.variants():
            test, training = content.tests.get(variant), content.training
            if test is None or training is None:
                continue
            if test["vrmse"] >= training["persistence"]["vrmse"]:
                found.behind.append(f"{row.label} ({variant})")
                continue
            key = (row.data, row.name, variant)
            line = found.lines.setdefault(key, Line(*key, {}, {}))
            line.tests[row.seed], line.trainings[row.seed] = test, training
        opened = [name for name in row.variants() if name not in content.tests]
        if opened:
            some = f": {', '.join(opened)}" if content.tests else ""
            open_rows.setdefault(f"{row.data}-{row.name}", []).append(f"{row.seed}{some}")
    found.missing.extend(f"{name} ({'; '.join(seeds)})" for name, seeds in open_rows.items())
    return found


class Change(NamedTuple):
    """Two lines of one set, and what the one has beside the other.

    Attributes:
        what: that differs.
        model: in both.
        line: with it.
        base: without it.
    """

    what: str
    model: str
    line: Line
    base: Line

    def ratio(self, step: int = AIMED) -> float | None:
        """Geometric mean over seeds of the ratio of errors; None without a finite one."""
        both = {*self.line.tests} & {*self.base.tests}
        pairs = [[one.tests[seed]["rollout"] for one in (self.line, self.base)] for seed in both]
        logs = [
            math.log(new[step - 1] / old[step - 1])
            for new, old in pairs
            if None not in (new[step - 1], old[step - 1])
        ]
        return math.exp(mean(logs)) if logs and len(logs) == len(pairs) else None

    def seconds(self) -> float | None:
        """Ratio of the seconds of a step of a rollout, measured by turns; None where two trainings
        are compared, which were measured apart."""
        if self.base.name != self.line.name:
            return None
        return mean(t["seconds"] / t["seconds_beside"] for t in self.line.tests.values())


def changes(found: Gathered) -> list[Change]:
    """Compares every variant with the same training as it is, and every training for rollouts
    with that of the same model without it.
    """
    compared = []
    for (data, name, variant), line in found.lines.items():
        model, _, how = name.rpartition("_")
        if variant != PLAIN:
            what, other = variant, name
        elif how in TRAINING:
            what, other = f"training: {how}", model
        elif name == "conservative":
            what, other = "decoder: conservative", "iap"
        else:
            continue
        base = found.lines.get((data, other, PLAIN))
        if base is not None and {*base.tests} & {*line.tests}:
            compared.append(Change(what, name if variant != PLAIN else other, line, base))
    return sorted(compared, key=lambda c: (c.what, c.model, list(SETS).index(c.line.data)))


class Aim(NamedTuple):
    """Today's best rollout of a set and the best one of the study, with no more tokens."""

    today: Line
    best: Line

    @property
    def ratio(self) -> float:
        errors = [self.best.error(), self.today.error()]
        assert errors[0] is not None
        assert errors[1] is not None
        return errors[0] / errors[1]


def aim(found: Gathered, data: str) -> Aim | None:
    """Finds both by the error of step 24, in the seeds that all models of today have; None without
    any.
    """
    lines = [line for line in found.lines.values() if line.data == data and line.is_compared]
    seeds = set.intersection(*[{*line.tests} for line in lines if is_of_today(line)] or [set()])
    same = [
        line._replace(tests={seed: line.tests[seed] for seed in seeds})
        for line in lines
        if seeds and seeds <= {*line.tests}
    ]
    compared = [line for line in same if line.error() is not None]
    today = [line for line in compared if is_of_today(line)]
    if not today:
        return None
    least = lambda line: line.error() or 0.0  # noqa: E731
    return Aim(min(today, key=least), min(compared, key=least))


def is_of_today(line: Line) -> bool:
    """Whether it could be had before this study."""
    return line.name in MODELS and line.variant in OF_TODAY
