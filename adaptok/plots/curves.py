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
    """Draws training loss and a validation metric against the step.

    Args:
        runs: a run folder or its ``metrics.csv``, or several by caption; runs under one caption
            (seeds) look alike.
        metric: name of the validation metric in the file, and its caption.
    """
    named = runs if isinstance(runs, Mapping) else {"": runs}
    with style():
        figure, ((left, right),) = subplots(1, 2, (6.8, 2.6))
        looks = itertools.cycle(matplotlib.rcParams["axes.prop_cycle"])
        for (caption, given), look in zip(named.items(), looks, strict=False):
            for i, path in enumerate([given] if isinstance(given, str | Path) else given):
                rows = read_metrics(path)
                for ax, key in ((left, "train/loss"), (right, metric[0])):
                    _draw(ax, rows, key, look | {"label": None if i else caption})
        for ax, label in ((left, "training loss"), (right, metric[1])):
            ax.set(xlabel="step", ylabel=label)
            ax.grid(alpha=0.25, linewidth=0.5, which="both")
        if len(named) > 1:
            legend_beside(figure, left)
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
