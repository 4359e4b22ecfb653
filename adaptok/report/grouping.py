"""Groups runs that are equal up to the seed, and finds the shortest names for the groups."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from adaptok.report.configs import OF_TRAINING_DATA, significant, under
from adaptok.report.runs import Measure, RunRecord

# Keys that come first in a label.
FIRST = (
    "model.name",
    "tokenizer.name",
    "budget",
    "processor.name",
    "decoder.name",
    "task",
    "schedule.name",
    "size.dim",
    "history",
)
SAME = 1e-3  # relative difference of persistence on the same samples
Settled = Mapping[int, Mapping[str, Any]]  # id of the run -> significant configuration
# Keys that set the number of tokens in training.
BUDGETS = ("budget", "tokenizer.budget", "schedule.name", "schedule.settings")
NAMES = ("model.name", "tokenizer.name", "processor.name", "decoder.name")


class Comparison(NamedTuple):
    """What runs have to share to be compared.

    Attributes:
        measure: what ranks them.
        data: name of the set.
        split: tested split.
        samples: in what the tested samples differ from those of other runs: "resolution=32".
    """

    measure: Measure
    data: str
    split: str
    samples: str = ""

    @property
    def title(self) -> str:
        """The data set, and the split unless it is "test"."""
        title = f"{self.data}, {self.samples}" if self.samples else self.data
        return title if self.split == "test" else f"{title}, {self.split} split"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        comparison: the test they share with other groups.
        label: short name, unique in its comparison.
        kind: tokenizer or baseline.
        keys: configuration keys of the label, with their values.
        runs: tested runs, by seed; evaluations and repetitions of a run are listed too.
        identities: per tested run, the seed and values that a repetition of it shares.
        pending: runs without results: failed or unfinished.
        mixed: other keys in which the runs differ, if the keys were chosen by hand.
    """

    comparison: Comparison
    label: str
    kind: str
    keys: Mapping[str, Any]
    runs: Sequence[RunRecord]
    identities: Sequence[Hashable]
    pending: Sequence[RunRecord] = ()
    mixed: Sequence[str] = ()

    @property
    def seeds(self) -> list[int]:
        """Seeds of the tested runs."""
        return sorted({run.seed for run in self.runs if run.seed is not None})


def group_runs(runs: Sequence[RunRecord], by: Sequence[str] = ()) -> list[Group]:
    """Groups runs by the configuration keys in which they differ, except the seed and the like.

    Args:
        by: the keys to group by instead, such as ``["tokenizer.name", "budget"]``; pools runs that
            differ in other keys.

    Returns:
        Groups sorted by comparison, then by label.

    Raises:
        ValueError: no run has one of the keys.
    """
    settled = _settled(runs)
    known = sorted({key for config in settled.values() for key in config})
    for key in by:
        if key not in known:
            raise ValueError(f"by={key}: no run has this key; they have {', '.join(known)}")
    tests: dict[tuple[Measure, str, str], list[RunRecord]] = {}
    for run in runs:
        tests.setdefault((run.measure, run.data, run.split), []).append(run)
    groups = []
    for test, own in tests.items():
        for samples, same in _by_samples(own, settled).items():
            kinds: dict[str, list[RunRecord]] = {}
            for run in same:
                kinds.setdefault(run.kind, []).append(run)
            comparison = Comparison(*test, samples)
            for alike in kinds.values():
                groups += _groups_of_kind(comparison, alike, settled, by)
    return sorted(groups, key=lambda g: (str(g.comparison), _natural(g.label)))


