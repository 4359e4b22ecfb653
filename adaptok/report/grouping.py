"""Runs that are equal up to the seed, and the shortest names that tell the groups apart."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from adaptok.report.configs import significant
from adaptok.report.records import Measure, Run

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
Settled = Mapping[int, Mapping[str, Any]]  # significant configuration by the id of the run
# Keys that say how many tokens there are in training.
BUDGETS = ("budget", "tokenizer.budget", "schedule.name", "schedule.settings")
NAMES = ("model.name", "tokenizer.name", "processor.name", "decoder.name")


class Table(NamedTuple):
    """What runs have to share to be compared: the test."""

    measure: Measure
    data: str
    split: str

    @property
    def title(self) -> str:
        """The data set, and the split where it is not "test"."""
        return self.data if self.split == "test" else f"{self.data}, {self.split} split"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        table: what they are compared in.
        label: short name, unique in its table.
        kind: tokenizer or baseline.
        keys: configuration keys of the label, with their values.
        runs: tested ones, by seed; evaluations of a run, and repetitions, are runs of their own.
        identities: of each of these, what a repetition of it shares: the seed and the rest.
        pending: runs of the group that failed or go on.
        mixed: other keys in which the runs differ, where the keys were chosen by hand.
    """

    table: Table
    label: str
    kind: str
    keys: Mapping[str, Any]
    runs: Sequence[Run]
    identities: Sequence[Hashable]
    pending: Sequence[Run] = ()
    mixed: Sequence[str] = ()

    @property
    def seeds(self) -> list[int]:
        """Seeds of the tested runs."""
        return sorted({run.seed for run in self.runs if run.seed is not None})


def table_of(run: Run) -> Table:
    """The table that a run belongs to."""
    return Table(run.measure, run.data, run.split)


def group_runs(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Group]:
    """Groups runs by the configuration keys in which they differ, the seed and the like aside.

    Args:
        by: the keys to group by instead, such as ``["tokenizer.name", "budget"]``; runs that differ
            in others are then put together.

    Returns:
        Table by table, in the order of their names; in a table by label.

    Raises:
        ValueError: a key that no run has.
    """
    settled = _settled(runs)
    known = sorted({key for config in settled.values() for key in config})
    for key in by:
        if key not in known:
            raise ValueError(f"by={key}: no run has this key; they have {', '.join(known)}")
    alike: dict[tuple[Table, str], list[Run]] = {}
    for run in runs:
        alike.setdefault((table_of(run), run.kind), []).append(run)
    groups = [
        group
        for (table, _), own in alike.items()
        for group in _groups_of_kind(table, own, settled, tuple(by))
    ]
    order = {table: i for i, table in enumerate(sorted({g.table for g in groups}, key=str))}
    return sorted(groups, key=lambda g: (order[g.table], _natural(g.label)))


def _groups_of_kind(
    table: Table, runs: Sequence[Run], settled: Settled, by: tuple[str, ...]
) -> list[Group]:
    """Groups of the runs of one tokenizer or baseline in a table."""
    versions = [run.environment.get("adaptok") for run in runs]
    varying = label_keys([settled[id(run)] for run in runs], versions)
    keys = by or varying
    members: dict[Hashable, list[Run]] = {}
    for run in runs:
        identity = _hashable([settled[id(run)].get(key) for key in keys])
        members.setdefault(identity, []).append(run)
    groups = []
    for own in members.values():
        configs = [settled[id(run)] for run in own]
        values = {key: configs[0][key] for key in keys if key in configs[0]}
        mixed = [key for key in varying if len({_hashable(c.get(key)) for c in configs}) > 1]
        label, kind = label_of_keys(own[0].kind, with_budget(values, own[0])), own[0].kind
        tested = sorted((run for run in own if run.results), key=_by_seed)
        same = [(r.seed, *(_hashable(settled[id(r)].get(key)) for key in varying)) for r in tested]
        pending = [run for run in own if not run.results]
        groups.append(Group(table, label, kind, values, tested, same, pending, mixed))
    return groups


def label_keys(
    configs: Sequence[Mapping[str, Any]], versions: Sequence[str | None] = ()
) -> tuple[str, ...]:
    """The fewest keys, the telling ones first, that split flat configurations as all keys do.

    A key is left out if those before it imply its value. Not to have a key is as to have it null,
    but for configurations of another version than those that have it: older ones lack keys that
    were added since.

    Args:
        versions: of adaptok, one per configuration; None is unknown.
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
    keys = sorted((key for key, values in seen.items() if len(values) > 1), key=_priority)
    parts = [0] * len(configs)
    chosen = []
    for key in keys:
        refined = [(p, _hashable(c.get(key))) for p, c in zip(parts, configs, strict=True)]
        if len(set(refined)) > len(set(parts)):
            chosen.append(key)
            numbers = {part: i for i, part in enumerate(dict.fromkeys(refined))}
            parts = [numbers[part] for part in refined]
    return tuple(chosen)


def label_of_keys(kind: str, values: Mapping[str, Any]) -> str:
    """``iap, vit, budget=256``: names as they are, other keys by their last part."""
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


def with_budget(values: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Keys of a label, where several budgets in training take the place of the schedule."""
    if not isinstance(run.budget, str) or not any(key in values for key in BUDGETS):
        return dict(values)
    return {k: v for k, v in values.items() if k not in BUDGETS} | {"budget": run.budget}


def _short(key: str) -> str:
    """The last part that says something: "budget", and "schedule" of "schedule.name"."""
    return key.removesuffix(".name").rpartition(".")[2]


def _settled(runs: Sequence[Run]) -> dict[int, dict[str, Any]]:
    """Significant configurations; a part without knobs is written as one with knobs."""
    found = {id(run): _of_run(run) for run in runs}
    known = {key for config in found.values() for key in config}
    for config in found.values():
        for key in [k for k, v in config.items() if isinstance(v, str) and f"{k}.name" in known]:
            config[f"{key}.name"] = config.pop(key)
    return found


def _of_run(run: Run) -> dict[str, Any]:
    config = significant(run.config, evaluated=run.source is not None)
    if not config:
        return {"folder": run.name}  # without config.yaml a run is like no other
    return {"task": "surrogate", **config}


def _by_seed(run: Run) -> tuple[bool, int, float]:
    return (run.seed is None, run.seed or 0, run.modified)


def _priority(key: str) -> tuple[int, bool, str]:
    return (FIRST.index(key) if key in FIRST else len(FIRST), not key.endswith(".name"), key)


def _hashable(value: Any) -> Hashable:
    """Equal for equal values, different otherwise: 1, 1.0 and True are the same only as in YAML."""
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
