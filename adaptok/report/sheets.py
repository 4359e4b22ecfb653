"""Tables of a report, before they become Markdown or HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from adaptok.report import formats
from adaptok.report.records import Number
from adaptok.report.summaries import Spread, Summary, Verdict, ranks, spread
from adaptok.report.transfer import Transfer

ARROWS = {True: " ↓", False: " ↑"}


class Cell(NamedTuple):
    """Text, what it is sorted by, and the place among the best two."""

    text: str
    value: float | str | None = None
    rank: int | None = None
    hint: str = ""
    link: str = ""
    weak: bool = False


class Column(NamedTuple):
    """Title, and a sentence about it."""

    title: str
    hint: str = ""


class Sheet(NamedTuple):
    """A table with a caption; rows have a cell per column."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


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
        "floating-point operations of one forward pass of one sample; a multiply-add counts 2",
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
        "largest memory in the test",
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
            text = column.text(value) + _divergence(row, value, bool(column.ranked))
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
    return Quantity(f"/ {measure.reference}", hint, get, mean_of(lambda v: _ratio_text(v)))


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
    missing = sorted(str(s) for s in (all_seeds | set(pending)) - seeds if s is not None)
    notes = [f"seed {s} {pending.get(int(s), 'missing')}" for s in missing]
    names = ", ".join(sorted(map(str, seeds)))
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


def _divergence(row: Summary, value: Spread | None, is_error: bool) -> str:
    if not is_error or row.diverged == 0:
        return ""
    return " diverged" if value is None else f" ({row.diverged} of {len(row.pairs)} diverged)"


def _each(row: Summary, name: str) -> str:
    """Runs of a cell, one by one."""
    if not name:
        return ""
    texts = [f"seed {run.seed}: {formats.error(result.get(name))}" for run, result in row.pairs]
    return "\n".join(texts)


def fields_sheet(rows: Sequence[Summary]) -> Sheet | None:
    """VRMSE of every field, at the settings of training."""
    home = [row for row in rows if row.home]
    fields = list(dict.fromkeys(f for row in home for _, r in row.pairs for f in r.fields))
    if len(fields) < 2:
        return None
    body = []
    for row in home:
        values = [spread(r.fields.get(f) for _, r in row.pairs) for f in fields]
        cells = [Cell(formats.error_spread(v), v.mean if v else None) for v in values]
        body.append([Cell(row.group.label, row.group.label, weak=not row.counts), *cells])
    caption = "VRMSE of every field, one step ahead; lower is better."
    return Sheet(caption, [Column("model"), *(Column(f"{f} ↓") for f in fields)], body)


def rollout_sheet(rows: Sequence[Summary], *, columns: int = 8) -> Sheet | None:
    """VRMSE at some rollout steps, at the settings of training; persistence first."""
    home = [row for row in rows if row.home and any(row.curve("rollout"))]
    if not home:
        return None
    length = max(len(row.curve("rollout")) for row in home)
    chosen = sorted({round(i * (length - 1) / max(columns - 1, 1)) for i in range(columns)})
    reference = next((r.reference_rollout for row in home for r, _ in row.pairs), ())
    curves = [("persistence", reference, True)]
    curves += [(row.group.label, row.curve("rollout"), not row.counts) for row in home]
    body = []
    for label, curve, weak in curves:
        values = [curve[i] if i < len(curve) else None for i in chosen]
        texts = [
            "diverged" if v is None and i < len(curve) else formats.error(v)
            for v, i in zip(values, chosen, strict=True)
        ]
        cells = [Cell(text, value) for text, value in zip(texts, values, strict=True)]
        body.append([Cell(label, label, weak=weak), *cells])
    caption = (
        "VRMSE against the rollout step, mean over fields, trajectories and seeds; lower is better."
    )
    return Sheet(caption, [Column("model"), *(Column(f"step {i + 1} ↓") for i in chosen)], body)


def transfer_sheet(matrix: Transfer) -> Sheet:
    """Rows: budget in training; columns: budget in the test."""
    best = [_best([row[i] for row in matrix.cells]) for i in range(len(matrix.tested))]
    body = []
    for number, trained in enumerate(matrix.trained):
        cells = [Cell(str(trained), trained if isinstance(trained, int) else float("inf"))]
        for i, value in enumerate(matrix.cells[number]):
            bad = matrix.diverged[number][i]
            text = formats.error_spread(value) + (f" ({bad} diverged)" if bad else "")
            beaten = value and matrix.reference and value.mean >= matrix.reference.mean
            rank = 1 if best[i] == number and not beaten and not bad else None
            cells.append(Cell(text + (" †" if beaten else ""), value.mean if value else None, rank))
        body.append(cells)
    known = formats.error(matrix.reference.mean if matrix.reference else None)
    caption = (
        f"{matrix.label}: VRMSE, lower is better; rows: tokens per sample in training, columns: in "
        f"the test. Bold: best of a column. † not better than persistence ({known})."
    )
    return Sheet(caption, [Column("trained at"), *(Column(str(b)) for b in matrix.tested)], body)


def _best(column: Sequence[Spread | None]) -> int | None:
    known = [(value.mean, i) for i, value in enumerate(column) if value is not None]
    return min(known)[1] if len(known) > 1 else None


def verdict_sheet(found: Sequence[tuple[str, Verdict]]) -> Sheet:
    """Which comparisons count; data set and verdict each."""
    body = [
        [
            Cell(title, title),
            Cell(verdict.setting, verdict.setting),
            Cell(str(len(verdict.models)), len(verdict.models), hint="\n".join(verdict.models)),
            Cell("counts" if verdict.counts else "no result", str(verdict.counts)),
            Cell("; ".join(verdict.reasons), ""),
        ]
        for title, verdict in found
    ]
    caption = (
        "A comparison counts if every run of every model in it beats persistence (chance, for "
        "classifiers) on the test split and its learning curve is there."
    )
    return Sheet(caption, [*map(Column, ("data", "setting", "models", "verdict", "why"))], body)
