"""The files of finished rows: read, checked, and what was spent on them."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptivity.rows import Row, all_rows, decided

from adaptok.utils.atomic import replacing

NUMBERS = ("vrmse", "worst", "tokens", "flops", "seconds_total")
LEDGER = ("row", "seconds", "outcome")
Found = dict[str, Any]


@dataclass
class Study:
    """What the files say.

    Attributes:
        done: finished rows by label.
        bad: why a file is left out, by its name.
    """

    done: dict[str, Found] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)


class Results:
    """The folder of results: a file per row, the widths of equal seconds, and the ledger."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, row: Row) -> Path:
        folder = self.folder / row.data
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{row.name}-{row.seed}.json"

    def widths(self) -> dict[str, int]:
        """Returns the widths of the dense help at equal seconds, by set."""
        path = self.folder / "widths.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def keep_width(self, data: str, width: int) -> None:
        with replacing(self.folder / "widths.json") as temporary:
            temporary.write_text(json.dumps({**self.widths(), data: width}) + "\n")

    def read(self) -> Study:
        """Reads all rows; those that are damaged, or of another definition, are left out."""
        study = Study()
        # rows that others decide come after those
        for row in sorted(all_rows(), key=lambda row: row.model is None):
            path = self.folder / row.data / f"{row.name}-{row.seed}.json"
            if not path.is_file():
                continue
            known, _ = decided(row, study.done, self.widths())
            try:
                found = json.loads(path.read_text())
                why = fault(found, known)
            except (OSError, ValueError) as error:
                found, why = {}, f"damaged: {error}"
            if why:
                study.bad[row.label] = why
            else:
                study.done[row.label] = found
        return study

    def spent(self) -> float:
        """Returns the core seconds of all rows so far, failed and interrupted ones included."""
        path = self.folder / "ledger.csv"
        if not path.is_file():
            return 0.0
        with path.open(newline="") as file:
            return sum(float(line["seconds"]) for line in csv.DictReader(file))

    def spend(self, row: Row, seconds: float, outcome: str) -> None:
        """Adds a line to the ledger."""
        path = self.folder / "ledger.csv"
        self.folder.mkdir(parents=True, exist_ok=True)
        first = not path.is_file()
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if first:
                writer.writerow(LEDGER)
            writer.writerow([row.label, f"{seconds:.1f}", outcome])


def fault(found: Any, row: Row | None) -> str:
    """Says what is wrong with the content of a row's file; empty if nothing is."""
    if not isinstance(found, Mapping):
        return "damaged: it holds no row"
    wrong = [name for name in NUMBERS if not _is_number(found.get(name))]
    if wrong:
        return f"without a finite {', '.join(wrong)}"
    missing = {"curve", "rollout", "persistence", "seconds", "model"} - {*found}
    if missing or not found["curve"]:
        return f"without {', '.join(sorted(missing)) or 'a learning curve'}"
    if row is None:
        return "without the rows that decide what it is"
    return "" if found.get("key") == row.key else "of another definition: run it again"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def commit() -> str:
    """Names the commit of the working tree, with a plus if it was changed."""
    here = Path(__file__).parent
    words = ["git", "-C", str(here), "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
