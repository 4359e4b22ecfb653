"""Reads run folders. A folder that cannot be read is named with the reason, never an error."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adaptok.report.runs import (
    ACCURACY,
    BANDS,
    VRMSE,
    LeftOut,
    Measure,
    Number,
    RunRecord,
    Runs,
    SettingResult,
)
from adaptok.utils.keys import flattened, is_small
from adaptok.utils.tables import read_metrics

# Folders inside run folders, and beside them, that hold no run.
SKIPPED = {"checkpoints", "pictures", "model", "predictions", "wandb", "report", ".hydra"}
FIRST = ("vrmse", "tokens", "spectral_nmse", "rollout")  # order of the columns
OTHERS = ("label", "setting", "controls")  # entries of a row that are no numbers
# Curves of a result -> where they are in the "rollout" of a row.
CURVES = {
    "rollout": ("mean",),
    "harmonics": ("patch_harmonics",),
    "period": ("patch_size",),
    "flicker": ("flicker",),
    "tokens": ("tokens",),
    "wavenumber": ("residual_spectrum", "wavenumber"),
    "bands": ("spectral_nmse",),
    "power": ("residual_spectrum", "power"),
}
Curve = Sequence[Mapping[str, float]]  # rows of metrics.csv
ABOUT = ("parameters", "seconds_per_training_step")
LONGEST = 2_000  # characters of an error
LONGEST_CHAIN = 100  # runs, each of which resumes the one before it
DEEPEST = 100  # mappings and lists inside one another, of a file in YAML


def read_runs(*folders: str | Path) -> Runs:
    """Reads every run in and below the folders.

    A run folder has a config.yaml, metrics.json or failed.json; the folders below that of a
    pretraining run hold its results on each data set. Unfinished, failed and diverged runs are
    read too, see `RunRecord.status`.

    Args:
        folders: run folders, or folders of them at any depth.

    Raises:
        ValueError: a folder does not exist.
    """
    places = [Path(folder) for folder in folders]
    for place in places:
        if not place.is_dir():
            raise ValueError(f"{place} is not a folder; give folders of runs, such as outputs")
    found = Runs([], [])
    seen: set[Path] = set()
    for place in places:
        before = len(found.runs) + len(found.problems)
        known = place.resolve() in seen
        for folder in _run_folders(place, found.problems, seen):
            _read(folder, found)
        if len(found.runs) + len(found.problems) == before and not known:
            found.problems.append(LeftOut(place, "no run in it"))
    return Runs(_named(found.runs), found.problems)


def _run_folders(place: Path, problems: list[LeftOut], seen: set[Path]) -> Iterator[Path]:
    """Yields folders of runs, sorted by name; reports empty folders as problems.

    Args:
        seen: resolved paths of the folders visited so far; links may form circles.
    """

    def unreadable(error: OSError) -> None:
        problems.append(LeftOut(Path(error.filename), f"cannot be read: {error.strerror}"))

    for path, children, files in os.walk(place, onerror=unreadable, followlinks=True):
        folder, names = Path(path), {*children, *files}
        within = [name for name in children if name not in SKIPPED and not name.startswith(".")]
        children[:] = sorted(within)
        if folder.resolve() in seen:
            children.clear()
            continue
        seen.add(folder.resolve())
        if names & {"config.yaml", "metrics.json", "failed.json"}:
            yield folder
        elif not names:
            problems.append(LeftOut(folder, "empty"))
        elif ".hydra" in names and all(".hydra" in f.parts for f in folder.glob("**/config.yaml")):
            problems.append(LeftOut(folder, "no config.yaml: it stopped before it began"))


def _read(folder: Path, found: Runs) -> None:
    """Adds the run, or the problem with its folder."""
    try:
        config = _mapping(folder / "config.yaml", found.problems)
        results = _mapping(folder / "metrics.json", found.problems)
        if config is not None and "samples" in config and "trainer" not in config:
            return  # of adaptok tokenize: pictures, no run
        if config is None and (folder / "failed.json").exists():
            config = _as_typed(folder)  # it failed before it wrote its own
        if results is None and config is not None:
            children = [file.parent for file in folder.glob("*/metrics.json")]
            if any(not (child / "config.yaml").exists() for child in children):
                return  # a pretraining run: its children are the runs
        if not (folder / "config.yaml").exists() and results is not None:
            config = _mapping(folder.parent / "config.yaml") or {}
            if not config:
                found.problems.append(LeftOut(folder, "no config.yaml: known by its name only"))
        config = _as_asked(config or {}, folder)
        found.runs.append(_run(folder, config, results, found.problems))
    except Exception as error:  # whatever is in the files: one bad folder must not hide the others
        found.problems.append(LeftOut(folder, f"{type(error).__name__}: {error}"))


def _run(folder: Path, config: dict[str, Any], results: Any, problems: list[LeftOut]) -> RunRecord:
    results = {} if results is None else results
    measure = ACCURACY if config.get("task") == "classify" or "classes" in results else VRMSE
    rows = [result_of(row) for row in results.get("settings") or () if isinstance(row, Mapping)]
    source = None
    if isinstance(checkpoint := results.get("checkpoint"), str):
        parents = Path(checkpoint).parents
        source = parents[1] if parents[0].name == "checkpoints" else parents[0]
    curve = _read_curve(folder, config, source, problems)
    failure = _mapping(folder / "failed.json")
    error = None if failure is None else str(failure.get("error", "unknown error"))[:LONGEST]
    if rows and error is not None:
        problems.append(LeftOut(folder, f"repeated and failed, these are older results: {error}"))
    steps = chain(config, "trainer", "max_steps")
    status, note = _status(rows, measure, error, curve, steps)
    if isinstance(data := config.get("data"), list):  # of several sets, the one that was tested
        # its folder has the name in the configuration, its results that in the files
        names = (folder.name, results.get("data"))
        named = (d for name in names for d in data if chain(d, "name") == name)
        config = config | {"data": next(named, {})}
    flat = dict(flattened(config))
    persistence = result_of(entries(results, "persistence"))
    references = {
        name: value
        for name, value in persistence.values.items()
        if name in persistence.metrics or name.startswith("rollout_")
    }
    if isinstance(classes := results.get("classes"), list) and classes:
        references = {ACCURACY.key: 1 / len(classes)}
    values = {name: number(results[name]) for name in ABOUT if name in results}
    for group, prefix in (("training", "training_"), ("parameters_by_stage", "parameters_")):
        values |= {f"{prefix}{k}": number(v) for k, v in entries(results, group).items()}
    written = [folder / name for name in ("metrics.json", "failed.json", "config.yaml")]
    return RunRecord(
        folder=folder,
        name=folder.name,
        status=status,
        measure=measure,
        data=str(results.get("data") or flat.get("data.name") or "unknown"),
        split=str(results.get("split", "test")),
        config=flat,
        results=rows,
        references=references,
        reference_rollout=persistence.curves.get("rollout", ()),
        values=values,
        environment={k: str(v) for k, v in entries(results, "environment").items()},
        curve=curve,
        higher=[str(name) for name in results.get("higher_is_better") or ()],
        note=note,
        source=source,
        modified=max((file.stat().st_mtime for file in written if file.exists()), default=0.0),
    )


def _status(
    rows: Sequence[SettingResult], measure: Measure, error: str | None, curve: Curve, steps: Any
) -> tuple[str, str]:
    """Returns the status, and where it diverged, why it failed or how far it is."""
    if rows:
        bad = [row.label for row in rows if row.values.get(measure.key, 0.0) is None]
        return ("diverged", ", ".join(bad)) if bad else ("finished", "")
    if error is not None:
        return "failed", error
    done = f"step {curve[-1]['step']:.0f}" if curve else "nothing logged yet"
    known = isinstance(steps, int) and steps > 0  # -1 is without end
    return "unfinished", f"{done} of {steps}" if curve and known else done


def _as_typed(folder: Path) -> dict[str, Any] | None:
    """Reads what Hydra composed; of references those to another key are followed.

    Of a run that resumes another one that is the default, and the other's configuration is read.
    """
    typed = _mapping(folder / ".hydra" / "config.yaml")
    if (resumed := _resumed(typed)) is not None:
        return _mapping(resumed / "config.yaml")

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v for k, v in ((k, resolved(v)) for k, v in value.items()) if v is not ...}
        if isinstance(value, str) and (key := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            return chain(typed, *key[1].split("."))
        return ... if isinstance(value, str) and "${" in value else value

    return None if typed is None else resolved(typed)


def _as_asked(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Restores the settings of the schedule as the user typed them.

    A run stores what a budget became for its tokenizer, for example calibrated thresholds. For one
    that resumes another, Hydra composed the default: its settings were typed for the other.
    """
    own = chain(config, "schedule", "settings")
    typed = chain(_typed_once(folder, own), "schedule", "settings")
    if not isinstance(typed, list) or not isinstance(own, list) or len(typed) != len(own):
        return config
    return {**config, "schedule": {**config["schedule"], "settings": typed}}


