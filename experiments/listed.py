"""Reads and checks experiment.yaml; see experiments/README.md."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SCALES = ("full", "small")
WORDS = ("bench", "script")  # commands with plain arguments that write a table
COMMANDS = ("train", "finetune", "eval", *WORDS)
KEYS = {"claim", "source", "lists", "scales", "runs_of", "only", "compare", "metrics", "drawn"}
SCALE_KEYS = {"seeds", "common", "runs"}
RUN_KEYS = {"overrides", "arguments", "command", "like", "of"}
EXPECTED = ["run", "setting", "metric", "value", "tolerance", "ours", "source"]


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        name: of the run.
        command: of adaptok.
        overrides: of that command, those of all runs first; for a benchmark or a script, its
            arguments.
        seeds: one run each.
        like: the full-size run with the published number to compare with.
        owner: experiment that the run belongs to.
        scale: full or small.
    """

    name: str
    command: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    like: str
    owner: str
    scale: str

    @property
    def sets(self) -> list[str]:
        """Choices of data; several if one model is trained on all of them."""
        given = [o.partition("=")[2] for o in self.overrides if o.startswith("data=")]
        return [name.strip() for name in given[-1].strip("[]").split(",")] if given else []

    def folder(self, out: Path, seed: int) -> Path:
        return out / self.owner / self.scale / self.name / f"seed_{seed}"

    def words(self, out: Path) -> list[str]:
        """Returns the overrides with ``{root}`` and ``{out}`` filled in: the folders of all runs
        and of the experiment's runs.
        """
        places = {"{root}": out, "{out}": out / self.owner / self.scale}
        words = list(self.overrides)
        for name, place in places.items():
            words = [word.replace(name, str(place)) for word in words]
        return words


@dataclass(frozen=True)
class Experiment:
    """A folder of experiments/.

    Attributes:
        folder: with its files.
        claim: one sentence.
        source: paper and table; "ours" for our studies, which expect no numbers.
        runs: by scale.
        compare: pairs of runs, each with its setting or "", whose ratio of errors is the claim.
        metrics: patterns of what results.csv keeps.
        drawn: runs in the pictures of rollouts and spectra; empty means all.
    """

    folder: Path
    claim: str
    source: str
    runs: Mapping[str, list[Run]]
    compare: list[tuple[tuple[str, str], tuple[str, str]]]
    metrics: list[str]
    drawn: list[str]

    @property
    def name(self) -> str:
        return self.folder.name


def names() -> list[str]:
    """Lists all experiments."""
    return sorted(path.parent.name for path in HERE.glob("*/experiment.yaml"))


def read(name: str, base: Path = HERE) -> Experiment:
    """Reads an experiment.

    Raises:
        ValueError: there is no such experiment, or a key or value is unknown.
    """
    path = base / name / "experiment.yaml"
    if not path.is_file():
        raise ValueError(f"no experiment {name!r}; there are: {', '.join(names())}")
    content = yaml.safe_load(path.read_text())
    _known(content, KEYS, name)
    if not content.get("claim"):
        raise ValueError(f"{name} needs a claim")
    _known(content.get("scales", {}), set(SCALES), name)
    runs = {s: _runs(v, name, s, base) for s, v in content.get("scales", {}).items()}
    of = content.get("runs_of", {})
    of = dict.fromkeys(SCALES, of) if isinstance(of, str) else of
    _known(of, set(SCALES), f"{name}, runs_of")
    for scale, other in of.items():
        if scale in runs:
            raise ValueError(f"{name} has runs of its own at scale {scale}, and those of {other}")
        if found := read(other, base).runs.get(scale):
            chosen = content.get("only", ["*"])
            runs[scale] = [r for r in found if any(fnmatch(r.name, o) for o in chosen)]
    return Experiment(
        folder=path.parent,
        claim=content["claim"],
        source=content.get("source", "ours"),
        runs=runs,
        compare=[(_side(a), _side(b)) for a, b in content.get("compare", [])],
        metrics=list(content.get("metrics", ["*"])),
        drawn=list(content.get("drawn", [])),
    )


def _runs(about: Mapping[str, Any], owner: str, scale: str, base: Path) -> list[Run]:
    where = f"{owner}, {scale}"
    _known(about, SCALE_KEYS, where)
    common = flat(about.get("common", []))
    seeds = tuple(about.get("seeds", [0]))
    found = []
    for name, given in about["runs"].items():
        run = given if isinstance(given, Mapping) else {"overrides": given}
        _known(run, RUN_KEYS, f"{where}, {name}")
        if "of" in run:
            theirs = {r.name: r for r in read(run["of"], base).runs[scale]}
            if name not in theirs or len(run) > 1:
                raise ValueError(f"{where}: {name} is no run of {run['of']}, or has more than `of`")
            found.append(theirs[name])
            continue
        command = run.get("command", "train")
        if command not in COMMANDS:
            raise ValueError(f"{where}, {name}: command is one of {', '.join(COMMANDS)}")
        key = "arguments" if command in WORDS else "overrides"
        if {"arguments", "overrides"} & {*run} - {key}:
            raise ValueError(f"{where}, {name}: adaptok {command} has {key}")
        more = flat(run.get(key, []))
        chosen = tuple(more if command in WORDS else [*common, *more])
        like = run.get("like", name)
        found.append(Run(name, command, chosen, seeds, like, owner, scale))
    return found


def flat(items: Iterable[Any]) -> list[str]:
    """Flattens a nested list of words."""
    out: list[str] = []
    for item in items:
        out += flat(item) if isinstance(item, list) else [str(item)]
    return out


def _side(text: str) -> tuple[str, str]:
    run, _, setting = text.partition(" ")
    return run, setting


def _known(given: Mapping[str, Any], keys: set[str], where: str) -> None:
    if unknown := sorted({*given} - keys):
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(sorted(keys))}")


def expected(experiment: Experiment) -> list[dict[str, str]]:
    """Reads the rows of expected.csv."""
    path = experiment.folder / "expected.csv"
    if experiment.source == "ours" and not path.is_file():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != EXPECTED:
            raise ValueError(f"{experiment.name}/expected.csv needs the columns {EXPECTED}")
        return list(reader)
