"""Reports on many runs: a tidy table, Markdown and an HTML page with interactive plots."""

from adaptok.report.grouping import Group, group_runs
from adaptok.report.reading import read_runs
from adaptok.report.runs import LeftOut, RunRecord, Runs, SettingResult
from adaptok.report.summaries import Summary, pareto_front, spread, summaries, verdicts
from adaptok.report.writing import tidy_rows, write_csv, write_report

__all__ = [
    "Group",
    "LeftOut",
    "RunRecord",
    "Runs",
    "SettingResult",
    "Summary",
    "group_runs",
    "pareto_front",
    "read_runs",
    "spread",
    "summaries",
    "tidy_rows",
    "verdicts",
    "write_csv",
    "write_report",
]
