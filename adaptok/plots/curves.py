"""Draws learning curves and errors of rollouts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptok.plots.style import legend_beside, style, subplots
from adaptok.utils.tables import read_metrics


def learning_curve_figure(
    runs: str | Path | Mapping[str, str | Path | Sequence[str | Path]],
    metric: tuple[str, str] = ("val/vrmse", "validation VRMSE"),
) -> Figure:
    """Draws training loss (where one was logged) and a validation metric against the step.

    Persistence on the validation split is a dashed line, where it was logged.

    Args:
        runs: a run folder or its ``metrics.csv``, or several by caption; runs under one caption
            (seeds) look alike.
        metric: name of the validation metric in the file, and its caption.
    """
    named = runs if isinstance(runs, Mapping) else {"": runs}
    read = {
        caption: [read_metrics(p) for p in ([given] if isinstance(given, str | Path) else given)]
        for caption, given in named.items()
    }
    everything = [row for alike in read.values() for rows in alike for row in rows]
    shown = {"train/loss": "training loss", metric[0]: metric[1]}
    if not any("train/loss" in row for row in everything):  # fewer steps than between two lines
        del shown["train/loss"]
    with style():
        figure, (axes,) = subplots(1, len(shown), (3.4 * len(shown), 2.6))
        looks = itertools.cycle(matplotlib.rcParams["axes.prop_cycle"])
        for (caption, alike), look in zip(read.items(), looks, strict=False):
            for i, rows in enumerate(alike):
                for ax, key in zip(axes, shown, strict=True):
                    _draw(ax, rows, key, look | {"label": None if i else caption})
        for ax, label in zip(axes, shown.values(), strict=True):
            ax.set(xlabel="step", ylabel=label)
            ax.grid(alpha=0.25, linewidth=0.5, which="both")
        known = [row["val/persistence"] for row in everything if "val/persistence" in row]
        if known:
            axes[-1].axhline(known[-1], color="0.45", linestyle="--", linewidth=1)
            where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
            axes[-1].annotate("persistence", (1, known[-1]), fontsize=7, color="0.45", **where)
        if len(named) > 1:
            legend_beside(figure, axes[0])
    return figure


def _draw(ax: Axes, rows: Sequence[Mapping[str, float]], key: str, look: dict[str, Any]) -> None:
    points = sorted((r["step"], r[key]) for r in rows if key in r and "step" in r)
    steps, values = zip(*points, strict=True) if points else ((), ())
    ax.plot(steps, values, marker="o" if len(points) < 30 else None, markersize=3, **look)
    if values and max(values) > 10 * min(values) > 0:
        ax.set_yscale("log")


def rollout_figure(curves: Mapping[str, Sequence[float]], *, title: str = "") -> Figure:
    """Draws VRMSE against the rollout step, a line per setting, "persistence" gray and dashed."""
    with style():
        figure, ((ax,),) = subplots(1, 1, (4.2, 2.9))
        for label, values in curves.items():
            (line,) = ax.plot(range(1, len(values) + 1), values, label=label)
            if label == "persistence":
                line.set(color="0.45", linestyle="--")
        finite = [v for values in curves.values() for v in values if np.isfinite(v) and v > 0]
        if finite and max(finite) > 20 * min(finite):
            ax.set_yscale("log")
        ax.set(xlabel="rollout step", ylabel="VRMSE", title=title)
        ax.set_xlim(1, max(max(len(v) for v in curves.values()), 2))
        ax.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[attr-defined]
        ax.grid(alpha=0.25, linewidth=0.5)
        legend_beside(figure, ax)
    return figure
