"""Draws fields, scores and cells.

Arrays are drawn like images: first space axis down, second to the right. A 1D field is a line, a 3D
field the plane through the middle of an axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from adaptok.cells import Cells
from adaptok.plots.style import COLORS, style, subplots


def planes(values: np.ndarray) -> dict[str, tuple[np.ndarray, int | None, int]]:
    """Cuts an array into planes: title -> (array of 1 or 2 axes, axis and index of the cut)."""
    if values.ndim < 3:
        return {"": (values, None, 0)}
    cuts = {}
    for axis, letter in enumerate("xyz"):
        index = values.shape[axis] // 2
        cuts[f"{letter} = {index}"] = (values.take(index, axis), axis, index)
    return cuts


def draw_values(ax: Axes, values: np.ndarray, *, limits: tuple[float, float], cmap: str) -> Any:
    """Draws one plane, or a line in 1D; returns the image for a color bar, None in 1D."""
    if values.ndim == 1:
        ax.plot(np.arange(len(values)) + 0.5, values, color=COLORS[0], linewidth=1)
        ax.set(xlim=(0, len(values)), ylim=limits)
        return None
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=0.4, color="0.6")
    extent = (0, values.shape[1], values.shape[0], 0)
    low, high = limits
    return ax.imshow(values, cmap=cmap, vmin=low, vmax=high, extent=extent, interpolation="nearest")


def draw_cells(
    ax: Axes,
    cells: Cells,
    *,
    sample: int = 0,
    frame: int = 0,
    cut: tuple[int, int] | None = None,
    color: str = "black",
    linewidth: float | None = None,
) -> int:
    """Outlines the cells of one sample and frame; returns their number.

    Args:
        cut: (space axis, grid index) of the plane through a 3D tiling.
        linewidth: in points; by default it decreases with the number of cells.
    """
    start, end = cells.cu_seqlens[sample].item(), cells.cu_seqlens[sample + 1].item()
    origin = cells.origin[start:end].cpu().numpy()
    size = cells.size[start:end].cpu().numpy()
    axes = list(range(1, origin.shape[1]))
    inside = (origin[:, 0] <= frame) & (frame < origin[:, 0] + size[:, 0])
    if cut is not None:
        axis, index = cut[0] + 1, cut[1]
        inside &= (origin[:, axis] <= index) & (index < origin[:, axis] + size[:, axis])
        axes.remove(axis)
    origin, size = origin[inside][:, axes], size[inside][:, axes]
    if linewidth is None:
        linewidth = float(np.clip(8 / np.sqrt(len(origin) + 1), 0.15, 0.6))
    if origin.shape[1] == 1:
        edges = np.unique(np.concatenate([origin, origin + size]))
        ax.vlines(edges, *ax.get_ylim(), color=color, linewidth=linewidth, alpha=0.5)
        return len(origin)
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]])
    outlines = origin[:, None, :] + corners * size[:, None, :]
    # The first space axis points down: it is the second coordinate of the picture.
    ax.add_collection(LineCollection(list(outlines[..., ::-1]), colors=color, linewidths=linewidth))
    return len(origin)


def color_scale(values: np.ndarray) -> tuple[tuple[float, float], str]:
    """Chooses limits and color map: diverging around 0 if the values have both signs."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low < 0 < high and min(-low, high) > 0.1 * max(-low, high):
        # Symmetric, and robust to a few extreme points.
        top = float(np.nanquantile(np.abs(values), 0.999)) or max(-low, high)
        return (-top, top), "RdBu_r"
    return (low, high if high > low else low + 1), "viridis"


