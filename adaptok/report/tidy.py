"""One row per run and setting, for a CSV file that other programs read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptok.report.grouping import Group, group_runs
from adaptok.report.records import Result, Run

Row = dict[str, Any]
ERRORS = ("vrmse", "nrmse", "nmse_", "rollout_", "loss", "accuracy")  # None of these is not finite
ENVIRONMENT = ("adaptok", "torch", "device", "hardware", "when")


def tidy_rows(runs: Sequence[Run], groups: Sequence[Group] | None = None) -> list[Row]:
    """A row per run and setting, all with the same columns; a run without results has one row.

    Columns: what the run is, its configuration where runs differ (``config.`` before the key), then
    every number that one of them has. A missing one is None, one that diverged is "diverged". Units
    are those of metrics.json: seconds, bytes, floating-point operations; errors have none.

    Args:
        runs: as `read_runs` returns them.
        groups: of the same runs; by default as `group_runs` makes them.
    """
    groups = group_runs(runs) if groups is None else groups
    group_of = {id(run): group for group in groups for run in (*group.runs, *group.pending)}
    pairs = [(run, result) for run in runs for result in run.results or [None]]
    keys = list(dict.fromkeys(key for group in groups for key in group.keys))
    rows = [_row(run, result, group_of[id(run)], keys) for run, result in pairs]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows with a header, numbers to 8 digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.8g}" if isinstance(v, float) else v for k, v in row.items()})


def _row(run: Run, result: Result | None, group: Group, keys: Sequence[str]) -> Row:
    row: Row = {
        "run": run.name,
        "status": run.status,
        "note": run.note,
        "data": run.data,
        "split": run.split,
        "group": group.label,
        "model": run.config.get("model.name", "surrogate"),
        "tokenizer": run.config.get("tokenizer.name"),
        "processor": run.config.get("processor.name"),
        "decoder": run.config.get("decoder.name"),
        "seed": run.seed,
        "training_steps": run.config.get("trainer.max_steps"),
        "training_budget": run.budget,
    }
    row |= {f"config.{key}": run.config.get(key) for key in keys}
    if result is not None:
        row |= _numbers(run, result)
    row |= run.values
    row |= {name: run.environment.get(name) for name in ENVIRONMENT}
    return row | {"folder": str(run.folder)}


def _numbers(run: Run, result: Result) -> Row:
    measure = run.measure
    row: Row = {"setting": result.label, "budget": result.budget}
    errors = {f"{measure.key}.{name}": value for name, value in result.fields.items()}
    for name, value in {**result.values, **errors}.items():
        row[name] = "diverged" if value is None and name.startswith(ERRORS) else value
    row[measure.reference] = run.reference
    if run.reference_rollout:
        row[f"{measure.reference}_rollout_last"] = run.reference_rollout[-1]
    row[f"beats_{measure.reference}"] = run.beats_reference(result)
    return row