def _typed_once(folder: Path, settings: Any) -> dict[str, Any] | None:
    """Reads what Hydra composed for a run, or for the first of those that it goes on with; None if
    that is not found, or had other settings.
    """
    for _ in range(LONGEST_CHAIN):  # one may name itself
        typed = _mapping(folder / ".hydra" / "config.yaml")
        resumed = _resumed(typed)
        if resumed is None:
            return typed
        if chain(_mapping(resumed / "config.yaml"), "schedule", "settings") != settings:
            return None
        folder = resumed
    return None


def _resumed(typed: Mapping[str, Any] | None) -> Path | None:
    """Returns the run folder whose configuration was taken in place of what Hydra composed."""
    resume = chain(typed, "resume")
    if not isinstance(resume, str) or resume in ("", "auto") or resume.endswith(".ckpt"):
        return None
    return Path(resume)


def _named(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Gives each run the shortest end of its path that no other run has."""
    paths = [run.folder.resolve().parts for run in runs]
    ends = Counter(parts[-n:] for parts in set(paths) for n in range(1, len(parts) + 1))
    names = [
        next("/".join(parts[-n:]) for n in range(1, len(parts) + 1) if ends[parts[-n:]] == 1)
        for parts in paths
    ]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _read_curve(
    folder: Path, config: Mapping[str, Any], source: Path | None, problems: list[LeftOut]
) -> list[dict[str, float]]:
    """Rows of metrics.csv by step; an evaluated run takes those of its source."""
    own_config = (folder / "config.yaml").exists() or not config
    for place in (folder if own_config else folder.parent, source):
        if place is None or not place.is_dir():
            continue
        try:
            rows = [row for row in read_metrics(place) if math.isfinite(row.get("step", math.nan))]
        except (OSError, ValueError) as error:
            problems.append(LeftOut(place, f"metrics.csv cannot be read: {error}"))
            continue
        if rows:
            return sorted(rows, key=lambda row: row["step"])
    return []


def _mapping(path: Path, problems: list[LeftOut] | None = None) -> dict[str, Any] | None:
    """Reads a mapping; None if there is no such file or it is damaged, which is a problem."""
    is_json = path.suffix == ".json"
    try:
        text = path.read_text()
        content = json.loads(text) if is_json else _yaml(text)
    except FileNotFoundError:
        return None
    except Exception:  # of the file system, of the encoding or of the parser
        content = None
    if isinstance(content, dict) and is_small(content):
        return content
    if problems is not None:
        more = " or only half written" if is_json else ""
        problems.append(LeftOut(path.parent, f"{path.name} is damaged{more}"))
    return None


def _yaml(text: str) -> Any:
    """Parses YAML, ten times as fast where the parser in C is present.

    Raises:
        ValueError: deeper than any configuration, which would overflow the stack of that parser.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, loader):  # one after the other, without recursion
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
    return yaml.load(text, loader)


