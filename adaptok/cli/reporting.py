"""``adaptok report``: tables and a page of many runs."""

from __future__ import annotations

import os
from pathlib import Path

from adaptok.cli import as_typed
from adaptok.report.contents import read_contents
from adaptok.report.writing import markdown_report, write_contents

OPTIONS = ("out", "by")


def print_report(*args: str) -> None:
    """Writes the report of some folders and prints its tables.

    Args:
        args: folders, and ``out=FOLDER`` and ``by=key,key``.

    Raises:
        ValueError: no folder, an unknown flag, or nothing to report.
    """
    folders, out, by = parsed(args)
    contents = read_contents(folders, by=by)
    files = write_contents(contents, out)
    print(markdown_report(contents))
    print("\n".join(map(str, files)))


def parsed(args: tuple[str, ...]) -> tuple[list[Path], Path, list[str]]:
    """Parses folders, folder of the report, and keys to group by.

    Only ``out=`` and ``by=`` are options: sweeps name folders ``tokenizer=iap,seed=0``.
    """
    flags = [arg for arg in args if arg.startswith("-")]
    if flags:
        raise ValueError(f"adaptok report has no flag {flags[0]}: FOLDER... [out=DIR] [by=key,key]")
    options = dict(a.split("=", 1) for a in args if a.partition("=")[0] in OPTIONS and "=" in a)
    folders = [Path(a) for a in args if not ("=" in a and a.partition("=")[0] in OPTIONS)]
    if not folders:
        raise ValueError("give folders of runs, such as: adaptok report outputs")
    default = Path(os.path.commonpath([f.absolute() for f in folders])) / "report"
    by = [key.strip() for key in options.get("by", "").split(",") if key.strip()]
    return folders, Path(options.get("out") or as_typed(default)), by
