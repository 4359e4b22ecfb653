"""Tables of a report before they become Markdown or HTML."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from adaptok.evaluation.results import CLEARLY
from adaptok.report import formats
from adaptok.report.reading import number
from adaptok.report.runs import LeftOut, Number, RunRecord
from adaptok.report.summaries import Spread, Summary, Transfer, Verdict, ranks, rollouts, spread

SIZES = "cell_sizes_"  # the shares among the values of a result
ARROWS = {True: " ↓", False: " ↑"}
COSTS: dict[str, tuple[str, Callable[[Number], str]]] = {
    "certificate": ("projection error", formats.error),
    "flops": ("FLOPs", lambda value: formats.quantity(value, "FLOP")),
    "seconds_per_step": ("time / step", formats.seconds),
    "images_per_second": ("images / s", formats.quantity),
    "peak_memory": ("peak memory", formats.size),
    "parameters": ("parameters", formats.quantity),
    "seconds_per_training_step": ("training step", formats.seconds),
}


class Cell(NamedTuple):
    """Text, sort key, and the place among the best two."""

    text: str
    value: float | str | None = None
    rank: int | None = None
    hint: str = ""
    link: str = ""
    weak: bool = False


class Sheet(NamedTuple):
    """A table: caption, and cells by column title."""

    caption: str
    columns: Mapping[str, Sequence[Cell]]

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """Cells by row."""
        return list(zip(*self.columns.values(), strict=True))


def _plain(text: str, *, hint: str = "", link: str = "") -> Cell:
    return Cell(text, text, hint=hint, link=link)


def _mean(value: Spread | None, text: Callable[[Number], str]) -> Cell:
    mean = value.mean if value else None
    return Cell(text(mean), mean)


def _spread(value: Spread | None) -> Cell:
    return Cell(formats.error_spread(value), value.mean if value else None)


def _models(rows: Sequence[Summary], first: Sequence[str] = ()) -> list[Cell]:
    """Makes the first column: names of references, then the models."""
    given = [Cell(label, label, weak=True) for label in first]
    return given + [Cell(row.label, row.label, weak=not row.counts) for row in rows]


def results_sheet(rows: Sequence[Summary]) -> Sheet:
    """Lists errors and costs of the models of one comparison, the reference first."""
    measure = rows[0].measure
    arrow, reference = ARROWS[measure.lower], measure.reference
    runs = list({id(run): run for row in rows for run, _ in row.pairs}.values())
    columns = {"model": _models(rows, [reference])}
    if len({row.setting for row in rows}) > 1:
        columns["setting"] = [_plain(""), *(_plain(row.setting) for row in rows)]
    columns["seeds"] = [Cell(""), *(seeds_cell(row, rows) for row in rows)]
    columns["tokens"] = [Cell(""), *(_tokens_cell(row) for row in rows)]
    measured = {name for row in rows for _, result in row.pairs for name in result.values}
    if any(name.startswith(SIZES) for name in measured):
        columns["cells"] = [Cell(""), *(_sizes_cell(row) for row in rows)]
    others = {name: None for row in rows for _, result in row.pairs for name in result.metrics}
    titles = {measure.key: f"{measure.title}{arrow}", "vrmse_median": "median ↓"}
    higher = {name for row in rows for run, _ in row.pairs for name in run.higher}
    titles |= {name: f"{name}{ARROWS[name not in higher]}" for name in others if name not in titles}
    titles["rollout_last"] = "last rollout step ↓"
    windows = sorted(name for name in measured if ":" in name)
    titles |= {name: f"rollout {name.removeprefix('rollout_')} ↓" for name in windows}
    for name, title in titles.items():
        if name not in measured:
            continue
        if name == "rollout_last" and any(map(_departs, rows)):
            columns["tokens in rollout"] = [Cell(""), *map(_rollout_tokens_cell, rows)]
        ranked = name != "vrmse_median"
        lower = measure.lower if name == measure.key else name not in higher
        known = [run.references.get(name) for run in runs]
        cells = _error_cells(rows, name, ranked=ranked, lower=lower)
        columns[title] = [_reference_cell(known), *cells]
        if name == measure.key:
            columns[f"/ {reference}"] = [Cell(formats.MISSING), *map(_ratio_cell, rows)]
    costs = {name: (name.removeprefix("auxiliary_"), formats.error) for name in sorted(measured)}
    costs = {name: cost for name, cost in costs.items() if name.startswith("auxiliary_")} | COSTS
    for name, (title, text) in costs.items():
        values = [row.spread(name) for row in rows]
        if any(values):
            columns[title] = [Cell(""), *(_mean(value, text) for value in values)]
    tested = "one step ahead, mean over fields and samples" if measure.lower else "of all images"
    caption = (
        f"{measure.title} {tested}; {measure.direction}. Mean ± sample standard deviation over "
        f"seeds. Bold: best, italic: second best of the same setting, among models of which every "
        f"run beats {reference}."
    )
    return Sheet(caption, columns)


def _error_cells(rows: Sequence[Summary], name: str, *, ranked: bool, lower: bool) -> list[Cell]:
    places = ranks(rows, name, lower=lower) if ranked else [None] * len(rows)
    cells = []
    for row, place in zip(rows, places, strict=True):
        value, bad = row.spread(name), row.diverged_in(name) if ranked else 0
        cell = _spread(value)
        if bad:
            part = f" ({bad} of {len(row.pairs)} diverged)" if value else " diverged"
            cell = cell._replace(text=cell.text + part)
        each = [f"seed {run.seed}: {formats.error(r.get(name))}" for run, r in row.pairs]
        cells.append(cell._replace(rank=place, hint="\n".join(each) if ranked else ""))
    return cells


def _ratio_cell(row: Summary) -> Cell:
    pairs = [(result.get(row.measure.key), run.reference) for run, result in row.pairs]
    ratio = spread(error / known for error, known in pairs if error is not None and known)
    return _mean(ratio, lambda v: formats.MISSING if v is None else f"{v:.2f}")


def _reference_cell(values: Sequence[Number]) -> Cell:
    """Shows a number of persistence, or its range if the runs do not agree."""
    mean, known = spread(values), [v for v in values if v is not None]
    if mean is None:
        return Cell(formats.MISSING)
    low, high = min(known), max(known)
    text = formats.error(known[0])
    if high - low > 1e-3 * abs(high):
        text = f"{formats.error(low)} to {formats.error(high)}"
    return Cell(text, mean.mean)


def seeds_cell(row: Summary, rows: Sequence[Summary]) -> Cell:
    """Counts the runs, and names the seeds of other rows that are missing, and why."""
    n, seeds = len(row.pairs), {run.seed for run, _ in row.pairs}
    all_seeds = {run.seed for other in rows for run, _ in other.pairs}
    pending = {run.seed: run.status for run in row.group.pending}
    missing = sorted(s for s in (all_seeds | set(pending)) - seeds if s is not None)
    notes = [f"seed {s} {pending.get(s, 'missing')}" for s in missing]
    names = ", ".join(map(str, sorted(s for s in seeds if s is not None))) or "unknown"
    text = f"{n}" + (f" ({'; '.join(notes)})" if notes else "")
    return Cell(text, float(n), hint=f"seeds {names}")


def _tokens_cell(row: Summary) -> Cell:
    low, high = row.spread("tokens_min"), row.spread("tokens_max")
    cell = _mean(row.spread("tokens"), formats.count)
    if cell.value is None or low is None or high is None or low.mean == high.mean:
        return cell
    limits = f" ({formats.count(low.mean)} to {formats.count(high.mean)})"
    return cell._replace(text=cell.text + limits)


def _departs(row: Summary) -> bool:
    """Tells whether a rollout used clearly more or fewer tokens than one step."""
    one, rolled = row.spread("tokens"), row.spread("rollout_tokens")
    if one is None or rolled is None:
        return False
    return not one.mean / CLEARLY <= rolled.mean <= one.mean * CLEARLY


def _rollout_tokens_cell(row: Summary) -> Cell:
    """Tokens per sample and step: the mean over steps, and from the fewest to the most."""
    cell = _mean(row.spread("rollout_tokens"), formats.count)
    each = [formats.count(n) for n in sorted(n for n in row.curve("tokens") if n is not None)]
    if cell.value is None or not each or each[0] == each[-1]:
        return cell
    return cell._replace(text=f"{cell.text} ({each[0]} to {each[-1]})")


def _sizes_cell(row: Summary) -> Cell:
    """Share of the cells per size, coarse to fine."""
    names = {name for _, result in row.pairs for name in result.values if name.startswith(SIZES)}
    shares = {name.removeprefix(SIZES): row.spread(name) for name in names}
    coarse_first = sorted(shares, key=lambda s: [-int(n) for n in s.split("x")])
    known = [(size, share) for size in coarse_first if (share := shares[size])]
    words = [f"{size}: {100 * share.mean:.0f} %" for size, share in known]
    return Cell(", ".join(words), hint="share of the cells per size")


def fields_sheet(rows: Sequence[Summary]) -> Sheet | None:
    """Lists the error of every field, at the settings of training."""
    home = [row for row in rows if row.home]
    prefix = f"{rows[0].measure.key}."
    names = [name for row in home for _, r in row.pairs for name in r.fields]
    fields = list(dict.fromkeys(name for name in names if name.startswith(prefix)))
    if len(fields) < 2:
        return None
    columns = {"model": _models(home)}
    for field in fields:
        values = [spread(r.fields.get(field) for _, r in row.pairs) for row in home]
        columns[f"{field.removeprefix(prefix)} ↓"] = [_spread(value) for value in values]
    return Sheet("VRMSE of every field, one step ahead; lower is better.", columns)


def rollout_sheet(rows: Sequence[Summary], *, columns: int = 8) -> Sheet | None:
    """Lists VRMSE at some rollout steps, at the settings of training; persistence first."""
    home, reference = rollouts(rows)
    if not home:
        return None
    curves = [reference, *(row.curve("rollout") for row in home)]
    length = max(map(len, curves[1:]))
    chosen = sorted({round(i * (length - 1) / max(columns - 1, 1)) for i in range(columns)})
    steps = {"model": _models(home, ["persistence"])}
    if any(row.curve("tokens") for row in home):
        steps["tokens"] = [Cell(""), *map(_rollout_tokens_cell, home)]
    for i in chosen:
        steps[f"step {i + 1} ↓"] = [
            Cell("diverged" if c[i] is None else formats.error(c[i]), c[i])
            if i < len(c)
            else Cell(formats.MISSING)
            for c in curves
        ]
    caption = (
        "VRMSE against the rollout step, mean over fields, trajectories and seeds; lower is better."
    )
    return Sheet(caption, steps)


def transfer_sheet(matrix: Transfer) -> Sheet:
    """Lists errors by budget in training (rows) and budget in the test (columns)."""
    trained = [Cell(str(b), b if isinstance(b, int) else float("inf")) for b in matrix.trained]
    columns = {"trained at": trained}
    for i, budget in enumerate(matrix.tested):
        values = [row[i] for row in matrix.cells]
        known = [value.mean for value in values if value]
        best = next((v for v in values if v and v.mean == min(known)), None)
        cells = []
        for value, row in zip(values, matrix.diverged, strict=True):
            text = formats.error_spread(value) + (f" ({row[i]} diverged)" if row[i] else "")
            beaten = matrix.beaten(value)
            is_best = len(known) > 1 and value is best and not beaten and not row[i]
            text += " †" if beaten else ""
            cells.append(Cell(text, value.mean if value else None, 1 if is_best else None))
        columns[str(budget)] = cells
    known = formats.error(matrix.reference.mean if matrix.reference else None)
    caption = (
        f"{matrix.label}: VRMSE, lower is better; rows: tokens per sample in training, columns: in "
        f"the test. Bold: best of a column. † not better than persistence ({known})."
    )
    return Sheet(caption, columns)


def verdict_sheet(found: Sequence[tuple[str, Verdict]]) -> Sheet:
    """Lists which comparisons count, from pairs of data set and verdict."""
    columns = {
        "data": [_plain(title) for title, _ in found],
        "setting": [_plain(v.setting) for _, v in found],
        "models": [
            Cell(str(len(v.models)), len(v.models), hint="\n".join(v.models)) for _, v in found
        ],
        "verdict": [_verdict_cell(v) for _, v in found],
        "why": [Cell(". ".join(v.reasons), "") for _, v in found],
    }
    caption = (
        "A model counts if each of its runs beats persistence (chance, for classifiers) on the "
        "test split and has its learning curve; a comparison with another model is no result."
    )
    return Sheet(caption, columns)


def _verdict_cell(verdict: Verdict) -> Cell:
    text = "counts" if verdict.counts else "no result"
    if verdict.counts and verdict.without:
        text += f" without {len(verdict.without)}"
    return Cell(text, str(verdict.counts), hint="\n".join(verdict.without))


def runs_sheet(runs: Sequence[RunRecord], labels: Mapping[int, str], out: Path) -> Sheet:
    """Lists every run with a link to its folder.

    Args:
        labels: label of the group by id of the run.
        out: folder of the page.
    """
    rows = [_run_row(run, labels[id(run)], out) for run in runs]
    columns = {title: [row[title] for row in rows] for title in rows[0]}
    return Sheet("Links open the run folders, where they are still at their place.", columns)


def _run_row(run: RunRecord, label: str, out: Path) -> dict[str, Cell]:
    home, about = run.home, run.environment
    error, tokens = (home.get(run.measure.key), home.get("tokens")) if home else (None, None)
    steps = run.values.get("training_steps") or number(run.config.get("trainer.max_steps"))
    steps = steps if steps and steps > 0 else None  # -1: as many as there are in the epochs
    step = run.values.get("seconds_per_training_step")
    training = step * steps if step and steps else None
    date = about.get("when", "")
    return {
        "run": _plain(run.name, link=link_to(run, out)),
        "data": _plain(run.data),
        "model": _plain(label),
        "seed": Cell("" if run.seed is None else str(run.seed), run.seed),
        "status": _plain(run.status, hint=run.note),
        "error": Cell("diverged" if home and error is None else formats.error(error), error),
        "tokens": Cell(formats.count(tokens), tokens),
        "steps": Cell(formats.count(steps), steps),
        "training time": Cell(formats.seconds(training), training),
        "device": _plain(about.get("device", "")),
        "hardware": _plain(about.get("hardware", "")),
        "date": Cell(date[:16].replace("T", " "), date),
    }


def left_out_sheet(problems: Sequence[LeftOut]) -> Sheet:
    """Lists folders with the reason why they are left out."""
    columns = {
        "folder": [_plain(str(folder)) for folder, _ in problems],
        "why": [_plain(what) for _, what in problems],
    }
    return Sheet("What is not in the means above, or only in part.", columns)


def link_to(run: RunRecord, out: Path) -> str:
    """Writes the URL of the run folder relative to the folder of the page."""
    path = os.path.relpath(run.folder.resolve(), out.resolve())
    return quote(Path(path).as_posix()) + "/"
