"""What a reader has to know beside the numbers: hardware, versions, what is missing or odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adaptok.report.configs import OF_TRAINING_DATA, significant, under
from adaptok.report.grouping import Group, Table, table_of
from adaptok.report.records import Problem, Run, Runs
from adaptok.report.summaries import Summary, Verdict, summaries, verdicts

VERSIONS = ("adaptok", "torch", "device", "hardware")


@dataclass(frozen=True)
class Section:
    """One data set: what is compared in one table."""

    table: Table
    rows: Sequence[Summary]
    groups: Sequence[Group]
    verdicts: Sequence[Verdict]
    warnings: Sequence[str]


@dataclass(frozen=True)
class Contents:
    """All that a report shows.

    Attributes:
        read: runs and problems.
        groups: of the runs.
        sections: a data set each.
        environment: versions and hardware with the number of runs.
        warnings: about all runs.
    """

    read: Runs
    groups: Sequence[Group]
    sections: Sequence[Section] = ()
    environment: dict[str, Counter[str]] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def with_results(self) -> list[Run]:
        """Runs that were tested."""
        return [run for run in self.read.runs if run.results]


def contents_of(read: Runs, groups: Sequence[Group]) -> Contents:
    """Arranges runs by data set and says what is odd about them."""
    tables = list(dict.fromkeys(group.table for group in groups))
    sections = []
    for table in tables:
        own = [group for group in groups if group.table == table]
        rows = summaries(own)
        if rows or any(run.curve for group in own for run in group.pending):
            sections.append(Section(table, rows, own, verdicts(rows), _data_warnings(own)))
    environment = _environment(read.runs)
    warnings = [*_mixed(environment), *_repeated(groups), *_pooled(groups)]
    return Contents(read, groups, sections, environment, warnings)


def not_finished(read: Runs) -> list[Problem]:
    """Runs without results or with diverged ones, and folders that were left out, one line each."""
    lines: dict[Path, list[str]] = {}
    for folder, what in read.problems:
        lines.setdefault(folder, []).append(what)
    for run in read.runs:
        if run.status != "finished":
            lines.setdefault(run.folder, []).append(f"{run.status}: {run.note}")
    return [Problem(folder, "; ".join(what)) for folder, what in sorted(lines.items())]


def _environment(runs: Sequence[Run]) -> dict[str, Counter[str]]:
    tested = [run for run in runs if run.results]
    return {
        name: Counter(run.environment.get(name) or "not recorded" for run in tested)
        for name in VERSIONS
        if any(run.environment.get(name) for run in tested)
    }


def _mixed(environment: dict[str, Counter[str]]) -> list[str]:
    warnings = []
    for name, counts in environment.items():
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({n} runs)" for value, n in counts.most_common())
            times = "; times and memory are not comparable" if name in VERSIONS[2:] else ""
            warnings.append(f"runs differ in {name}: {listed}{times}")
    if not environment:
        warnings.append("versions and hardware were not recorded")
    return warnings


def _repeated(groups: Sequence[Group]) -> list[str]:
    """Training runs of the same configuration and seed: the newest counts."""
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


def _pooled(groups: Sequence[Group]) -> list[str]:
    keys = sorted({key for group in groups for key in group.mixed})
    return [f"runs that were put together differ in {', '.join(keys)}"] if keys else []


def _data_warnings(groups: Sequence[Group]) -> list[str]:
    """Whether all runs of a data set were tested on the same samples."""
    runs = [run for group in groups for run in group.runs]
    keys = sorted({key for run in runs for key in run.config if key.startswith("data.")})
    keys = [key for key in keys if not under(key, OF_TRAINING_DATA)]
    kept = [significant(run.config, evaluated=run.source is not None) for run in runs]
    differing = [
        key
        for key in keys
        if any(key in config for config in kept)
        and len({str(config[key]) for config in kept if key in config}) > 1
    ]
    warnings = []
    if differing:
        warnings.append(f"runs differ in the data that they are tested on: {', '.join(differing)}")
    known = [run.reference for run in runs if run.reference is not None]
    if known and max(known) - min(known) > 1e-3 * max(known):
        warnings.append(
            f"{table_of(runs[0]).measure.reference} is {min(known):.4f} to {max(known):.4f}: not "
            "all runs were tested on the same samples (a longer history leaves out the first)"
        )
    return warnings
