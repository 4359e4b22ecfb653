"""One row per run and setting, for a CSV file that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adaptok.report.grouping import Group, group_runs
from adaptok.report.runs import RunRecord, SettingResult

Row = dict[str, Any]
# None among these, and among error metrics, is a number that is not finite.
ERRORS = ("vrmse", "nrmse", "nmse_", "rollout_", "loss", "accuracy")
CONFIG = {
    "tokenizer": "tokenizer.name",
    "processor": "processor.name",
    "decoder": "decoder.name",
    "seed": "seed",
    "training_steps": "trainer.max_steps",
}


def tidy_rows(runs: Sequence[RunRecord], groups: Sequence[Group] | None = None) -> list[Row]:
    """Makes a row per run and setting, all with the same columns; one row for untested runs.

    Columns: what the run is, its configuration where runs differ (``config.`` before the key), then
    every number that one of them has. A missing one is None, one that diverged is "diverged". Units
    are those of metrics.json: seconds, bytes, floating-point operations; errors have none.

    Args:
        runs: as `read_runs` returns them.
        groups: groups of the same runs; by default those of `group_runs`.
    """
    groups = group_runs(runs) if groups is None else groups
    labels = {id(run): g.label for g in groups for run in (*g.runs, *g.pending)}
    keys = list(dict.fromkeys(key for group in groups for key in group.keys))
    rows = []
    for run in runs:
        row: Row = {"run": run.name, "status": run.status, "note": run.note, "data": run.data}
        row |= {"split": run.split, "group": labels[id(run)]}
        row["model"] = run.config.get("model.name", "surrogate")
        row |= {name: run.config.get(key) for name, key in CONFIG.items()}
        row["seed"], row["training_budget"] = run.seed, run.budget
        row |= {f"config.{key}": run.config.get(key) for key in keys}
        about = ("adaptok", "torch", "device", "hardware", "when")
        after: Row = {**run.values, **{name: run.environment.get(name) for name in about}}
        after["folder"] = str(run.folder)
        rows += [row | _numbers(run, result) | after for result in run.results] or [row | after]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def _numbers(run: RunRecord, result: SettingResult) -> Row:
    measure, errors = run.measure, (*ERRORS, *result.metrics)
    row: Row = {"setting": result.label, "budget": result.budget}
    for name, value in {**result.values, **result.fields}.items():
        row[name] = "diverged" if value is None and name.startswith(errors) else value
    row[measure.reference] = run.reference
    if run.reference_rollout:
        row[f"{measure.reference}_rollout_last"] = run.reference_rollout[-1]
    row[f"beats_{measure.reference}"] = run.beats_reference(result)
    return row


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows with a header, numbers to 8 digits."""
    shown = [{k: f"{v:.8g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    pd.DataFrame(shown, dtype=object).to_csv(path, index=False)
