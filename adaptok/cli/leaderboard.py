"""``adaptok leaderboard``: the page of the reference benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

from adaptok.evaluation.standings import Folder, anchors, read_rows
from adaptok.report.leaderboard import write_leaderboard


def print_leaderboard(*args: str) -> int:
    """Writes the page of the rows in some folders; returns the exit status, 1 if a file was bad.

    Args:
        args: folders, and ``out=FILE``.

    Raises:
        ValueError: no folder, or an unknown option.
    """
    options = dict(arg.split("=", 1) for arg in args if arg.partition("=")[0] == "out")
    folders = [arg for arg in args if arg.partition("=")[0] != "out"]
    flags = [arg for arg in folders if arg.startswith("-")]
    if flags or not folders or not options.get("out"):
        raise ValueError(f"adaptok leaderboard FOLDER... out=FILE, got {' '.join(args) or 'none'}")
    found = Folder()
    for number, folder in enumerate(folders):
        own, place = read_rows(folder), "" if len(folders) == 1 else f"{number}/"
        found.rows |= {place + name: row for name, row in own.rows.items()}
        found.bad |= {f"{folder}/{name}": why for name, why in own.bad.items()}
        found.others |= {f"{folder}/{name}": about for name, about in own.others.items()}
    page = write_leaderboard(found, anchors(), Path(options["out"]))
    for name, why in found.bad.items():
        print(f"adaptok: left out {name}: {why}", file=sys.stderr)
    for name, about in found.others.items():
        print(f"adaptok: {name} has schema {about['schema']}: listed apart", file=sys.stderr)
    print(f"{len(found.rows)} rows; {page}")
    return 1 if found.bad else 0