def _by_samples(runs: Sequence[RunRecord], settled: Settled) -> Mapping[str, Sequence[RunRecord]]:
    """Splits the runs of a data set by the samples they were tested on, named by what differs.

    Samples differ if keys of the data do, those of the training split aside, or if persistence
    does for one length of the history. A run of unknown configuration goes where persistence fits.
    """
    known = [run for run in runs if any(key.startswith("data.") for key in settled[id(run)])]
    configs = [{k: v for k, v in settled[id(run)].items() if _is_of_test_data(k)} for run in known]
    keys = label_keys(configs, [run.environment.get("adaptok") for run in known])
    parts: dict[str, list[RunRecord]] = {}
    for run, config in zip(known, configs, strict=True):
        named = [f"{_short(key)}={_shown(config.get(key))}" for key in keys]
        parts.setdefault(", ".join(named), []).append(run)
    for run in runs:
        if run not in known:
            large = sorted(parts.values(), key=len, reverse=True)
            near = [part for part in large if _agrees(run, part)]
            (near or large or [parts.setdefault("", [])])[0].append(run)
    found: dict[str, list[RunRecord]] = {}
    for name, own in parts.items():
        levels = _levels_of_persistence(own)
        for run in own:
            more = ""
            if len(levels) > 1:
                reference = levels[0] if run.reference is None else run.reference
                more = f"persistence {min(levels, key=lambda level: abs(level - reference)):.4g}"
            found.setdefault(", ".join(filter(None, (name, more))), []).append(run)
    return found


def _is_of_test_data(key: str) -> bool:
    return key.startswith("data.") and key != "data.name" and not under(key, OF_TRAINING_DATA)


def _agrees(run: RunRecord, others: Sequence[RunRecord]) -> bool:
    references = [other.reference for other in others if other.reference is not None]
    return run.reference is not None and any(
        abs(run.reference - reference) <= SAME * reference for reference in references
    )


def _levels_of_persistence(runs: Sequence[RunRecord]) -> list[float]:
    """Errors of persistence that no length of the history explains, one per set of samples."""
    levels: dict[Any, list[float]] = {}
    for reference, history in sorted(
        (run.reference, str(run.config.get("history"))) for run in runs if run.reference is not None
    ):
        own = levels.setdefault(history, [])
        if not own or reference > (1 + SAME) * own[-1]:
            own.append(reference)
    return max(levels.values(), key=len, default=[])


def _groups_of_kind(
    comparison: Comparison, runs: Sequence[RunRecord], settled: Settled, by: Sequence[str]
) -> list[Group]:
    """Groups the runs of one tokenizer or baseline in one comparison."""
    kind = runs[0].kind
    versions = [run.environment.get("adaptok") for run in runs]
    varying = label_keys([settled[id(run)] for run in runs], versions)
    keys = by or varying

    def identity(run: RunRecord, keys: Sequence[str]) -> tuple[Hashable, ...]:
        return tuple(_hashable(settled[id(run)].get(key)) for key in keys)

    members: dict[Hashable, list[RunRecord]] = {}
    for run in runs:
        members.setdefault(identity(run, keys), []).append(run)
    groups = []
    for own in members.values():
        first = settled[id(own[0])]
        values = {key: first[key] for key in keys if key in first}
        mixed = [key for key in varying if len({identity(run, [key]) for run in own}) > 1]
        budget, shown = own[0].budget, values
        if isinstance(budget, str) and any(key in values for key in BUDGETS):
            # several budgets in training take the place of the schedule
            shown = {k: v for k, v in values.items() if k not in BUDGETS} | {"budget": budget}
        label = label_of_keys(kind, shown)
        done = [run for run in own if run.results]
        tested = sorted(done, key=lambda run: (run.seed is None, run.seed or 0, run.modified))
        same = [(run.seed, *identity(run, varying)) for run in tested]
        pending = [run for run in own if not run.results]
        groups.append(Group(comparison, label, kind, values, tested, same, pending, mixed))
    return _marked(groups, settled)


