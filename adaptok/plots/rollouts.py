"""Draws a rollout: a film, maps of the error and energy spectra."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import animation
from matplotlib.figure import Figure

from adaptok.plots.fields import color_scale, draw_values, panels_figure
from adaptok.plots.style import COLORS, style, subplots


def rollout_video(
    truth: np.ndarray,
    prediction: np.ndarray,
    fields: Sequence[str],
    path: str | Path,
    *,
    fps: int = 6,
) -> Path:
    """Writes truth, prediction and absolute error of every field, step after step.

    Colors span the values of the truth over all steps. The file is written under a temporary name
    first.

    Args:
        truth: (t, c, *space); in 3D the plane through the middle of the first axis is shown.
        prediction: of the same shape.
        path: ends in .gif, or in .mp4 if matplotlib finds ffmpeg.

    Raises:
        ValueError: the path has another ending, or is .mp4 and there is no ffmpeg.
    """
    path = Path(path)
    writer = _writer(path, fps)
    path.parent.mkdir(parents=True, exist_ok=True)
    if truth.ndim == 5:
        middle = truth.shape[2] // 2
        truth, prediction = truth[:, :, middle], prediction[:, :, middle]
    error = np.abs(prediction - truth)
    aspect = 0.45 if truth.ndim == 3 else truth.shape[2] / truth.shape[3]

    def update(step: int) -> list:
        for row, name in enumerate(fields):
            look = color_scale(truth[:, row])
            top = float(np.nanmax(error[:, row])) or 1.0
            panels = {
                "truth": (truth, *look),
                "prediction": (prediction, *look),
                "|error|": (error, (0.0, top), "magma"),
            }
            for ax, (title, (values, limits, cmap)) in zip(axes[row], panels.items(), strict=True):
                ax.clear()
                draw_values(ax, values[step, row], limits=limits, cmap=cmap)
                ax.set_title("" if row else title)
            axes[row, 0].set_ylabel(name)
        figure.suptitle(f"step {step + 1}", fontsize=10)
        return []

    with style():
        figure, axes = subplots(len(fields), 3, (7.2, 2.3 * aspect * len(fields) + 0.5))
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


def error_maps_figure(
    truth: np.ndarray, prediction: np.ndarray, fields: Sequence[str], *, columns: int = 4
) -> Figure:
    """Draws the absolute error of every field at up to `columns` evenly spaced steps.

    Args:
        truth: (t, c, *space).
        prediction: of the same shape.
        columns: number of steps to show, including the first and the last.
    """
    steps = np.unique(np.linspace(0, len(truth) - 1, columns).round().astype(int))
    error = np.abs(prediction - truth)
    captions = [f"step {step + 1}" for step in steps]
    rows = {
        name: dict(zip(captions, error[steps, i], strict=True)) for i, name in enumerate(fields)
    }
    return panels_figure(rows, title="absolute error", positive=captions)


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


def spectra_figure(truth: np.ndarray, prediction: np.ndarray, fields: Sequence[str]) -> Figure:
    """Draws energy against wavenumber at the first and the last step, truth dashed.

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
        axes[0].set_ylabel("energy (truth dashed)")
        axes[0].legend()
    return figure
