"""The main table of a data set: errors and costs, best and second best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from adaptok.report import formats
from adaptok.report.records import Number
from adaptok.report.sheet import Cell, Column, Sheet
from adaptok.report.summaries import Spread, Summary, ranks, spread

ARROWS = {True: " ↓", False: " ↑"}


class Quantity(NamedTuple):
    """A column of results."""

    title: str
    hint: str
    get: Callable[[Summary], Spread | None]
    text: Callable[[Spread | None], str]
    ranked: str = ""


def mean_of(text: Callable[[Number], str]) -> Callable[[Spread | None], str]:
    """The text of a mean."""
    return lambda value: text(None if value is None else value.mean)


COSTS = (
    Quantity(
        "FLOPs",
        "of one forward pass of one sample: matrix products, convolutions, attention; a "
        "multiply-add counts 2",
        lambda row: row.spread("flops"),
        mean_of(lambda v: formats.quantity(v, "FLOP")),
    ),
    Quantity(
        "time / step",
        "seconds of one forward pass of a batch, as measured on the hardware of the run",
        lambda row: row.spread("seconds_per_step"),
        mean_of(formats.seconds),
    ),
    Quantity(
        "images / s",
        "images per second in the test",
        lambda row: row.spread("images_per_second"),
        mean_of(formats.quantity),
    ),
    Quantity(
        "peak memory",
        "most bytes that the tensors of a forward pass of a batch take",
        lambda row: row.spread("peak_memory"),
        mean_of(formats.size),
    ),
    Quantity(
        "parameters",
        "number of weights",
        lambda row: row.of_runs("parameters"),
        mean_of(formats.quantity),
    ),
    Quantity(
        "training step",
        "wall-clock time of a training step",
        lambda row: row.of_runs("seconds_per_training_step"),
        mean_of(formats.seconds),
    ),
)


def results_sheet(rows: Sequence[Summary]) -> Sheet:
    """Errors and costs of the models of one table, the reference first."""
    measure = rows[0].measure
    several = len({row.setting for row in rows}) > 1
    errors = _error_columns(rows)
    costs = [c for c in COSTS if any(c.get(row) is not None for row in rows)]
    columns = [Column("model"), *([Column("setting", "controls of the test")] if several else [])]
    columns += [Column("seeds", "number of runs that differ in their seed only"), _tokens_column()]
    columns += [Column(c.title, c.hint) for c in (*errors, *costs)]
    places = {c.title: ranks(rows, c.ranked, lower=measure.lower) for c in errors if c.ranked}
    body = [_reference_row(rows, several, errors, costs)]
    for i, row in enumerate(rows):
        cells = [Cell(row.group.label, row.group.label, weak=not row.counts)]
        cells += [Cell(row.setting, row.setting)] if several else []
        cells += [seeds_cell(row, rows), _tokens_cell(row)]
        for column in errors:
            value = column.get(row)
            rank = places[column.title][i] if column.ranked else None
            text = column.text(value) + _divergence(row, value, column.ranked)
            cells.append(Cell(text, value.mean if value else None, rank, _each(row, column.ranked)))
        for column in costs:
            value = column.get(row)
            cells.append(Cell(column.text(value), value.mean if value else None))
        body.append(cells)
    return Sheet(_caption(rows), columns, body)


def _caption(rows: Sequence[Summary]) -> str:
    measure = rows[0].measure
    what = "one step ahead, mean over fields and samples" if measure.lower else "of all images"
    return (
        f"{measure.title} {what}; {measure.direction}. Mean ± sample standard deviation over "
        f"seeds. Bold: best, italic: second best of the same setting, among models of which every "
        f"run beats {measure.reference}."
    )


def _error_columns(rows: Sequence[Summary]) -> list[Quantity]:
    measure = rows[0].measure
    arrow, text = ARROWS[measure.lower], formats.error_spread
    hints = {
        "rollout_last": "VRMSE of the last rollout step, mean over fields and trajectories",
        "vrmse_median": "median over samples",
        "loss": "cross entropy",
    }
    names = {
        measure.key: f"{measure.title}{arrow}",
        "vrmse_median": "median ↓",
        "rollout_last": "last rollout step ↓",
    }
    windows = sorted({n for row in rows for _, r in row.pairs for n in r.values if ":" in n})
    names |= {name: f"rollout {name.removeprefix('rollout_')} ↓" for name in windows}
    columns = []
    for name, title in names.items():
        if not any(name in result.values for row in rows for _, result in row.pairs):
            continue
        ranked = name if name != "vrmse_median" else ""
        get = _getter(name)
        columns.append(Quantity(title, hints.get(name, measure.direction), get, text, ranked))
        if name == measure.key:
            columns.append(_ratio(rows))
    return columns


def _getter(name: str) -> Callable[[Summary], Spread | None]:
    return lambda row: row.spread(name)


def _ratio(rows: Sequence[Summary]) -> Quantity:
    measure = rows[0].measure

    def get(row: Summary) -> Spread | None:
        pairs = [(result.get(measure.key), run.reference) for run, result in row.pairs]
        return spread(e / p for e, p in pairs if e is not None and p)

    hint = f"{measure.title} over that of {measure.reference}; below 1 it is of use"
    if not measure.lower:
        hint = "accuracy over that of guessing; above 1 it is of use"
    return Quantity(f"/ {measure.reference}", hint, get, mean_of(_ratio_text))


def _ratio_text(value: Number) -> str:
    return formats.MISSING if value is None else f"{value:.2f}"


def _reference_row(
    rows: Sequence[Summary], several: bool, errors: Sequence[Quantity], costs: Sequence[Quantity]
) -> list[Cell]:
    measure = rows[0].measure
    cells = [Cell(measure.reference, measure.reference, weak=True)]
    cells += [Cell("", "")] if several else []
    cells += [Cell("", None), Cell("", None)]
    runs = list({id(run): run for row in rows for run, _ in row.pairs}.values())
    for column in errors:
        values = [run.reference_of(column.ranked) for run in runs]
        mean = spread(values)
        cells.append(Cell(_range(values), mean.mean if mean else None))
    return [*cells, *(Cell("", None) for _ in costs)]


def _range(values: Sequence[Number]) -> str:
    """A number of persistence, or from where to where it goes where runs do not agree."""
    known = [v for v in values if v is not None]
    if not known or max(known) - min(known) <= 1e-3 * abs(max(known)):
        return formats.error(known[0] if known else None)
    return f"{formats.error(min(known))} to {formats.error(max(known))}"


def seeds_cell(row: Summary, rows: Sequence[Summary]) -> Cell:
    """Number of runs, and which seeds of the others are missing and why."""
    n, seeds = len(row.pairs), {run.seed for run, _ in row.pairs}
    all_seeds = {run.seed for other in rows for run, _ in other.pairs}
    pending = {run.seed: run.status for run in row.group.pending}
    missing = sorted(s for s in (all_seeds | set(pending)) - seeds if s is not None)
    notes = [f"seed {s} {pending.get(s, 'missing')}" for s in missing]
    names = ", ".join(map(str, sorted(s for s in seeds if s is not None))) or "unknown"
    text = f"{n}" + (f" ({'; '.join(notes)})" if notes else "")
    return Cell(text, float(n), hint=f"seeds {names}")


def _tokens_column() -> Column:
    return Column("tokens", "tokens per sample: mean, and from the smallest to the largest sample")


def _tokens_cell(row: Summary) -> Cell:
    mean, low, high = (row.spread(name) for name in ("tokens", "tokens_min", "tokens_max"))
    if mean is None:
        return Cell(formats.MISSING, None)
    text = formats.count(mean.mean)
    if low is not None and high is not None and low.mean != high.mean:
        text += f" ({formats.count(low.mean)} to {formats.count(high.mean)})"
    return Cell(text, mean.mean)


def _divergence(row: Summary, value: Spread | None, name: str) -> str:
    number = row.diverged_in(name)
    if number == 0:
        return ""
    return " diverged" if value is None else f" ({number} of {len(row.pairs)} diverged)"


def _each(row: Summary, name: str) -> str:
    """Runs of a cell, one by one."""
    if not name:
        return ""
    texts = [f"seed {run.seed}: {formats.error(result.get(name))}" for run, result in row.pairs]
    return "\n".join(texts)
