"""Files of rows: written whole or not at all, and read with a reason for each that is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptok.evaluation.standings.row import SCHEMA, Row, row_of
from adaptok.utils.atomic import replacing


@dataclass
class Folder:
    """What the files of a folder say.

    Attributes:
        rows: by name of the file.
        bad: why a file is left out, by its name.
        others: rows of another version of the schema, by name of the file: "schema", and "track",
            "set", "method" as far as they are there.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    others: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_rows(folder: str | Path) -> Folder:
    """Reads the ``*.json`` files directly in a folder.

    Raises:
        ValueError: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"no folder {path}")
    found = Folder()
    for file in sorted(path.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse)
            json.dumps(content, ensure_ascii=False).encode()  # the page is UTF-8, too
            if isinstance(content, Mapping) and _is_other(content.get("schema")):
                names = ("schema", "track", "set", "method")
                found.others[file.name] = {name: content.get(name) for name in names}
                continue
            found.rows[file.name] = row_of(content)
        except (OSError, ValueError, RecursionError) as error:
            found.bad[file.name] = " ".join(str(error).split())
    return found


def _is_other(schema: Any) -> bool:
    return type(schema) is int and schema != SCHEMA


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def write_row(row: Row, folder: str | Path) -> Path:
    """Writes a row into its file in a folder, after the checks of `row_of`.

    Raises:
        ValueError: it is no row.
    """
    content = row.to_json()
    row_of(content)
    path = Path(folder) / f"{row.stem}.json"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path
