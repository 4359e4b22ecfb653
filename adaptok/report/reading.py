"""Run folders as records. A folder that cannot be read is named with the reason, never an error."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptok.report.configs import flat
from adaptok.report.files import modified, read_config, read_curve, read_json
from adaptok.report.parsing import chain, number, numbers, result_of
from adaptok.report.records import ACCURACY, VRMSE, Measure, Number, Problem, Result, Run, Runs

# Folders inside a run folder, and beside runs, that hold no run.
PARTS = {"checkpoints", "pictures", "model", "predictions", "wandb", "report", ".hydra"}
ABOUT = ("parameters", "seconds_per_training_step")


def read_runs(*folders: str | Path) -> Runs:
    """Reads every run in some folders and below them.

    A run folder is one with config.yaml, metrics.json or failed.json; the folders below the one of
    a pretraining run hold its results on each data set. Runs that go on, failed or diverged are
    there too, see `Run.status`.

    Args:
        folders: run folders, or folders of them at any depth.

    Raises:
        ValueError: a folder does not exist.
    """
    places = [Path(folder) for folder in folders]
    for place in places:
        if not place.is_dir():
            raise ValueError(f"{place} is no folder; give folders of runs, such as outputs")
    found = Runs([], [])
    seen: set[Path] = set()
    for place in places:
        before = len(found.runs) + len(found.problems)
        known = place.resolve() in seen
        for folder in _run_folders(place, found.problems, seen):
            _read(folder, found)
        if len(found.runs) + len(found.problems) == before and not known:
            found.problems.append(Problem(place, "no run in it"))
    return Runs(_named(found.runs), found.problems)


def _run_folders(place: Path, problems: list[Problem], seen: set[Path]) -> Iterator[Path]:
    """Folders of runs, in the order of their names; one without anything in it is a problem.

    Args:
        seen: folders that are known, by the name without links, which may form circles.
    """
    if place.resolve() in seen:
        return
    seen.add(place.resolve())
    try:
        entries = sorted(os.scandir(place), key=lambda entry: entry.name)
    except OSError as error:
        problems.append(Problem(place, f"cannot be read: {error.strerror}"))
        return
    names = {entry.name for entry in entries}
    if names & {"config.yaml", "metrics.json", "failed.json"}:
        yield place
    elif not names:
        problems.append(Problem(place, "empty"))
    elif ".hydra" in names and not _has_runs(place):
        problems.append(Problem(place, "no config.yaml: it stopped before it began"))
    for entry in entries:
        if entry.is_dir() and entry.name not in PARTS and not entry.name.startswith("."):
            yield from _run_folders(Path(entry.path), problems, seen)


def _has_runs(place: Path) -> bool:
    return any(".hydra" not in path.parts for path in place.glob("**/config.yaml"))


def _read(folder: Path, found: Runs) -> None:
    """Adds a run, or the problem with its folder."""
    try:
        config = read_config(folder, found.problems)
        results = read_json(folder / "metrics.json", found.problems)
        if results is None and config is not None and _children(folder):
            return  # a pretraining run: its children are the runs
        if not (folder / "config.yaml").exists() and results is not None:
            config = read_config(folder.parent, []) or {}
            if not config:
                found.problems.append(Problem(folder, "no config.yaml: known by its name only"))
        config = _as_asked(config or {}, folder)
        found.runs.append(_run(folder, config, results, found.problems))
    except Exception as error:  # whatever is in the files: one bad folder must not hide the others
        found.problems.append(Problem(folder, f"{type(error).__name__}: {error}"))


def _children(folder: Path) -> list[Path]:
    """Results of a pretraining run."""
    files = folder.glob("*/metrics.json")
    return [f.parent for f in files if not (f.parent / "config.yaml").exists()]


def _run(folder: Path, config: dict[str, Any], results: Any, problems: list[Problem]) -> Run:
    results = {} if results is None else results
    measure = ACCURACY if config.get("task") == "classify" or "classes" in results else VRMSE
    rows = [result_of(row) for row in results.get("settings") or () if isinstance(row, Mapping)]
    source = _source(results)
    curve = read_curve(folder, config, source, problems)
    if rows and (failure := read_json(folder / "failed.json", [])) is not None:
        error = failure.get("error", "unknown error")
        problems.append(Problem(folder, f"repeated and failed, these are older results: {error}"))
    status, note = _status(folder, config, rows, measure, curve)
    flattened = flat(_of_set(config, results.get("data")))
    return Run(
        folder=folder,
        name=folder.name,
        status=status,
        measure=measure,
        data=str(results.get("data") or flattened.get("data.name") or "unknown"),
        split=str(results.get("split", "test")),
        config=flattened,
        results=rows,
        reference=_reference(results, measure),
        reference_rollout=numbers(chain(results, "persistence", "rollout", "mean")),
        values=_values(results),
        environment=_environment(results),
        curve=curve,
        note=note,
        source=source,
        modified=modified(folder),
    )


def _status(
    folder: Path,
    config: Mapping[str, Any],
    rows: Sequence[Result],
    measure: Measure,
    curve: Sequence[Mapping[str, float]],
) -> tuple[str, str]:
    """One of the four, and at which settings it diverged, why it failed or how far it is."""
    if rows:
        bad = [row.label for row in rows if row.values.get(measure.key, 0.0) is None]
        return ("diverged", ", ".join(bad)) if bad else ("finished", "")
    failed = read_json(folder / "failed.json", [])
    if failed is not None:
        return "failed", str(failed.get("error", "unknown error"))
    steps = chain(config, "trainer", "max_steps")
    done = f"step {curve[-1]['step'] + 1:.0f}" if curve else "nothing logged yet"
    known = isinstance(steps, int) and steps > 0  # -1 is without end
    return "unfinished", f"{done} of {steps}" if curve and known else done


def _reference(results: Mapping[str, Any], measure: Measure) -> Number:
    if measure is ACCURACY:
        classes = results.get("classes")
        return 1 / len(classes) if isinstance(classes, list) and classes else None
    return number(chain(results, "persistence", "vrmse", "mean"))


def _values(results: Mapping[str, Any]) -> dict[str, Number]:
    """Numbers of the whole run."""
    values = {name: number(results[name]) for name in ABOUT if name in results}
    for group, prefix in (("training", "training_"), ("parameters_by_stage", "parameters_")):
        for name, value in (chain(results, group) or {}).items():
            values[f"{prefix}{name}"] = number(value)
    return values


def _environment(results: Mapping[str, Any]) -> dict[str, str]:
    known = chain(results, "environment")
    return {str(k): str(v) for k, v in known.items()} if isinstance(known, Mapping) else {}


def _of_set(config: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """The configuration with one of several data sets."""
    data = config.get("data")
    if not isinstance(data, list):
        return dict(config)
    chosen = [d for d in data if isinstance(d, Mapping) and d.get("name") == name]
    return {**config, "data": chosen[0] if chosen else {}}


def _as_asked(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with the settings of the schedule as they were typed.

    A run keeps what a budget became for its tokenizer, calibrated thresholds for example.
    """
    typed = chain(read_config(folder / ".hydra", []), "schedule", "settings")
    own = chain(config, "schedule", "settings")
    if not isinstance(typed, list) or not isinstance(own, list) or len(typed) != len(own):
        return config
    return {**config, "schedule": {**config["schedule"], "settings": typed}}


def _source(results: Mapping[str, Any]) -> Path | None:
    """Run folder of the checkpoint that was evaluated."""
    checkpoint = results.get("checkpoint")
    if not isinstance(checkpoint, str):
        return None
    path = Path(checkpoint)
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _named(runs: Sequence[Run]) -> list[Run]:
    """The runs with the shortest names that tell them apart: the ends of their paths."""
    paths = [run.folder.resolve().parts for run in runs]
    named = []
    for run, parts in zip(runs, paths, strict=True):
        others = [p for p in paths if p != parts]
        length = next(
            (n for n in range(1, len(parts)) if not any(p[-n:] == parts[-n:] for p in others)),
            len(parts),
        )
        named.append(replace(run, name="/".join(parts[-length:])))
    return named
