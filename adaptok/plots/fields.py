"""Figures of fields, scores and cells; how one is drawn is in `adaptok.plots.drawing`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adaptok.cells import Cells
from adaptok.plots.drawing import (
    Cut,
    boxes_of,
    color_bar,
    color_of_cells,
    color_scale,
    cut_of,
    cuts_of,
    deviation,
    draw_behind,
    draw_cells,
    draw_values,
    name_axes,
)
from adaptok.plots.style import style, subplots

FRAMES = 4  # of a tiling that changes from frame to frame


class _Row(NamedTuple):
    """What a row of `cells_figure` shows."""

    label: str
    values: np.ndarray
    cut: Cut | None
    frame: int  # of the cells


def cells_figure(
    values: np.ndarray,
    tilings: Mapping[str, Cells],
    *,
    title: str = "",
    sample: int = 0,
    earlier: np.ndarray | None = None,
    cuts: Sequence[Cut] | None = None,
    image: bool = False,
) -> Figure:
    """Draws cells over the field they refine: a column per tiling.

    In 3D a row is the plane of the largest score along an axis. Where cells differ between frames
    a row is one of up to 4 frames.

    Args:
        values: ``(*space)``, the field (or one channel of it) in the last frame.
        tilings: cells by caption ("budget 256"); the number of tokens is appended.
        earlier: frames before the last one, ``(t - 1, *space)``.
        cuts: planes of a 3D field; by default those in which the field deviates most.
        image: `values` are ``(height, width)``, drawn with the first row on top.
    """
    frames = values[None] if earlier is None else np.concatenate([earlier, values[None]])
    if values.ndim == 3 and cuts is None:
        cuts = cuts_of(deviation(values))
    rows = _rows(frames, tilings, sample, cuts)
    limits, cmap = color_scale(np.stack([row.values for row in rows if row.cut == rows[0].cut]))
    if len({row.cut for row in rows}) > 1:
        limits, cmap = color_scale(values)
    color = color_of_cells(cmap, rows[0].values.ndim)
    with style():
        like, lines = rows[0].values, title.count("\n")
        figure, axes = grid(len(rows), len(tilings), like, bars=1, image=image, lines=lines)
        for axs, row in zip(axes, rows, strict=True):
            look = {"limits": limits, "cmap": cmap, "cut": row.cut, "image": image}
            for ax, cells in zip(axs, tilings.values(), strict=True):
                drawn = draw_values(ax, row.values, **look)
                frame = max(cells.shape[0] - (len(frames) - row.frame), 0)
                where = {"sample": sample, "frame": frame, "cut": row.cut}
                draw_cells(ax, cells, **where, color=color, image=image)
            axs[0].set_ylabel(row.label)
            if drawn is not None:
                color_bar(figure, drawn, list(axs))
            if row.cut is not None:
                name_axes(axs[None], values.ndim, row.cut)
        if rows[0].cut is None:
            name_axes(axes, values.ndim)
        for ax, (caption, cells) in zip(axes[0], tilings.items(), strict=True):
            ax.set_title(f"{caption}\n{tokens_of(cells, sample)}".lstrip())
        if title:
            figure.suptitle(title, fontsize=9)
    return figure


def tokens_of(cells: Cells, sample: int = 0) -> str:
    """Says how many tokens a sample has, and in how many frames: "256 tokens in 2 frames"."""
    count = int(cells.cu_seqlens[sample + 1] - cells.cu_seqlens[sample])
    frames = cells.shape[0]
    return f"{count} tokens" + (f" in {frames} frames" if frames > 1 else "")


def _rows(
    frames: np.ndarray,
    tilings: Mapping[str, Cells],
    sample: int,
    cuts: Sequence[Cut] | None,
) -> list[_Row]:
    """Chooses frames if a tiling changes between them, else the planes of the last one."""
    last = len(frames) - 1
    if last and any(_moves(cells, sample) for cells in tilings.values()):
        cut = cuts[0] if cuts else None
        shown = np.unique(np.linspace(0, last, min(FRAMES, last + 1)).round().astype(int))
        age = {int(i): f"{last - i} before" if i < last else "now" for i in shown}
        end = f"\nplane {cut}" if cut else ""
        return [_Row(age[i] + end, cut.of(frames[i]) if cut else frames[i], cut, i) for i in age]
    if cuts is None:
        return [_Row("", frames[-1], None, last)]
    return [_Row(f"plane {cut}", cut.of(frames[-1]), cut, last) for cut in cuts]


def _moves(cells: Cells, sample: int) -> bool:
    """Tells whether cells of a sample differ between frames."""
    first, *others = (
        {*map(tuple, np.hstack(boxes_of(cells, sample, i)))} for i in range(cells.shape[0])
    )
    return any(boxes != first for boxes in others)


def trajectory_figure(
    fields: Mapping[str, np.ndarray], times: Sequence[float], *, title: str = "", note: str = ""
) -> Figure:
    """Draws fields over time: a column per field with colors of its own, a row per time.

    Args:
        fields: name -> ``(t, *space)``; in 3D the plane in which they deviate most is shown.
        times: times of the rows, (t,).
        title: title of the figure.
        note: stands under the title.
    """
    shape = next(iter(fields.values())).shape[1:]
    cut = None
    if len(shape) == 3:
        cut = cuts_of(sum(deviation(values) for values in fields.values()))[0]  # type: ignore
        fields = {name: cut.of(values) for name, values in fields.items()}
        title = f"{title}, plane {cut}"
    plane = next(iter(fields.values())).shape[1:]
    panel = min(1.5, 7.5 / len(fields))  # inches
    width, height = (panel * (n / max(plane)) ** 0.5 for n in (plane[0], plane[-1]))
    size = (len(fields) * width * 1.05 + 0.5, len(times) * height * 1.05 + 0.8)
    with style(), matplotlib.rc_context({"font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7}):
        figure, axes = subplots(len(times), len(fields), size)
        for column, (name, values) in enumerate(fields.items()):
            limits, cmap = color_scale(values)
            for row, frame in enumerate(values):
                draw_values(axes[row, column], frame, limits=limits, cmap=cmap, cut=cut)
            axes[0, column].set_title(f"{name}\n{limits[0]:.3g} to {limits[1]:.3g}")
        for row, time in enumerate(times):
            axes[row, 0].set_ylabel(f"t = {time:.3g}")
        name_axes(axes, len(shape), cut)
        text = f"{title}\n{note}".rstrip()
        figure.suptitle(fill_lines(text, size[0]), fontsize=8)
    return figure


def fill_lines(text: str, inches: float) -> str:
    """Breaks lines that are longer than a figure is wide."""
    return "\n".join(textwrap.fill(line, int(16 * inches)) for line in text.split("\n"))


def panels_figure(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    *,
    title: str = "",
    share: str = "row",
    positive: Sequence[str] = (),
    cells: Mapping[tuple[str, str], Cells] | None = None,
    cut: Cut | None = None,
    looks: Mapping[str, tuple[tuple[float, float], str]] | None = None,
    behind: Mapping[tuple[str, str], np.ndarray] | None = None,
    tall: int = 6,
) -> Figure:
    """Draws a grid of fields with color bars: row name -> column name -> ``(*space)``.

    A row may lack columns.

    Args:
        share: "row", "column" or "none": which panels share their colors.
        positive: rows or columns such as errors and scores, which have other colors, from 0 on.
        cells: outlined in the panel of (row, column), those of the last frame.
        cut: plane to show in 3D; by default the one in which the fields deviate most.
        looks: limits and color map of rows that do not choose their own.
        behind: what stands behind the line in the panel of (row, column) in 1D.
        tall: more rows continue at the right.
    """
    like = next(iter(next(iter(rows.values())).values()))
    ndim = like.ndim
    if ndim == 3:
        cut = cut or cut_of(np.stack([v for columns in rows.values() for v in columns.values()]))
        assert cut is not None, "there are three axes"
        rows = {r: {c: cut.of(v) for c, v in columns.items()} for r, columns in rows.items()}
        like, title = cut.of(like), f"{title}, plane {cut}".removeprefix(", ")
    names = list(max(rows.values(), key=len))
    blocks = -(-len(rows) // tall)
    height = -(-len(rows) // blocks)
    with style():
        across, lines = blocks * len(names), title.count("\n")
        figure, axes = grid(height, across, like, bars=across, lines=lines)
        for number, (label, columns) in enumerate(rows.items()):
            block, line = divmod(number, height)
            axs = axes[line, block * len(names) : (block + 1) * len(names)]
            images: list[tuple[Any, tuple[float, float], Axes]] = []
            for ax, name in zip(axs, names, strict=True):
                if name not in columns:
                    continue
                alike = np.stack(_alike(rows, label, name, share, positive))
                limits, cmap = color_scale(alike)
                if name in positive or label in positive:
                    limits, cmap = (0.0, float(np.nanmax(alike)) or 1.0), "magma"
                elif looks and label in looks:
                    limits, cmap = looks[label]
                look = {"limits": limits, "cmap": cmap, "cut": cut}
                images.append((draw_values(ax, columns[name], **look), limits, ax))
                if ndim == 1 and behind and (label, name) in behind:
                    draw_behind(ax, behind[label, name])
                if cells and (label, name) in cells:
                    look = {"color": color_of_cells(cmap, like.ndim), "cut": cut}
                    last = cells[label, name].shape[0] - 1
                    draw_cells(ax, cells[label, name], frame=last, **look)
            if ndim > 1:
                _bars(figure, images)
            axs[next(i for i, name in enumerate(names) if name in columns)].set_ylabel(label)
            if line == 0:
                for ax, name in zip(axs, names, strict=True):
                    ax.set_title(name)
        for ax in axes.flat:
            if not ax.has_data():
                ax.set_axis_off()
        for block in range(blocks):
            name_axes(axes[:, block * len(names) : (block + 1) * len(names)], ndim, cut)
        if ndim == 1:  # values, of other ranges in each panel
            for ax in axes.flat:
                ax.tick_params(labelleft=True, labelsize=6)
        if title:
            figure.suptitle(title, fontsize=9)
    return figure


def _bars(figure: Figure, images: Sequence[tuple[Any, tuple[float, float], Axes]]) -> None:
    """Draws one color bar for a row of panels that share their limits, else one each."""
    if len({limits for _, limits, _ in images}) == 1:
        color_bar(figure, images[-1][0], [ax for *_, ax in images])
        return
    for image, _, ax in images:
        color_bar(figure, image, ax)


def _alike(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    label: str,
    name: str,
    share: str,
    positive: Sequence[str],
) -> list[np.ndarray]:
    """Lists the panels that share their colors with one."""
    if share == "none":
        return [rows[label][name]]
    if share == "column":
        return [columns[name] for columns in rows.values() if name in columns]
    row = rows[label]
    return [row[c] for c in row if (c in positive) == (name in positive)]


def prediction_figure(
    truth: np.ndarray,
    prediction: np.ndarray,
    fields: Sequence[str],
    *,
    title: str = "",
    cells: Cells | None = None,
    cut: Cut | None = None,
) -> Figure:
    """Draws truth, prediction and absolute error of every field, each ``(c, *space)``.

    Args:
        cells: those of the prediction, outlined on the error.
        cut: plane to show in 3D, see `panels_figure`.
    """
    rows = {
        name: {"truth": t, "prediction": p, "|error|": np.abs(p - t)}
        for name, t, p in zip(fields, truth, prediction, strict=True)
    }
    outlined = {} if cells is None else {(name, "|error|"): cells for name in fields}
    if cut is None:
        cut = cut_of(truth)
    behind = {(name, "prediction"): row["truth"] for name, row in rows.items()}
    look: dict[str, Any] = {"cells": outlined, "cut": cut, "behind": behind}
    return panels_figure(rows, title=title, positive=("|error|",), tall=4, **look)


def grid(
    rows: int,
    columns: int,
    like: np.ndarray,
    *,
    bars: int = 0,
    image: bool = False,
    lines: int = 0,
) -> tuple[Figure, np.ndarray]:
    """Makes a grid of axes whose panels have the aspect of the array that they show.

    Args:
        bars: how many color bars stand side by side.
        image: as in `cells_figure`.
        lines: of the title, beyond one.
    """
    sides = like.shape[::-1] if image else like.shape
    aspect = 0.45 if like.ndim == 1 else sides[1] / sides[0]
    width = min(2.4 if aspect > 0.6 else 3.6, 3.6 / aspect, max(14 / columns, 1.2))
    height = width * aspect + 0.2
    size = (max(width * columns + 0.5 * bars + 0.6, 3.6), height * rows + 1 + 0.17 * lines)
    return subplots(rows, columns, size)
