"""The report as Markdown."""

from __future__ import annotations

from adaptok.report.notes import Contents, Section, not_finished
from adaptok.report.results import results_sheet
from adaptok.report.sheet import Cell, Sheet
from adaptok.report.sheets import fields_sheet, rollout_sheet, transfer_sheet, verdict_sheet
from adaptok.report.transfer import transfers
from adaptok.utils.tables import table

MARKS = {None: "", 1: "**", 2: "*"}


def markdown_report(contents: Contents) -> str:
    """All tables; the head says how many runs, on which hardware, and what to be careful about."""
    parts = ["# Report", _head(contents)]
    found = [(s.table.title, verdict) for s in contents.sections for verdict in s.verdicts]
    if found:
        parts += ["## Which comparisons count", _sheet(verdict_sheet(found))]
    for section in contents.sections:
        parts += _section(section)
    left = not_finished(contents.read)
    if left:
        lines = "\n".join(f"- `{folder}`: {_plain(what)}" for folder, what in left)
        parts += ["## Not finished, diverged or left out", lines]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def section_sheets(section: Section) -> list[Sheet]:
    """The tables of a data set."""
    if not section.rows:
        return []
    optional = [fields_sheet(section.rows), rollout_sheet(section.rows)]
    matrices = [transfer_sheet(matrix) for matrix in transfers(section.rows)]
    return [results_sheet(section.rows), *matrices, *(s for s in optional if s is not None)]


def environment_lines(contents: Contents) -> list[str]:
    """``torch: 2.15.0 (all runs)`` and so on."""
    lines = []
    for name, counts in contents.environment.items():
        if len(counts) == 1:
            lines.append(f"{name}: {next(iter(counts))}")
        else:
            listed = ", ".join(f"{value} ({n} runs)" for value, n in counts.most_common())
            lines.append(f"{name}: {listed}")
    return lines


def _head(contents: Contents) -> str:
    tested = contents.with_results
    seeds = sorted({run.seed for run in tested if run.seed is not None})
    lines = [
        f"{len(tested)} tested runs of {len(contents.read.runs)}; "
        f"seeds {', '.join(map(str, seeds)) or 'unknown'}.",
        *environment_lines(contents),
        *(f"**Careful**: {warning}" for warning in contents.warnings),
    ]
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _section(section: Section) -> list[str]:
    parts = [f"## {section.table.title}"]
    parts += [f"**Careful**: {_plain(warning)}" for warning in section.warnings]
    if not section.rows:
        parts.append("No run is tested yet.")
    return parts + [_sheet(sheet) for sheet in section_sheets(section)]


def _sheet(sheet: Sheet) -> str:
    header = [_plain(column.title) for column in sheet.columns]
    return f"{sheet.caption}\n\n" + table(header, [[_cell(c) for c in row] for row in sheet.rows])


def _cell(cell: Cell) -> str:
    mark = MARKS[cell.rank]
    return f"{mark}{_plain(cell.text)}{mark}"


def _plain(text: str) -> str:
    """Text without what would break a line or a table."""
    return " ".join(str(text).replace("|", "\\|").split())
