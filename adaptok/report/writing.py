"""The report as files: CSV, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from adaptok.report import tables
from adaptok.report.contents import ReportContents, Section, not_finished, read_contents
from adaptok.report.grouping import Group, group_runs
from adaptok.report.runs import RunRecord, SettingResult
from adaptok.report.summaries import transfers
from adaptok.utils.atomic import replacing
from adaptok.utils.tables import table

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


def write_report(
    folders: Sequence[str | Path], out: str | Path, *, by: Sequence[str] = ()
) -> list[Path]:
    """Reads runs and writes results.csv, report.md and report.html.

    Args:
        folders: run folders, or folders of them at any depth.
        out: folder of the report.
        by: configuration keys that make a group, see `group_runs`.

    Returns:
        The files.

    Raises:
        ValueError: a folder does not exist, or there is nothing to show; says why.
    """
    return write_contents(read_contents(folders, by=by), out)


def write_contents(contents: ReportContents, out: str | Path) -> list[Path]:
    """Writes the files of `write_report`."""
    from adaptok.report.page import page  # plotly takes a moment, and readers of runs need none

    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    files = [target / name for name in ("results.csv", "report.md", "report.html")]
    with replacing(files[0]) as temporary:
        write_csv(tidy_rows(contents.read.runs, contents.groups), temporary)
        csv = temporary.read_text(encoding="utf-8")
    texts = (markdown_report(contents), page(contents, target, csv))
    for file, text in zip(files[1:], texts, strict=True):
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return files


def markdown_report(contents: ReportContents) -> str:
    """Writes all tables as Markdown, after the numbers of runs, the hardware and warnings."""
    head = [
        f"{len(contents.tested)} tested runs of {len(contents.read.runs)}; {contents.seeds_named}.",
        *contents.environment_lines,
        *(f"**Careful**: {warning}" for warning in contents.warnings),
    ]
    parts = ["# Report", "\n".join(f"- {_plain(line)}" for line in head)]
    if contents.verdicts:
        parts += ["## Which comparisons count", _markdown(tables.verdict_sheet(contents.verdicts))]
    for section in contents.sections:
        parts.append(f"## {section.comparison.title}")
        parts += [f"**Careful**: {_plain(warning)}" for warning in section.warnings]
        parts += map(_markdown, section_sheets(section))
        parts += [] if section.rows else ["No run is tested yet."]
    if left := not_finished(contents.read):
        lines = "\n".join(f"- `{folder}`: {_plain(what)}" for folder, what in left)
        parts += ["## Not finished, diverged or left out", lines]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def section_sheets(section: Section) -> list[tables.Sheet]:
    """Makes the tables of a comparison."""
    rows = section.rows
    if not rows:
        return []
    sheets = [tables.results_sheet(rows), *map(tables.transfer_sheet, transfers(rows))]
    sheets += filter(None, (tables.fields_sheet(rows), tables.rollout_sheet(rows)))
    return sheets


def _markdown(sheet: tables.Sheet) -> str:
    rows = [[_cell(cell) for cell in row] for row in sheet.rows]
    return f"{sheet.caption}\n\n" + table([_plain(title) for title in sheet.columns], rows)


def _cell(cell: tables.Cell) -> str:
    mark = {None: "", 1: "**", 2: "*"}[cell.rank]
    return f"{mark}{_plain(cell.text)}{mark}"


def _plain(text: str) -> str:
    """Removes what would break a line or a table."""
    return " ".join(str(text).replace("|", "\\|").split())


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
