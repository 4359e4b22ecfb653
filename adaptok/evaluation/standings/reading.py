"""Files of rows: written whole or not at all, and read with a reason for each that is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adaptok.evaluation.standings.checking import row_of
from adaptok.evaluation.standings.origins import origin_of, place_of, whole_commits
from adaptok.evaluation.standings.row import SCHEMA, Row
from adaptok.utils.atomic import replacing

LIMIT = 10**6  # bytes of a file


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


def read_rows(folder: str | Path, pattern: str = "*.json") -> Folder:
    """Reads the files directly in a folder whose name matches a pattern.

    Raises:
        ValueError: there is no such folder.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"no folder {path}")
    found = Folder()
    for file in sorted(path.glob(pattern)):
        name = printable(file.name)
        try:
            content = _content(file)
            if isinstance(content, Mapping) and _is_other(content.get("schema")):
                names = ("schema", "track", "set", "method")
                found.others[name] = {key: content.get(key) for key in names}
                continue
            row = row_of(content)
            if file.name != f"{row.stem}.json":
                raise ValueError(f"the file of this row is called {row.stem}.json")
            found.rows[name] = row
        except Exception as error:  # whatever a file holds: it stops no other
            reason = str(error) or type(error).__name__
            found.bad[name] = printable(" ".join(reason.split()))
    return found


def read_folders(folders: Sequence[str | Path]) -> Folder:
    """Reads several folders; names of files are those behind the folder's.

    A row that is there twice counts once. Rows that differ in nothing but what was measured are
    all left out: nobody can tell which one holds.

    Raises:
        ValueError: there is no such folder.
    """
    found = Folder()
    for folder in folders:
        own, place = read_rows(folder), printable(str(folder))
        found.rows |= {f"{place}/{name}": row for name, row in own.rows.items()}
        found.bad |= {f"{place}/{name}": why for name, why in own.bad.items()}
        found.others |= {f"{place}/{name}": about for name, about in own.others.items()}
    commits = whole_commits(found.rows.values())
    groups: dict[Any, list[str]] = {}
    for name, row in found.rows.items():
        same = (place_of(row), origin_of(row, commits), row.seed)
        groups.setdefault(same, []).append(name)
    for names in groups.values():
        rows = [found.rows[name] for name in names]
        clash = any(row != rows[0] for row in rows)
        for name in names if clash else names[1:]:
            del found.rows[name]
            if clash:
                rest = ", ".join(other for other in names if other != name)
                found.bad[name] = f"the same was measured with other numbers: {rest}"
    return found


def printable(text: str) -> str:
    """Escapes what cannot be printed, such as a byte of a file name that is not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _content(file: Path) -> Any:
    """Reads a file that may be anything: a pipe or a device would have no end."""
    if not file.is_file():
        raise ValueError("no regular file")
    with file.open("rb") as opened:
        content = opened.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise ValueError(f"more than {LIMIT} bytes")
    text = content.decode("utf-8")
    found = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    json.dumps(found, ensure_ascii=False).encode()  # the page is UTF-8, too
    return found


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} more than once")
    return found


def _is_other(schema: Any) -> bool:
    return type(schema) is int and 0 < schema < 1000 and schema != SCHEMA


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
