"""What a report shows: comparisons with their verdicts, hardware, what is missing or odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptok.report.grouping import SAME, Comparison, Group, group_runs
from adaptok.report.reading import read_runs
from adaptok.report.runs import LeftOut, RunRecord, Runs
from adaptok.report.summaries import Summary, Verdict, summaries, verdicts

VERSIONS = ("adaptok", "torch", "device", "hardware")


@dataclass(frozen=True)
class Section:
    """One comparison: everything about one data set."""

    comparison: Comparison
    rows: Sequence[Summary]
    groups: Sequence[Group]
    verdicts: Sequence[Verdict]
    warnings: Sequence[str]


@dataclass(frozen=True)
class ReportContents:
    """Everything that a report shows.

    Attributes:
        read: runs and problems.
        groups: groups of the runs.
        sections: one per comparison.
        environment: versions and hardware with the number of runs.
        warnings: about all runs.
    """

    read: Runs
    groups: Sequence[Group]
    sections: Sequence[Section] = ()
    environment: dict[str, Counter[str]] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def tested(self) -> list[RunRecord]:
        """Runs with results."""
        return [run for run in self.read.runs if run.results]

    @property
    def seeds(self) -> str:
        """Seeds of the tested runs, as text."""
        seeds = sorted({run.seed for run in self.tested if run.seed is not None})
        return ", ".join(map(str, seeds)) or "unknown"

    @property
    def seeds_named(self) -> str:
        """The same with a noun, as a lone 0 reads like none: "seed 0", "seeds 0, 1"."""
        return f"seed{'s' if ',' in self.seeds else ''} {self.seeds}"

    @property
    def verdicts(self) -> list[tuple[str, Verdict]]:
        """Pairs of data set and verdict."""
        return [(s.comparison.title, verdict) for s in self.sections for verdict in s.verdicts]

    @property
    def environment_lines(self) -> list[str]:
        """Lines such as ``torch: 2.15.0``, with the number of runs if they differ."""
        return [f"{name}: {_listed(counts)}" for name, counts in self.environment.items()]


def read_contents(folders: Sequence[str | Path], *, by: Sequence[str] = ()) -> ReportContents:
    """Reads what `write_report` shows.

    Raises:
        ValueError: see `write_report`.
    """
    read = read_runs(*folders)
    if not any(run.results or run.curve for run in read.runs):
        left = [*((r.folder, f"{r.status} {r.note}") for r in read.runs), *read.problems]
        shown = "; ".join(f"{folder}: {what}" for folder, what in left[:5])
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise ValueError(f"there is no run to report: {shown}{more}")
    return contents_of(read, group_runs(read.runs, by))


def contents_of(read: Runs, groups: Sequence[Group]) -> ReportContents:
    """Arranges runs by comparison and notes what is odd about them."""
    sections = []
    for comparison in dict.fromkeys(group.comparison for group in groups):
        own = [group for group in groups if group.comparison == comparison]
        rows = summaries(own)
        if rows or any(run.curve for group in own for run in group.pending):
            sections.append(Section(comparison, rows, own, verdicts(rows), _data_warnings(own)))
    tested = [run for run in read.runs if run.results]
    environment = {
        name: Counter(run.environment.get(name) or "not recorded" for run in tested)
        for name in VERSIONS
        if any(run.environment.get(name) for run in tested)
    }
    warnings = [*_mixed(environment), *_repeated(groups)]
    if keys := sorted({key for group in groups for key in group.mixed}):
        warnings.append(f"runs that were put together differ in {', '.join(keys)}")
    return ReportContents(read, groups, sections, environment, warnings)


def not_finished(read: Runs) -> list[LeftOut]:
    """Lists runs without results or with diverged ones, and unread folders, one line each."""
    lines: dict[Path, list[str]] = {}
    for folder, what in read.problems:
        lines.setdefault(folder, []).append(what)
    for run in read.runs:
        if run.status != "finished":
            lines.setdefault(run.folder, []).append(f"{run.status}: {run.note}")
    return [LeftOut(folder, "; ".join(what)) for folder, what in sorted(lines.items())]


def _listed(counts: Counter[str]) -> str:
    """Lists values with the number of runs, one value without."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({n} runs)" for value, n in counts.most_common())


def _mixed(environment: dict[str, Counter[str]]) -> list[str]:
    warnings = []
    for name, counts in environment.items():
        if len(counts) > 1:
            times = "; times and memory are not comparable" if name in VERSIONS[2:] else ""
            warnings.append(f"runs differ in {name}: {_listed(counts)}{times}")
    return warnings if environment else ["versions and hardware were not recorded"]


def _repeated(groups: Sequence[Group]) -> list[str]:
    """Names training runs of the same configuration and seed, of which the newest counts."""
    repeated = []
    for group in groups:
        same: dict[Hashable, list[str]] = {}
        for run, identity in zip(group.runs, group.identities, strict=True):
            if run.source is None:
                same.setdefault(identity, []).append(run.name)
        repeated += [" and ".join(names) for names in same.values() if len(names) > 1]
    if not repeated:
        return []
    return [f"the same configuration and seed, of which the newest counts: {'; '.join(repeated)}"]


def _data_warnings(groups: Sequence[Group]) -> list[str]:
    """Says if not all runs of a comparison were tested on the same samples."""
    runs = [run for group in groups for run in group.runs]
    known = [run.reference for run in runs if run.reference is not None]
    if not known or max(known) - min(known) <= SAME * max(known):
        return []
    return [
        f"{runs[0].measure.reference} is {min(known):.4f} to {max(known):.4f}: not "
        "all runs were tested on the same samples (a longer history leaves out the first)"
    ]
