"""Draws a rollout: a film, a still, maps of the error and energy spectra."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import animation
from matplotlib.figure import Figure

from adaptok.cells import Cells
from adaptok.plots.drawing import (
    Cut,
    color_bar,
    color_of_cells,
    color_scale,
    cut_of,
    draw_behind,
    draw_cells,
    draw_values,
    name_axes,
)
from adaptok.plots.fields import panels_figure
from adaptok.plots.style import COLORS, legend_beside, style, subplots

ROUND_OFF = 1e-14  # of energies in single precision, relative to the largest


def rollout_video(
    truth: np.ndarray,
    prediction: np.ndarray,
    fields: Sequence[str],
    path: str | Path,
    *,
    fps: int = 6,
    cells: Sequence[Cells] = (),
    cut: Cut | None = None,
    title: str = "",
) -> Path:
    """Writes truth, prediction and absolute error of every field, step after step.

    Colors span the values of the truth over all steps. The file is written under a temporary name
    first.

    Args:
        truth: (t, c, *space).
        prediction: of the same shape.
        path: ends in .gif, or in .mp4 if matplotlib finds ffmpeg.
        cells: of each step, outlined on prediction and error.
        cut: plane to show in 3D; by default the one in which the truth deviates most.
        title: stands before the number of the step.

    Raises:
        ValueError: the path has another ending, or is .mp4 and there is no ffmpeg.
    """
    path = Path(path)
    writer = _writer(path, fps)
    path.parent.mkdir(parents=True, exist_ok=True)
    ndim = truth.ndim - 2
    if ndim == 3:
        cut = cut or cut_of(truth.reshape(-1, *truth.shape[2:]))
        assert cut is not None, "there are three axes"
        truth, prediction = cut.of(truth), cut.of(prediction)
        title = f"{title}, plane {cut}".removeprefix(", ")
    error = np.abs(prediction - truth)
    aspect = 0.45 if ndim == 1 else truth.shape[3] / truth.shape[2]
    width = min(2.4, 3.6 / aspect)

    def update(step: int) -> list:
        for row, name in enumerate(fields):
            look = color_scale(truth[:, row])
            top = float(np.nanmax(error[:, row])) or 1.0
            panels = {
                "truth": (truth, *look),
                "prediction": (prediction, *look),
                "|error|": (error, (0.0, top), "magma"),
            }
            for ax, (caption, (values, limits, cmap)) in zip(
                axes[row], panels.items(), strict=True
            ):
                ax.clear()
                draw_values(ax, values[step, row], limits=limits, cmap=cmap, cut=cut)
                if ndim == 1 and caption == "prediction":
                    draw_behind(ax, truth[step, row])
                if cells and caption != "truth":
                    color = color_of_cells(cmap, ndim)
                    last = cells[step].shape[0] - 1
                    draw_cells(ax, cells[step], frame=last, cut=cut, color=color)
                ax.set_title("" if row else caption)
            axes[row, 0].set_ylabel(name)
        name_axes(axes, ndim, cut)
        figure.suptitle(f"{title}\nstep {step + 1}".lstrip(), fontsize=8)
        return []

    with style():
        size = (3 * width + 0.5, (width * aspect + 0.15) * len(fields) + 0.7)
        figure, axes = subplots(len(fields), 3, size)
        update(0)
        for ax in axes.flat:
            for image in ax.images:
                color_bar(figure, image, ax)  # limits stay from step to step
        film = animation.FuncAnimation(figure, update, frames=len(truth), blit=False)
        temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
        film.save(temporary, writer=writer, dpi=100)
    os.replace(temporary, path)
    return path


def check_video(ending: str) -> None:
    """Raises ``ValueError`` if no film with this ending, "gif" or "mp4", can be made here."""
    _writer(Path(f"film.{ending}"), 1)


def _writer(path: Path, fps: int) -> animation.AbstractMovieWriter:
    if path.suffix == ".gif":
        return animation.PillowWriter(fps=fps)
    if path.suffix != ".mp4":
        raise ValueError(f"a video is a .gif or an .mp4, got {path.name}")
    if not animation.FFMpegWriter.isAvailable():
        raise ValueError("an .mp4 needs ffmpeg, which matplotlib does not find here; use .gif")
    return animation.FFMpegWriter(fps=fps)


def rollout_fields_figure(
    truth: np.ndarray,
    prediction: np.ndarray,
    fields: Sequence[str],
    *,
    columns: int = 5,
    cells: Sequence[Cells] = (),
    cut: Cut | None = None,
    title: str = "",
) -> Figure:
    """Draws truth, prediction and absolute error over time: a column per step, evenly spaced.

    Truth and prediction of a field share their colors; each error has its own.

    Args:
        truth: (t, c, *space).
        prediction: of the same shape.
        fields: names of the channels.
        columns: number of steps to show, including the first and the last.
        cells: of each step, outlined on prediction and error.
        cut: plane to show in 3D; by default the one in which the truth deviates most.
    """
    steps = spread(len(truth), columns)
    names = {f"step {step + 1}": step for step in steps}
    rows, shared, outlined, behind = {}, {}, {}, {}
    for i, field in enumerate(fields):
        both = (truth[steps, i], prediction[steps, i])
        for kind, values in zip(("truth", "prediction", "|error|"), (*both, None), strict=True):
            label = f"{field}\n{kind}"
            values = np.abs(both[1] - both[0]) if values is None else values
            rows[label] = dict(zip(names, values, strict=True))
            if kind != "|error|":
                shared[label] = color_scale(truth[steps, i])
            if kind == "prediction":
                behind |= {(label, name): truth[step, i] for name, step in names.items()}
            if kind != "truth" and cells:
                outlined |= {(label, name): cells[step] for name, step in names.items()}
    errors = [label for label in rows if label not in shared]
    look = {"cells": outlined, "cut": cut or cut_of(truth.reshape(-1, *truth.shape[2:]))}
    look |= {"looks": shared, "behind": behind}
    return panels_figure(rows, title=title, share="none", positive=errors, tall=9, **look)


def error_maps_figure(
    truth: np.ndarray,
    prediction: np.ndarray,
    fields: Sequence[str],
    *,
    columns: int = 4,
    cells: Sequence[Cells] = (),
    cut: Cut | None = None,
    title: str = "absolute error",
) -> Figure:
    """Draws the absolute error of every field at up to `columns` evenly spaced steps.

    Each map has colors of its own, as errors grow by orders of magnitude.

    Args:
        truth: (t, c, *space).
        prediction: of the same shape.
        fields: names of the channels.
        columns: number of steps to show, including the first and the last.
        cells: of each step, outlined.
        cut: plane to show in 3D; by default the one in which the truth deviates most.
    """
    steps = spread(len(truth), columns)
    error = np.abs(prediction - truth)
    names = {f"step {step + 1}": step for step in steps}
    rows = {field: dict(zip(names, error[steps, i], strict=True)) for i, field in enumerate(fields)}
    outlined = {(f, name): cells[step] for f in rows for name, step in names.items() if cells}
    look = {"cells": outlined, "cut": cut or cut_of(truth.reshape(-1, *truth.shape[2:]))}
    return panels_figure(rows, title=title, positive=[*names], share="none", tall=11, **look)


def spread(count: int, shown: int) -> list[int]:
    """Chooses numbers below `count`, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, shown).round().astype(int)).tolist()


