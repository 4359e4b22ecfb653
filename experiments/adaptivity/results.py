"""The files of finished rows: read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptivity.rows import Row, all_rows, decided
from studies import Results as Files
from studies import Study, is_number

from adaptok.utils.atomic import replacing

NUMBERS = ("vrmse", "worst", "tokens", "flops", "seconds_total")


class Results(Files):
    """The folder of results: a file per row, the widths of equal seconds, and the ledger."""

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


def fault(found: Any, row: Row | None) -> str:
    """Says what is wrong with the content of a row's file; empty if nothing is."""
    if not isinstance(found, Mapping):
        return "damaged: it holds no row"
    wrong = [name for name in NUMBERS if not is_number(found.get(name))]
    if wrong:
        return f"without a finite {', '.join(wrong)}"
    missing = {"curve", "rollout", "persistence", "seconds", "model"} - {*found}
    if missing or not found["curve"]:
        return f"without {', '.join(sorted(missing)) or 'a learning curve'}"
    if row is None:
        return "without the rows that decide what it is"
    return "" if found.get("key") == row.key else "of another definition: run it again"
