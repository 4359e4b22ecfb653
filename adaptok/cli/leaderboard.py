"""``adaptok leaderboard``: the page of the reference benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

from adaptok.evaluation.standings import anchors, printable, read_folders, read_rows
from adaptok.report.leaderboard import write_leaderboard

ENDINGS = (".html", ".md")


def print_leaderboard(*args: str) -> int:
    """Writes the page of the rows in some folders; returns the exit status, 1 if a file was bad.

    Args:
        args: folders, and ``out=FILE``, which ends in .html or .md.

    Raises:
        ValueError: no folder, one without rows, an unknown option, or no such file to write.
    """
    pages = [arg.partition("=")[2] for arg in args if arg.partition("=")[0] == "out"]
    folders = [arg for arg in args if arg.partition("=")[0] != "out"]
    flags = [arg for arg in folders if arg.startswith("-")]
    if flags or not folders or len(pages) != 1 or not pages[0]:
        raise ValueError(f"adaptok leaderboard FOLDER... out=FILE, got {' '.join(args) or 'none'}")
    path = Path(pages[0])
    if path.suffix not in ENDINGS or path.is_dir():  # never a row
        raise ValueError(f"out= is a file that ends in {' or '.join(ENDINGS)}, got {path}")
    found = read_folders(folders)
    for folder in folders:
        _check_has_rows(Path(folder))
    page = write_leaderboard(found, anchors(), path)
    for name, why in found.bad.items():
        print(f"adaptok: left out {name}: {why}", file=sys.stderr)
    for name, about in found.others.items():
        print(f"adaptok: {name} has schema {about['schema']}: listed apart", file=sys.stderr)
    print(f"{len(found.rows)} rows; {printable(str(page))}")
    return 1 if found.bad else 0


def _check_has_rows(folder: Path) -> None:
    if any(folder.glob("*.json")):
        return
    below = [str(sub) for sub in sorted(folder.iterdir()) if sub.is_dir() and read_rows(sub).rows]
    hint = f"; there are some in {', '.join(below)}" if below else ""
    raise ValueError(f"no row in {folder}{hint}")
