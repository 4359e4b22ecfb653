"""The report as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptok.report.grouping import group_runs
from adaptok.report.markdown import markdown_report
from adaptok.report.notes import Contents, contents_of
from adaptok.report.reading import read_runs
from adaptok.report.tidy import tidy_rows, write_csv
from adaptok.utils.atomic import replacing


def write_report(
    folders: Sequence[str | Path], out: str | Path, *, by: Sequence[str] = ()
) -> list[Path]:
    """Reads runs and writes results.csv, report.md and report.html.

    Args:
        folders: run folders, or folders of them at any depth.
        out: folder of the report.
        by: configuration keys that make a group, see `group_runs`.

    Returns:
        The files.

    Raises:
        ValueError: a folder does not exist, or there is nothing to show; says why.
    """
    return write_contents(read_contents(folders, by=by), out)


def read_contents(folders: Sequence[str | Path], *, by: Sequence[str] = ()) -> Contents:
    """What `write_report` shows.

    Raises:
        ValueError: as of `write_report`.
    """
    read = read_runs(*folders)
    if not any(run.results or run.curve for run in read.runs):
        left = [*((r.folder, f"{r.status} {r.note}") for r in read.runs), *read.problems]
        shown = "; ".join(f"{folder}: {what}" for folder, what in left[:5])
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise ValueError(f"there is no run to report: {shown}{more}")
    return contents_of(read, group_runs(read.runs, by))


def write_contents(contents: Contents, out: str | Path) -> list[Path]:
    """Writes the files of `write_report`."""
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    files = [target / name for name in ("results.csv", "report.md", "report.html")]
    with replacing(files[0]) as temporary:
        write_csv(tidy_rows(contents.read.runs, contents.groups), temporary)
    with replacing(files[1]) as temporary:
        temporary.write_text(markdown_report(contents), encoding="utf-8")
    with replacing(files[2]) as temporary:
        temporary.write_text(_page(contents, target, files[0]), encoding="utf-8")
    return files


def _page(contents: Contents, target: Path, csv: Path) -> str:
    from adaptok.report.page import page  # plotly takes a moment, and readers of runs need none

    return page(contents, target, csv.read_text(encoding="utf-8"))
