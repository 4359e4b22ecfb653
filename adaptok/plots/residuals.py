"""Draws where in the spectrum the errors of rollouts lie, and patch artifacts.

Both figures take the "rollout" that `adaptok.evaluation.evaluate.evaluate` returns per setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from adaptok.plots.style import legend_beside, style, subplots

BANDS = ("low", "middle", "high")


def binned_errors_figure(rollouts: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws BSNMSE against the rollout step: a panel per band of wavenumbers, a line per setting.

    CKM and CSM, App. E.
    """
    with style():
        figure, (axes,) = subplots(1, 3, (7.6, 2.6), sharey=True)
        for label, rollout in rollouts.items():
            bands = np.array(rollout["spectral_nmse"], dtype=float)  # (steps, 3); None becomes nan
            for ax, values in zip(axes, bands.T, strict=True):
                ax.plot(range(1, len(bands) + 1), values, label=label)
        for ax, name in zip(axes, BANDS, strict=True):
            ax.set(yscale="log", xlabel="rollout step", title=f"{name} wavenumbers")
            ax.grid(alpha=0.25, linewidth=0.5)
        axes[0].set_ylabel("squared error / energy")
        if len(rollouts) > 1:
            legend_beside(figure, axes[0])
    return figure


def residual_spectra_figure(
    rollouts: Mapping[str, Mapping[str, Any]],
    patch_size: Sequence[int] | None = None,
    *,
    lines: int = 5,
) -> Figure:
    """Draws residual power against the wavenumber: a panel per setting, later steps darker.

    Dotted lines mark the harmonics of the patches; titles say the period, and how far the spectrum
    of the last step rises above its surroundings there (1: not at all). CKM and CSM, Sec. 4.2.

    Args:
        patch_size: period of the artifacts per space axis, of rollouts without one of their own.
        lines: number of steps to show, evenly spaced, including the first and the last.
    """
    with style():
        columns = min(len(rollouts), 4)
        rows = math.ceil(len(rollouts) / columns)
        figure, axes = subplots(rows, columns, (3.1 * columns, 2.6 * rows), sharey=True)
        for unused in axes.flat[len(rollouts) :]:
            unused.remove()
        for ax, (label, rollout) in zip(axes.flat, rollouts.items(), strict=False):
            waves = np.array(rollout["residual_spectrum"]["wavenumber"])
            power = np.array(rollout["residual_spectrum"]["power"], dtype=float)  # (steps, bands)
            shown = slice(1, np.searchsorted(waves, 0.5, side="right"))  # beyond it: corners only
            steps = np.unique(np.linspace(0, len(power) - 1, lines).round().astype(int))
            amounts = np.linspace(0.15, 1, len(steps))
            for step, shade in zip(steps, matplotlib.colormaps["viridis_r"](amounts), strict=True):
                ax.plot(waves[shown], power[step, shown], color=shade, label=f"step {step + 1}")
            size = rollout.get("patch_size") or patch_size
            for period in sorted(set(size or ())):
                for harmonic in range(1, period // 2 + 1):
                    ax.axvline(harmonic / period, color="0.6", linestyle=":", linewidth=0.7)
            peaks = rollout["patch_harmonics"]
            rise = ""
            if peaks and peaks[-1] is not None:
                named = " x ".join(map(str, size or ())) or "unknown"
                rise = f"\nat harmonics of patches {named}: × {peaks[-1]:.2f}"
            ax.set(yscale="log", xlabel="cycles per grid point", title=label + rise)
        for ax in axes[:, 0]:
            ax.set_ylabel("power of the residual")
        legend_beside(figure, axes[0, 0])
    return figure