def _marked(groups: Sequence[Group], settled: Settled) -> list[Group]:
    """Names, in the labels, models that two budgets became: cells of few sizes reach few numbers of
    tokens.
    """

    def models(group: Group) -> frozenset[Hashable]:
        configs = []
        for run in (*group.runs, *group.pending):
            part = {k: v for k, v in run.config.items() if under(k, ["tokenizer"])}
            configs.append({k: v for k, v in settled[id(run)].items() if k != "budget"} | part)
        return frozenset(map(_hashable, configs))

    first: dict[frozenset[Hashable], str] = {}
    marked = []
    for group in sorted(groups, key=lambda group: _natural(group.label)):
        budget = group.keys.get("budget")
        if budget is not None:
            known = first.setdefault(models(group), f"budget={budget}")
            if known != f"budget={budget}":
                group = replace(group, label=f"{group.label} (same model as {known})")
        marked.append(group)
    return marked


def label_keys(
    configs: Sequence[Mapping[str, Any]], versions: Sequence[str | None] = ()
) -> tuple[str, ...]:
    """Finds the fewest keys, most telling first, that split configurations as all keys do.

    A key is left out if the keys before it imply its value. A missing key counts as null, unless
    the versions differ: older configurations lack keys that were added since.

    Args:
        configs: dotted keys with their values.
        versions: versions of adaptok, one per configuration; None is unknown.
    """
    seen: dict[str, set[Hashable]] = {}
    for config in configs:
        for key, value in config.items():
            seen.setdefault(key, set()).add(_hashable(value))
    pairs = list(zip(configs, versions, strict=True)) if versions else []
    for key, values in seen.items():
        having = {version for config, version in pairs if key in config} - {None}
        if any(version in having for config, version in pairs if key not in config):
            values.add(_hashable(None))
    first = {key: place for place, key in enumerate(FIRST)}
    order = {key: (first.get(key, len(FIRST)), not key.endswith(".name"), key) for key in seen}
    parts: list[tuple[Hashable, ...]] = [()] * len(configs)
    chosen = []
    for key in sorted((key for key in seen if len(seen[key]) > 1), key=order.__getitem__):
        refined = [(*p, _hashable(c.get(key))) for p, c in zip(parts, configs, strict=True)]
        if len(set(refined)) > len(set(parts)):
            chosen.append(key)
            parts = refined
    return tuple(chosen)


def label_of_keys(kind: str, values: Mapping[str, Any]) -> str:
    """Writes ``iap, vit, budget=256``: bare names, and the last part of other keys."""
    parts = [kind]
    for key, value in values.items():
        if value is None or (key, value) == ("schedule.name", "fixed"):
            continue
        if key in NAMES and str(value) in (kind, "surrogate"):
            continue
        name = _short(key) if [*map(_short, values)].count(_short(key)) == 1 else key
        if key == "ckpt":  # by the name of its run folder
            value = str(value).partition("/checkpoints/")[0].rstrip("/").rpartition("/")[2]
        telling = key in NAMES and value != "auto"
        parts.append(str(value) if telling else f"{name}={_shown(value)}")
    return ", ".join(parts)


def _short(key: str) -> str:
    """Shortens a key to its telling part: "budget", and "schedule" for "schedule.name"."""
    return key.removesuffix(".name").rpartition(".")[2]


def _settled(runs: Sequence[RunRecord]) -> dict[int, dict[str, Any]]:
    """Significant configurations; a part without knobs is written like one with knobs."""
    found = {}
    for run in runs:
        config = significant(run.config, evaluated=run.source is not None)
        # without config.yaml a run is like no other
        found[id(run)] = {"task": "surrogate", **config} if config else {"folder": run.name}
    known = {key for config in found.values() for key in config}
    for config in found.values():
        for key in [k for k, v in config.items() if isinstance(v, str) and f"{k}.name" in known]:
            config[f"{key}.name"] = config.pop(key)
    return found


def _hashable(value: Any) -> Hashable:
    """Makes a hashable value, equal for equal values; unlike in Python, 1 and True differ."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), _hashable(v)) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return ("list", *map(_hashable, value))
    return (type(value).__name__ if isinstance(value, (bool, str)) else "", value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{k}:{_shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _natural(label: str) -> list[tuple[int, float, str]]:
    """Sort key in which 64 comes before 128."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [(0, 0.0, p) if i % 2 == 0 else (1, float(p), "") for i, p in enumerate(parts)]
