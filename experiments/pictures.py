"""Pictures of the finished runs of an experiment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from listed import Experiment, Run

from adaptok import plots
from adaptok.plots.residuals import residual_spectra_figure

SURROGATE = ("val/vrmse", "validation VRMSE")
CLASSIFIER = ("val/error", "validation error")


def draw(experiment: Experiment, scale: str, out: Path, target: Path) -> None:
    """Draws learning curves per data set, and rollouts and residual spectra if there are any;
    copies the pictures of scripts.

    Learning curves belong to the experiment that owns the runs; errors that its metrics leave out
    have no picture.
    """
    done: dict[str, list[tuple[Run, int, Path, dict[str, Any]]]] = {}
    for run in experiment.runs[scale]:
        for seed in run.seeds:
            file = run.folder(out, seed) / "metrics.json"
            if run.command in ("train", "finetune") and file.is_file():
                results = json.loads(file.read_text())
                done.setdefault(results.get("data", ""), []).append(
                    (run, seed, file.parent, results)
                )
            if run.command == "script" and run.owner == experiment.name:
                for picture in run.folder(out, seed).glob("*.png"):
                    shutil.copy(picture, target)
    keeps = " ".join(experiment.metrics)
    for data, runs in done.items():
        end = f"_{data}" if len(done) > 1 else ""
        if any(run.owner == experiment.name for run, *_ in runs):
            curves: dict[str, list[Path]] = {}
            for run, _, folder, _ in runs:
                curves.setdefault(run.name, []).append(folder)
            metric = CLASSIFIER if "classes" in runs[0][3] else SURROGATE
            figure = plots.learning_curve_figure(curves, metric)
            plots.save(figure, target / f"learning_curves{end}.png", dpi=120, small=True)
        rolled = _rollouts(experiment, runs)
        if rolled and ("vrmse_step" in keeps or "*" in experiment.metrics):
            lines = {k: _values(v["mean"]) for k, v in rolled.items()}
            lines["persistence"] = _values(runs[0][3]["persistence"]["rollout"]["mean"])
            figure = plots.rollout_figure(lines)
            plots.save(figure, target / f"rollouts{end}.png", dpi=120, small=True)
        if rolled and ("harmonics" in keeps or "*" in experiment.metrics):
            figure = residual_spectra_figure(rolled, runs[0][3]["patch_size"])
            plots.save(figure, target / f"residual_spectra{end}.png", dpi=70, small=True)


def _rollouts(experiment: Experiment, runs: list[Any]) -> dict[str, Any]:
    """Finds rollouts of the first seed of the drawn runs, at the last two settings of each."""
    found = {}
    for run, seed, _, results in runs:
        if seed != run.seeds[0] or (experiment.drawn and run.name not in experiment.drawn):
            continue
        for row in results.get("settings", [])[-2:]:
            if "rollout" in row:
                short = row["label"].split(" ")[0]
                found[f"{run.name}, {short}" if row.get("setting") else run.name] = row["rollout"]
    return found


def _values(errors: list[float | None]) -> list[float]:
    return [float("nan") if error is None else error for error in errors]
