"""Reads finished runs into rows of results.csv; see experiments/README.md."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from listed import WORDS, Experiment, Run

COLUMNS = ["scale", "run", "setting", "seed", "metric", "value", "persistence"]
BANDS = ("low", "middle", "high")
Row = dict[str, Any]


def finished(run: Run, folder: Path) -> list[Path]:
    """Lists the files of results of a run; empty if it is not finished."""
    if run.command in WORDS:
        return sorted(folder.glob("*.json"))
    own = folder / "metrics.json"
    if own.is_file():
        return [own]
    of_sets = sorted(folder.glob("*/metrics.json"))
    return of_sets if len(of_sets) >= len(run.sets) else []


def rows_of(run: Run, seed: int, folder: Path) -> list[Row]:
    """Returns all numbers of a finished run."""
    out = []
    for file in finished(run, folder):
        results = json.loads(file.read_text())
        name = run.name if file.parent == folder else f"{run.name}/{file.parent.name}"
        measured = _benchmark(results) if run.command in WORDS else _numbers(results)
        about = {"scale": run.scale, "run": name, "seed": seed}
        for setting, metric, value, blank in measured:
            row = {"setting": setting, "metric": metric, "value": value, "persistence": blank}
            out.append({**about, **row})
    return out


Measured = Iterator[tuple[str, str, Any, Any]]


def _numbers(results: Mapping[str, Any]) -> Measured:
    for key in ("parameters", "seconds_per_training_step"):
        if results.get(key) is not None:
            yield "", key, results[key], ""
    blank = results.get("persistence", {})
    for row in results["settings"]:
        label = "" if row["label"] == "as built" else row["label"]
        for metric, value in _of_setting(row):
            yield label, metric, value, _blank(blank, metric)
        for metric, value, still in _of_rollout(row.get("rollout"), blank.get("rollout")):
            yield label, metric, value, still


def _of_setting(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if "vrmse" in row:
        yield "vrmse", row["vrmse"]["mean"]
        yield "vrmse_median", row["vrmse"]["median"]
        yield from zip((f"spectral_{band}" for band in BANDS), row["spectral_nmse"], strict=True)
        for name, error in row["vrmse"]["fields"].items():
            yield f"vrmse_of_{name}", error["mean"]
    if isinstance(row.get("tokens"), Mapping):
        yield "tokens", row["tokens"]["mean"]
    for stage, flops in (row.get("flops") or {}).items():
        yield f"flops_{stage}", flops
    for key, value in row.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, value


def _blank(persistence: Mapping[str, Any], metric: str) -> Any:
    errors = persistence.get("vrmse")
    if not errors:
        return ""
    if metric.startswith("vrmse_of_"):
        return errors["fields"][metric.removeprefix("vrmse_of_")]["mean"]
    return {"vrmse": errors["mean"], "vrmse_median": errors["median"]}.get(metric, "")


def _of_rollout(rollout: Any, persistence: Any) -> Iterator[tuple[str, Any, Any]]:
    if not rollout:
        return
    for step, error in enumerate(rollout["mean"]):
        yield f"vrmse_step_{step + 1}", error, persistence["mean"][step]
    for window, error in rollout["windows"].items():
        yield f"vrmse_steps_{window}", error, persistence["windows"][window]
    for step, rise in enumerate(rollout.get("patch_harmonics") or []):
        yield f"harmonics_step_{step + 1}", rise, ""
    for step, bands in enumerate(rollout.get("spectral_nmse") or []):
        for band, error in zip(BANDS, bands, strict=True):
            yield f"spectral_{band}_step_{step + 1}", error, ""


def _benchmark(results: Mapping[str, Any]) -> Measured:
    """Reads a table: text columns are the setting, with the tokens if there are several numbers of
    them; number columns are metrics.
    """
    for row in results["rows"]:
        words = [v for k, v in row.items() if isinstance(v, str) and v and k != "field"]
        if "field" in row and "tokens" in row:
            words.append(f"{row['tokens']} tokens")
        for key, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield ", ".join(words), key, value, ""


def kept(experiment: Experiment, rows: Iterable[Row]) -> list[Row]:
    """Keeps the rows of the experiment's metrics."""
    wanted = experiment.metrics
    return [row for row in rows if any(fnmatch(row["metric"], w) for w in wanted)]


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a results.csv; empty if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Writes rows with six digits; rows of other runs stay in the file, in front."""
    mine = {(row["scale"], row["run"], str(row["seed"])) for row in rows}
    old = [r for r in read_rows(path) if (r["scale"], r["run"], r["seed"]) not in mine]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in [*old, *rows]:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