def chain(content: Any, *keys: str) -> Any:
    """Returns a nested entry, None if there is none."""
    for key in keys:
        if not isinstance(content, Mapping):
            return None
        content = content.get(key)
    return content


def entries(content: Any, *keys: str) -> dict[str, Any]:
    """Returns a nested mapping, empty for anything else."""
    found = chain(content, *keys)
    return {str(k): v for k, v in found.items()} if isinstance(found, Mapping) else {}


def number(value: Any) -> Number:
    """Returns a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def numbers(values: Any) -> list[Any]:
    """Returns a list of numbers, or of lists of them, empty for anything else."""
    if not isinstance(values, list):
        return []
    return [numbers(v) if isinstance(v, list) else number(v) for v in values]


def result_of(row: Mapping[str, Any]) -> SettingResult:
    """Reads a row of ``settings``: every mapping with a "mean" but the tokens is an error metric.

    Names of values: "x" for a number x and for the mean or total of a mapping x, "x_part" for its
    other numbers (``flops_processor``, ``vrmse_median``, ``auxiliary_drift``).
    """
    values: dict[str, Number] = {}
    fields: dict[str, Number] = {}
    metrics = [k for k, v in row.items() if isinstance(v, Mapping) and "mean" in v]
    metrics = [name for name in metrics if name not in ("tokens", "rollout")]
    for name, value in ({key: row[key] for key in FIRST if key in row} | dict(row)).items():
        if name in OTHERS or isinstance(value, bool):
            continue
        if name == "spectral_nmse":
            bands = zip(BANDS, numbers(value), strict=False)
            values |= {f"nmse_{band}": error for band, error in bands}
        elif name == "rollout":
            if steps := numbers(chain(value, "mean")):
                values |= {"rollout_last": steps[-1], "rollout_steps": float(len(steps))}
            if tokens := [n for n in numbers(chain(value, "tokens")) if n is not None]:
                values["rollout_tokens"] = statistics.fmean(tokens)
            windows = entries(value, "windows")
            values |= {f"rollout_{window}": number(error) for window, error in windows.items()}
        elif isinstance(value, Mapping):
            own = {f"{name}_{k}": number(v) for k, v in value.items()}
            kept = (f"{name}_mean", f"{name}_median") if name in metrics else ()
            own = {k: v for k, v in own.items() if v is not None or k in kept}
            renamed = {f"{name}_mean": name, f"{name}_total": name}
            values |= {renamed.get(k, k): v for k, v in own.items()}
            errors = entries(value, "fields") if name in metrics else {}
            fields |= {f"{name}.{field}": number(chain(v, "mean")) for field, v in errors.items()}
        elif name == "vrmse" or value is None or isinstance(value, (int, float)):
            values[name] = number(value)
    curves = {name: numbers(chain(row, "rollout", *keys)) for name, keys in CURVES.items()}
    return SettingResult(
        label=str(row.get("label") or "as built"),
        setting=entries(row, "setting"),
        values=values,
        curves={name: curve for name, curve in curves.items() if curve},
        fields=fields,
        metrics=metrics,
    )
