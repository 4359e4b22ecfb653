"""The files of rows: a line of JSON for the training, and one for each variant of its rollouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollouts.rows import Row, all_rows
from studies import Found, Study, is_number
from studies import Results as Files

from adaptok.utils.atomic import replacing

OF_TRAINING = ("steps", "parameters", "curve", "persistence", "seconds_total")
OF_TEST = ("vrmse", "rollout", "windows", "tokens", "sums", "seconds", "seconds_beside")


@dataclass
class Content:
    """What the file of a row holds.

    Attributes:
        training: None if it is not there.
        tests: by variant.
        bad: why lines are left out.
    """

    training: Found | None = None
    tests: dict[str, Found] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)

    def complete(self, row: Row) -> bool:
        return self.training is not None and {*self.tests} == {*row.variants()}


class Results(Files):
    """The folder of results: a file per training, and the ledger."""

    def file(self, row: Row) -> Path:
        return self.folder / row.data / f"{row.name}-{row.seed}.jsonl"

    def content(self, row: Row) -> Content:
        """Reads a row, line by line; what is damaged or of another definition is left out."""
        found, path = Content(), self.file(row)
        lines = path.read_text().splitlines() if path.is_file() else []
        for line in lines:
            try:
                read = json.loads(line)
            except ValueError:
                read = None
            why = fault(read, row)
            if why:
                found.bad.append(why)
            elif "variant" in read:
                found.tests[read["variant"]] = read
            else:
                found.training = read
        return found

    def keep(self, row: Row, found: Found) -> None:
        """Adds a training or a test to the file of a row, in place of a former one."""
        content = self.content(row)
        if "variant" in found:
            content.tests[found["variant"]] = found
        else:
            content.training = found
        lines = [content.training] if content.training is not None else []
        lines += [content.tests[name] for name in row.variants() if name in content.tests]
        path = self.file(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(x, allow_nan=False) + "\n" for x in lines))

    def read(self) -> Study:
        study = Study()
        for row in all_rows():
            content = self.content(row)
            if content.complete(row):
                study.done[row.label] = content.training or {}
            if content.bad:
                study.bad[row.label] = "; ".join(dict.fromkeys(content.bad))
        return study


def fault(found: Any, row: Row) -> str:
    """Says what is wrong with a line of a row's file; empty if nothing is."""
    if not isinstance(found, Mapping):
        return "a damaged line"
    test = "variant" in found
    missing = {*(OF_TEST if test else OF_TRAINING), "key"} - {*found}
    if missing:
        return f"a line without {', '.join(sorted(missing))}"
    number = "vrmse" if test else "seconds_total"
    if not is_number(found[number]):
        return f"a line without a finite {number}"
    if test and found["variant"] not in row.variants():
        return "a test that is none of this row"
    key = row.key_of(found["variant"]) if test else row.key
    return "" if found["key"] == key else "of another definition: run it again"
