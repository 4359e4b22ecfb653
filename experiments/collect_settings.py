"""Collects runs that were tested at several settings: `python experiments/collect_settings.py RUNS
FOLDER [NAME ...]`.

RUNS is a folder of run folders as experiments/run_list.py leaves it. Prints test VRMSE, a row per
run and a column per setting. Into FOLDER go results.csv (a row per run and setting), rollouts.csv
(and per step), learning_curves.png, rollouts.png and residual_spectra.png; the last two of the
named runs only, at the last two settings of each. What is about rollouts is left out without any.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from adaptok import plots
from adaptok.evaluation import table
from adaptok.residual_plots import residual_spectra_figure

BANDS = ("low", "middle", "high")
Row = dict[str, Any]


def read_runs(runs: Path) -> dict[str, Row]:
    """Results of the finished runs, in the order in which they were made."""
    files = sorted(
        runs.glob("*/metrics.json"), key=lambda f: (f.parent / "config.yaml").stat().st_mtime
    )
    read = {file.parent.name: json.loads(file.read_text()) for file in files}
    for name, results in read.items():
        results["config"] = yaml.safe_load((runs / name / "config.yaml").read_text())
    return read


def one_step_rows(runs: dict[str, Row]) -> list[Row]:
    return [
        {
            "model": name,
            "setting": row["label"],
            "steps": results["config"]["trainer"]["max_steps"],
            "parameters": results["parameters"],
            "tokens": row["tokens"]["mean"],
            "vrmse": row["vrmse"]["mean"],
            **dict(zip(BANDS, row["spectral_nmse"], strict=True)),
            "persistence": results["persistence"]["vrmse"]["mean"],
        }
        for name, results in runs.items()
        for row in results["settings"]
    ]


def rollout_rows(runs: dict[str, Row]) -> list[Row]:
    rows = []
    for name, results in runs.items():
        for row in results["settings"]:
            rollout = row["rollout"]
            steps = range(len(rollout["mean"]))
            rows += [
                {
                    "model": name,
                    "setting": row["label"],
                    "step": step + 1,
                    "vrmse": rollout["mean"][step],
                    "persistence": results["persistence"]["rollout"]["mean"][step],
                    "harmonics": (rollout["patch_harmonics"] or [""] * len(steps))[step],
                    **dict(zip(BANDS, rollout["spectral_nmse"][step], strict=True)),
                }
                for step in steps
            ]
    return rows


def write_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            rounded = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(rounded)


def pivot(rows: list[Row]) -> str:
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    error = {(row["model"], row["setting"]): f"{row['vrmse']:.4f}" for row in rows}
    models = dict.fromkeys(row["model"] for row in rows)
    body = [[model, *(error.get((model, s), "") for s in settings)] for model in models]
    return table(["model", *settings], body)


def main(runs: Path, target: Path, drawn: list[str]) -> None:
    read = read_runs(runs)
    if not read:
        raise SystemExit(f"no finished run in {runs}")
    rows = one_step_rows(read)
    write_csv(rows, target / "results.csv")
    curves = plots.learning_curve_figure({name: runs / name for name in read})
    plots.save(curves, target / "learning_curves.png", dpi=120, small=True)
    if all("rollout" in results["persistence"] for results in read.values()):
        collect_rollouts(read, target, drawn)
    print(pivot(rows))


def collect_rollouts(read: dict[str, Row], target: Path, drawn: list[str]) -> None:
    write_csv(rollout_rows(read), target / "rollouts.csv")
    rolled = {
        f"{name}, {row['label'].split(' ')[0]}" if row["setting"] else name: row["rollout"]
        for name, results in read.items()
        if name in drawn or not drawn
        for row in results["settings"][-2:]
    }
    lines = {
        label: [float("nan") if v is None else v for v in rollout["mean"]]
        for label, rollout in rolled.items()
    }
    lines["persistence"] = next(iter(read.values()))["persistence"]["rollout"]["mean"]
    plots.save(plots.rollout_figure(lines), target / "rollouts.png", dpi=120, small=True)
    period = next(iter(read.values()))["patch_size"]
    spectra = residual_spectra_figure(rolled, period)
    plots.save(spectra, target / "residual_spectra.png", dpi=70, small=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
