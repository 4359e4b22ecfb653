"""Pictures of the headline study: `python experiments/headline/draw.py OUT`.

OUT is that of reproduce.py. Writes to docs/images. Points are means over finished seeds, bars
the sample standard deviation.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import yaml
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from adaptok.plots.style import COLORS
from adaptok.utils.tables import read_metrics

HERE = Path(__file__).parent
TOKENIZERS = ("uniform", "iap", "apt", "matey", "ckm", "csm")
MARKS = dict(zip(TOKENIZERS, "osD^vX", strict=True))
COLOUR = dict(zip(TOKENIZERS, COLORS, strict=False))
TITLES = {"maze": "acoustic maze, 64², 2D", "blast": "blast wave, 32³, 3D"}
COSTS = ("tokens per sample (mean over the test split)", "GFLOP per sample and forward pass")
Study = dict[str, list[tuple[Path, dict[str, Any]]]]


def read(out: Path) -> Study:
    """Reads the finished seeds of each run."""
    listed = yaml.safe_load((HERE / "experiment.yaml").read_text())["scales"]["small"]["runs"]
    found: Study = {}
    for name in listed:
        for file in sorted((out / "headline" / "small" / name).glob("seed_*/metrics.json")):
            found.setdefault(name, []).append((file.parent, json.loads(file.read_text())))
    return found


def main_runs(study: Study, data: str) -> dict[str, tuple[str, int]]:
    """Returns tokenizer and budget of the runs of the main comparison."""
    names = {}
    for name in study:
        words = name.split("_")
        if words[0] == data and len(words) == 3 and words[2].isdigit():
            names[name] = (words[1], int(words[2]))
    return names


def plain_ticks(*axes: Axis) -> None:
    """Labels logarithmic axes with plain numbers: 1, 2, 5, 10 ..."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def spread(values: list[float]) -> tuple[float, float]:
    """Returns mean and sample standard deviation."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def error_against_cost(study: Study, path: Path) -> None:
    """Draws VRMSE against tokens and FLOPs, a row per data set."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained", sharey="row")
    for row, data in zip(axes, TITLES, strict=True):
        for name, (tokenizer, _) in main_runs(study, data).items():
            tests = [results["settings"][0] for _, results in study[name]]
            error, std = spread([test["vrmse"]["mean"] for test in tests])
            tokens = statistics.mean(test["tokens"]["mean"] for test in tests)
            flops = statistics.mean(test["flops"]["total"] for test in tests) / 1e9
            style = {"color": COLOUR[tokenizer], "marker": MARKS[tokenizer], "ms": 8, "ls": ""}
            for axis, x in zip(row, (tokens, flops), strict=True):
                known = axis.get_legend_handles_labels()[1]
                label = None if tokenizer in known else tokenizer
                axis.errorbar(x, error, yerr=std, label=label, capsize=2, **style)
        blank = [r[0][1]["persistence"]["vrmse"]["mean"] for n, r in study.items() if data in n]
        for axis, label in zip(row, COSTS, strict=True):
            axis.axhline(blank[0], color="0.5", ls="--", lw=1)
            axis.set(xscale="log", xlabel=label, title=TITLES[data])
            axis.set_ylim(top=blank[0] * 1.05)
            plain_ticks(axis.xaxis)
            axis.grid(alpha=0.3)
        row[0].set_ylabel("one-step VRMSE (lower is better)")
        where = {"xycoords": ("axes fraction", "data"), "va": "top", "color": "0.4"}
        row[0].annotate("persistence", (0.02, 0.995 * blank[0]), **where)
    axes[0, 1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def learning_curves(study: Study, path: Path) -> None:
    """Draws validation VRMSE against steps: a panel per set and budget, a line per tokenizer."""
    panels = sorted({(d, b) for d in TITLES for _, b in main_runs(study, d).values()}, reverse=True)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.4 * len(panels), 3.4), layout="constrained", squeeze=False
    )
    for axis, (data, budget) in zip(axes[0], panels, strict=True):
        for name, (tokenizer, own) in main_runs(study, data).items():
            if own != budget:
                continue
            for i, (folder, _) in enumerate(study[name]):
                points = [m for m in read_metrics(folder) if "val/vrmse" in m]
                steps, errors = zip(*((m["step"], m["val/vrmse"]) for m in points), strict=True)
                label = None if i else tokenizer
                axis.plot(steps, errors, color=COLOUR[tokenizer], lw=1, marker=".", label=label)
        axis.set(xlabel="training step", yscale="log", title=f"{data}, budget {budget}")
        plain_ticks(axis.yaxis)
        axis.grid(alpha=0.3, which="both")
    axes[0, 0].set_ylabel("validation VRMSE (lower is better)")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def rollouts(study: Study, path: Path) -> None:
    """Draws VRMSE against the rollout step at the larger budget, beside persistence."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, data in zip(axes, TITLES, strict=True):
        runs = main_runs(study, data)
        largest = max(budget for _, budget in runs.values())
        for name, (tokenizer, budget) in runs.items():
            if budget == largest:
                curves = [r["settings"][0]["rollout"]["mean"] for _, r in study[name]]
                means = [statistics.mean(column) for column in zip(*curves, strict=True)]
                steps = range(1, len(means) + 1)
                axis.plot(steps, means, color=COLOUR[tokenizer], marker=".", label=tokenizer)
        still = study[next(iter(runs))][0][1]["persistence"]["rollout"]["mean"]
        steps = range(1, len(still) + 1)
        axis.plot(steps, still, color="0.5", ls="--", label="persistence")
        axis.set(xlabel="rollout step", yscale="log", title=f"{TITLES[data]}, budget {largest}")
        plain_ticks(axis.yaxis)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("VRMSE (lower is better)")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(out: Path) -> None:
    study, target = read(out), HERE.parents[1] / "docs" / "images"
    error_against_cost(study, target / "headline_cost.png")
    learning_curves(study, target / "headline_learning.png")
    rollouts(study, target / "headline_rollouts.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/experiments"))
