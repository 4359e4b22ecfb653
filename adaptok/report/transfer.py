"""Trained at one budget, tested at others: Table 7 of the IAP paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adaptok.report.grouping import BUDGETS, Group, label_of_keys
from adaptok.report.records import Number
from adaptok.report.summaries import Spread, Summary, spread


@dataclass(frozen=True)
class Transfer:
    """Errors of one model that was trained at several budgets.

    Attributes:
        label: of the model, without what is about budgets.
        trained: tokens per sample in training, one row each.
        tested: tokens per sample in the test, one column each.
        cells: over the seeds; None where nothing was measured.
        diverged: number of diverged runs in each cell.
        reference: persistence.
    """

    label: str
    trained: Sequence[int | str]
    tested: Sequence[int]
    cells: Sequence[Sequence[Spread | None]]
    diverged: Sequence[Sequence[int]]
    reference: Spread | None


def transfers(rows: Sequence[Summary]) -> list[Transfer]:
    """One per model that was tested at other budgets than its own; `rows` are of one table."""
    models: dict[str, list[Summary]] = {}
    for row in rows:
        if _tested(row) is not None and _trained(row) is not None:
            models.setdefault(_label(row.group), []).append(row)
    found = [_transfer(label, own) for label, own in models.items()]
    return [m for m in found if any(sum(cell is not None for cell in row) > 1 for row in m.cells)]


def _transfer(label: str, rows: Sequence[Summary]) -> Transfer:
    trained = sorted(
        {budget for row in rows if (budget := _trained(row)) is not None},
        key=lambda budget: (isinstance(budget, str), budget),
    )
    tested = sorted({budget for row in rows if (budget := _tested(row)) is not None})
    cells, diverged = [], []
    for own in trained:
        at = [[r for r in rows if (_trained(r), _tested(r)) == (own, b)] for b in tested]
        values = [_one_each(s) for s in at]
        cells.append([spread(v) for v in values])
        diverged.append([sum(x is None for x in v) for v in values])
    reference = spread(run.reference for row in rows for run, _ in row.pairs)
    return Transfer(label, trained, tested, cells, diverged, reference)


def _one_each(rows: Sequence[Summary]) -> list[Number]:
    """An error per model: one may be tested as built and at the same budget by number."""
    found = {
        (id(row.group), run.folder if run.seed is None else run.seed): result.get("vrmse")
        for row in sorted(rows, key=lambda row: not row.home)
        for run, result in row.pairs
    }
    return list(found.values())


def _trained(row: Summary) -> int | str | None:
    return row.pairs[0][0].budget


def _tested(row: Summary) -> int | None:
    """Budget of the setting; as built it is that of training."""
    run, result = row.pairs[0]
    if result.budget is None and not result.setting and isinstance(run.budget, int):
        return run.budget
    return result.budget


def _label(group: Group) -> str:
    keys = {key: value for key, value in group.keys.items() if key not in BUDGETS}
    return label_of_keys(group.kind, keys)
