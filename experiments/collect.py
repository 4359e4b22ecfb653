"""Collects finished runs: `python experiments/collect.py RUNS [FOLDER]`.

RUNS is a folder of run folders (`outputs` or one of `multirun`); a folder without metrics.json is
named and left out. Prints a table, mean and sample standard deviation over seeds. Into FOLDER go
results.csv and one learning_curves_<data>.png per data set: validation VRMSE, one line per run.
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import yaml

from adaptok.plots import read_metrics

KNOBS = ("size", "min_size", "max_size", "budget", "ignore")


def read_run(folder: Path) -> dict[str, Any]:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    row, tokenizer = metrics["settings"][0], config["tokenizer"]
    model, decoder = config.get("model", {"name": "surrogate"})["name"], config["decoder"]["name"]
    knobs = " ".join(f"{k}={tokenizer[k]}" for k in KNOBS if tokenizer.get(k))
    return {
        "folder": folder,
        "data": config["data"]["name"],
        "model": model if model != "surrogate" else f"{tokenizer['name']} {knobs} + {decoder}",
        "seed": config["seed"],
        "steps": config["trainer"]["max_steps"],
        "parameters": metrics["parameters"],
        "tokens": row["tokens"]["mean"] if row["tokens"] else "",
        "vrmse": row["vrmse"]["mean"],
        "vrmse_median": row["vrmse"]["median"],
        "rollout_last": row["rollout"]["mean"][-1] if "rollout" in row else "",
        "persistence": metrics["persistence"]["vrmse"]["mean"],
        "s_per_training_step": round(metrics["seconds_per_training_step"], 4),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| data | model | n | tokens | VRMSE | last rollout step | persistence |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for data, model in dict.fromkeys((r["data"], r["model"]) for r in rows):
        own = [r for r in rows if (r["data"], r["model"]) == (data, model)]
        cells = [data, model, str(len(own)), f"{own[0]['tokens']:.0f}"]
        cells += [spread([r[key] for r in own]) for key in ("vrmse", "rollout_last")]
        cells.append(f"{own[0]['persistence']:.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    mean = statistics.mean(values)
    return f"{mean:.4f} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{mean:.4f}"


def draw_curves(rows: list[dict[str, Any]], target: Path) -> None:
    data = rows[0]["data"]
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for color, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        for row in (r for r in rows if r["model"] == model):
            points = [m for m in read_metrics(row["folder"]) if "val/vrmse" in m]
            label = model if row["seed"] == rows[0]["seed"] else None
            steps, errors = [m["step"] for m in points], [m["val/vrmse"] for m in points]
            axes.plot(steps, errors, color=f"C{color}", marker=".", label=label)
    axes.axhline(rows[0]["persistence"], color="0.5", ls="--", label="persistence (test)")
    axes.set(xlabel="training step", ylabel="validation VRMSE", title=data, yscale="log")
    axes.legend(fontsize=7)
    figure.savefig(target / f"learning_curves_{data}.png", dpi=120)


def main(runs: Path, target: Path | None) -> None:
    folders = sorted(p.parent for p in runs.rglob("config.yaml") if p.parent.name != ".hydra")
    finished = [f for f in folders if (f / "metrics.json").is_file()]
    for folder in folders:
        if folder not in finished:
            print(f"not finished, left out: {folder}", file=sys.stderr)
    rows = sorted(map(read_run, finished), key=lambda r: (r["data"], r["model"], r["seed"]))
    if not rows:
        raise SystemExit(f"no finished run in {runs}")
    if target is not None:
        for data in dict.fromkeys(row["data"] for row in rows):
            draw_curves([row for row in rows if row["data"] == data], target)
        with (target / "results.csv").open("w", newline="") as file:
            columns = [name for name in rows[0] if name != "folder"]
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
