"""What an experiment.yaml says, checked; see experiments/README.md."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SCALES = ("full", "small")
COMMANDS = ("train", "finetune", "eval", "bench")
KEYS = {"claim", "source", "lists", "scales", "runs_of", "compare", "metrics", "drawn"}
SCALE_KEYS = {"seeds", "common", "runs"}
RUN_KEYS = {"overrides", "arguments", "command", "like"}
EXPECTED = ["run", "setting", "metric", "value", "tolerance", "ours", "source"]


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        name: of the run.
        command: of adaptok.
        overrides: of that command, those of all runs first; of a benchmark its arguments.
        seeds: one run each.
        like: the full-size run whose published number stands beside this one.
    """

    name: str
    command: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    like: str

    def folder(self, out: Path, seed: int) -> Path:
        return out / self.name / f"seed_{seed}"


@dataclass(frozen=True)
class Experiment:
    """A folder of experiments/.

    Attributes:
        folder: where it is.
        claim: one sentence.
        source: paper and table.
        runs: by scale.
        runs_of: by scale, the experiment that the runs are those of; its own name where they are
            its own.
        compare: pairs of runs, whose ratio of errors is the claim.
        metrics: patterns of what results.csv keeps.
        drawn: runs in the pictures of rollouts and spectra; none is all.
    """

    folder: Path
    claim: str
    source: str
    runs: Mapping[str, list[Run]]
    runs_of: Mapping[str, str]
    compare: list[tuple[str, str]]
    metrics: list[str]
    drawn: list[str]

    @property
    def name(self) -> str:
        return self.folder.name


def names() -> list[str]:
    """All experiments."""
    return sorted(path.parent.name for path in HERE.glob("*/experiment.yaml"))


def read(name: str, base: Path = HERE) -> Experiment:
    """Reads an experiment.

    Raises:
        ValueError: no such experiment, or a key or value that means nothing.
    """
    path = base / name / "experiment.yaml"
    if not path.is_file():
        raise ValueError(f"no experiment {name!r}; there are: {', '.join(names())}")
    content = yaml.safe_load(path.read_text())
    _known(content, KEYS, name)
    if not content.get("claim") or not content.get("source"):
        raise ValueError(f"{name} needs a claim and a source")
    runs = {s: _runs(v, f"{name}, {s}") for s, v in content.get("scales", {}).items()}
    of = content.get("runs_of", {})
    of = dict.fromkeys(SCALES, of) if isinstance(of, str) else dict(of)
    for scale, other in of.items():
        if scale in runs:
            raise ValueError(f"{name} has runs of its own at scale {scale}, and those of {other}")
        source = read(other, base)
        if source.runs_of.get(scale) == other:
            runs[scale] = source.runs[scale]
    _known(runs, set(SCALES), name)
    return Experiment(
        folder=path.parent,
        claim=content["claim"],
        source=content["source"],
        runs=runs,
        runs_of={scale: of.get(scale, name) for scale in runs},
        compare=[(a, b) for a, b in content.get("compare", [])],
        metrics=list(content.get("metrics", ["*"])),
        drawn=list(content.get("drawn", [])),
    )


def _runs(scale: Mapping[str, Any], where: str) -> list[Run]:
    _known(scale, SCALE_KEYS, where)
    common = flat(scale.get("common", []))
    seeds = tuple(scale.get("seeds", [0]))
    found = []
    for name, given in scale["runs"].items():
        about = given if isinstance(given, Mapping) else {"overrides": given}
        _known(about, RUN_KEYS, f"{where}, {name}")
        command = about.get("command", "train")
        if command not in COMMANDS:
            raise ValueError(f"{where}, {name}: command is one of {', '.join(COMMANDS)}")
        key = "arguments" if command == "bench" else "overrides"
        if {"arguments", "overrides"} & {*about} - {key}:
            raise ValueError(f"{where}, {name}: adaptok {command} has {key}")
        more = flat(about.get(key, []))
        chosen = more if command == "bench" else [*common, *more]
        found.append(Run(name, command, tuple(chosen), seeds, about.get("like", name)))
    return found


def flat(items: Iterable[Any]) -> list[str]:
    """A nested list of words as one list."""
    out: list[str] = []
    for item in items:
        out += flat(item) if isinstance(item, list) else [str(item)]
    return out


def _known(given: Mapping[str, Any], keys: set[str], where: str) -> None:
    if unknown := sorted({*given} - keys):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(sorted(keys))}")


def expected(experiment: Experiment) -> list[dict[str, str]]:
    """The rows of expected.csv."""
    with (experiment.folder / "expected.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != EXPECTED:
            raise ValueError(f"{experiment.name}/expected.csv needs the columns {EXPECTED}")
        return list(reader)
