"""Writes tables as Markdown, and reads those of Lightning's CSV logger."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Makes an aligned Markdown table: the first column left, the others right."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in [header, rule, *rows]:
        padded = [row[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("| " + " | ".join(padded) + " |")
    return "\n".join(lines) + "\n"


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Reads the rows of the CSV logger; a folder stands for its ``metrics*.csv``.

    Skips entries that are empty or no number, as in a line that is being written. A "step" of a row
    is the number of steps made, which Lightning counts from 0.
    """
    path = Path(path)
    files = sorted(path.glob("metrics*.csv")) if path.is_dir() else [path]
    rows = []
    for file in files:
        with file.open(newline="") as handle:
            rows += [_numbers(row) for row in csv.DictReader(handle)]
    return [row | {"step": row["step"] + 1} if "step" in row else row for row in rows]


def _numbers(row: Mapping[str, str | None]) -> dict[str, float]:
    numbers = {}
    for name, text in row.items():
        with contextlib.suppress(TypeError, ValueError):
            numbers[name] = float(text)  # type: ignore[arg-type]
    return numbers