def cells_figure(
    values: np.ndarray, tilings: Mapping[str, Cells], *, title: str = "", sample: int = 0
) -> Figure:
    """Draws cells over the field they refine: a column per tiling, a row per plane.

    Args:
        values: ``(*space)``, the field (or one channel of it).
        tilings: cells by caption ("budget 256"); the number of tokens is appended.
    """
    cuts = planes(values)
    limits, cmap = color_scale(values)
    with style():
        figure, axes = _grid(len(cuts), len(tilings), next(iter(cuts.values()))[0])
        for row, (where, (plane, axis, index)) in enumerate(cuts.items()):
            for column, (caption, cells) in enumerate(tilings.items()):
                ax = axes[row, column]
                draw_values(ax, plane, limits=limits, cmap=cmap)
                cut = None if axis is None else (axis, index)
                color = "white" if cmap == "viridis" and plane.ndim == 2 else "black"
                last = cells.shape[0] - 1
                draw_cells(ax, cells, sample=sample, frame=last, cut=cut, color=color)
                if row == 0:
                    count = int(cells.cu_seqlens[sample + 1] - cells.cu_seqlens[sample])
                    ax.set_title(f"{caption}\n{count} tokens" if caption else f"{count} tokens")
            axes[row, 0].set_ylabel(where)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def trajectory_figure(
    fields: Mapping[str, np.ndarray], times: Sequence[float], *, title: str = ""
) -> Figure:
    """Draws fields over time: a column per field with colors of its own, a row per time.

    Unlike elsewhere the first space axis points right and the second up, so that a fluid heated
    from below is hot at the bottom.

    Args:
        fields: name -> ``(t, *space)``; a 3D field is cut in the middle of its last axis.
        times: times of the rows, (t,).
        title: title of the figure.
    """
    flat = {k: v if v.ndim < 4 else v[..., v.shape[-1] // 2] for k, v in fields.items()}
    shape = next(iter(flat.values())).shape[1:]
    panel = min(1.4, 7.5 / len(flat))  # inches
    width, height = (panel * (n / max(shape)) ** 0.5 for n in (shape[0], shape[-1]))
    size = (len(flat) * width * 1.05 + 0.3, len(times) * height * 1.05 + 0.6)
    with style(), matplotlib.rc_context({"font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7}):
        figure, axes = subplots(len(times), len(flat), size)
        for column, (name, values) in enumerate(flat.items()):
            limits, cmap = color_scale(values)
            for row, frame in enumerate(values):
                turned = frame if frame.ndim == 1 else frame.T[::-1]
                draw_values(axes[row, column], turned, limits=limits, cmap=cmap)
            axes[0, column].set_title(f"{name}\n{limits[0]:.3g} to {limits[1]:.3g}")
        for row, time in enumerate(times):
            axes[row, 0].set_ylabel(f"t = {time:.3g}")
        figure.suptitle(title, fontsize=8)
    return figure


def panels_figure(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    *,
    title: str = "",
    share: str = "row",
    positive: Sequence[str] = (),
) -> Figure:
    """Draws a grid of fields with a color bar each: row name -> column name -> ``(*space)``.

    Fields in 3D show the plane through the middle of the first axis. A row may lack columns.

    Args:
        share: "row" or "column": which panels share their colors.
        positive: columns such as errors and scores, which share other colors that start at 0.
    """
    flat = {r: {c: first_plane(v) for c, v in columns.items()} for r, columns in rows.items()}
    names = list(max(flat.values(), key=len))
    like = next(iter(next(iter(flat.values())).values()))
    with style():
        figure, axes = _grid(len(flat), len(names), like, bars=True)
        for axs, (label, columns) in zip(axes, flat.items(), strict=True):
            for ax, name in zip(axs, names, strict=True):
                if name not in columns:
                    ax.set_axis_off()
                    continue
                alike = [c for c in columns if (c in positive) == (name in positive)]
                row = [columns[c] for c in alike]
                column = [other[name] for other in flat.values() if name in other]
                shared = np.stack(row if share == "row" else column)
                limits, cmap = color_scale(shared)
                if name in positive:
                    limits, cmap = (0.0, float(shared.max()) or 1.0), "magma"
                image = draw_values(ax, columns[name], limits=limits, cmap=cmap)
                if image is not None:
                    bar = figure.colorbar(image, ax=ax, shrink=0.85, aspect=25, pad=0.02)
                    bar.outline.set_visible(False)  # type: ignore[operator]
                    bar.ax.tick_params(labelsize=7, length=2)
                    bar.formatter.set_powerlimits((-2, 3))  # type: ignore[attr-defined]
            axs[next(i for i, name in enumerate(names) if name in columns)].set_ylabel(label)
        for ax, name in zip(axes[0], names, strict=True):
            ax.set_title(name)
        if title:
            figure.suptitle(title, fontsize=10)
    return figure


def prediction_figure(
    truth: np.ndarray, prediction: np.ndarray, fields: Sequence[str], *, title: str = ""
) -> Figure:
    """Draws truth, prediction and absolute error of every field, each ``(c, *space)``."""
    rows = {
        name: {"truth": t, "prediction": p, "|error|": np.abs(p - t)}
        for name, t, p in zip(fields, truth, prediction, strict=True)
    }
    return panels_figure(rows, title=title, positive=("|error|",))


def first_plane(values: np.ndarray) -> np.ndarray:
    """Returns the first of `planes`."""
    return next(iter(planes(values).values()))[0]


def _grid(
    rows: int, columns: int, like: np.ndarray, *, bars: bool = False
) -> tuple[Figure, np.ndarray]:
    """Makes a grid of axes whose panels have the aspect of the array that they show."""
    aspect = 0.45 if like.ndim == 1 else like.shape[0] / like.shape[1]
    width = 2.4 if aspect > 0.6 else 3.6
    height = width * aspect + 0.1
    size = ((width + 0.4 * bars) * columns + 0.3, height * rows + 0.4)
    return subplots(rows, columns, size)