def isotropic_spectrum(values: np.ndarray) -> np.ndarray:
    """Energy per whole wavenumber (waves per domain), (c, k); its sum is the mean square.

    Args:
        values: fields, (c, *space).
    """
    space = values.shape[1:]
    axes = tuple(range(1, values.ndim))
    power = np.abs(np.fft.fftn(values, axes=axes)) ** 2 / np.prod(space) ** 2
    waves = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in space), indexing="ij")
    shell = np.sqrt(sum(w**2 for w in waves)).round().astype(int).ravel()
    flat = power.reshape(len(values), -1)
    return np.stack([np.bincount(shell, weights=row) for row in flat])


def spectra_figure(
    truth: np.ndarray, prediction: np.ndarray, fields: Sequence[str], *, title: str = ""
) -> Figure:
    """Draws energy against wavenumber at the first and the last step, truth dashed.

    The axis ends where round-off begins.

    Args:
        truth: (t, c, *space).
        prediction: of the same shape.
    """
    with style():
        figure, (axes,) = subplots(1, len(fields), (2.8 * len(fields), 2.5))
        for number, step in enumerate(sorted({0, len(truth) - 1})):
            pair = (isotropic_spectrum(truth[step]), isotropic_spectrum(prediction[step]))
            for ax, name, true, ours in zip(axes, fields, *pair, strict=True):
                shown = slice(1, max(truth.shape[2:]) // 2 + 1)
                waves = np.arange(len(true))[shown]
                ax.plot(waves, true[shown], color=COLORS[number], linestyle="--", linewidth=1)
                ax.plot(waves, ours[shown], color=COLORS[number], label=f"step {step + 1}")
                ax.set(xscale="log", yscale="log", xlabel="wavenumber", title=name)
        for ax in axes:
            top = max(float(line.get_ydata().max()) for line in ax.lines)  # type: ignore
            bottom = ax.get_ylim()[0]
            if top > 0:
                ax.set_ylim(bottom=max(bottom, ROUND_OFF * top))
        axes[0].set_ylabel("energy (truth dashed)")
        if title:
            figure.suptitle(title, fontsize=9)
        legend_beside(figure, axes[0])
    return figure
