"""Draws several tokenizers side by side on one sample."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adaptok.cells import Cells
from adaptok.evaluation.budgets import cells_by_size
from adaptok.plots.drawing import (
    Cut,
    color_bar,
    color_of_cells,
    color_scale,
    cut_of,
    draw_cells,
    draw_values,
    name_axes,
)
from adaptok.plots.fields import tokens_of
from adaptok.plots.style import COLORS, style, subplots


def methods_figure(
    values: np.ndarray,
    tilings: Mapping[str, Cells],
    *,
    title: str = "",
    cut: Cut | None = None,
    across: int = 6,
) -> Figure:
    """Draws the cells of each method over a field, and under them how many there are of each size.

    Args:
        values: ``(*space)``, the field (or one channel of it) in the last frame.
        tilings: cells of one sample by method.
        cut: plane to show in 3D; by default the one in which the field deviates most.
        across: more methods continue in rows below.
    """
    ndim = values.ndim
    if ndim == 3:
        cut = cut or cut_of(values[None])
        assert cut is not None, "there are three axes"
        values, title = cut.of(values), f"{title}, plane {cut}".removeprefix(", ")
    limits, cmap = color_scale(values)
    counts = {name: cells_by_size(cells) for name, cells in tilings.items()}
    sizes = sorted(
        {size for count in counts.values() for size in count if count[size]}, key=_extent
    )
    most = max(max(count.values()) for count in counts.values())
    columns = min(len(tilings), across)
    rows = -(-len(tilings) // columns)
    aspect = 0.45 if ndim == 1 else values.shape[1] / values.shape[0]
    with style():
        height = rows * (2.1 * aspect + 1.9) + 0.4 + 0.17 * title.count("\n")
        ratios = [2.1 * aspect, 1.1] * rows
        size = (2.1 * columns + 0.7, height)
        figure, axes = subplots(2 * rows, columns, size, height_ratios=ratios)
        for number, (name, cells) in enumerate(tilings.items()):
            row, column = divmod(number, columns)
            above, below = axes[2 * row, column], axes[2 * row + 1, column]
            image = draw_values(above, values, limits=limits, cmap=cmap, cut=cut)
            look = {"frame": cells.shape[0] - 1, "color": color_of_cells(cmap, values.ndim)}
            draw_cells(above, cells, cut=cut, **look)
            above.set_title(f"{name}\n{tokens_of(cells)}")
            shown = [counts[name].get(size, 0) for size in sizes]
            places = range(len(sizes))
            bars = below.bar(places, shown, color=COLORS[0], width=0.7)
            below.set_xticks(places, sizes)
            below.bar_label(bars, [str(n) if n else "" for n in shown], fontsize=6, padding=1)
            below.set(xlabel="size of cells", ylim=(0, 1.18 * most))
            below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            below.tick_params(labelsize=6, length=2)
        for ax in axes.flat:
            if not ax.has_data():
                ax.set_axis_off()
        for row in range(rows):
            name_axes(axes[2 * row : 2 * row + 1], ndim, cut)
            axes[2 * row + 1, 0].set_ylabel("cells")
            if image is not None:
                color_bar(figure, image, list(axes[2 * row]))
        if title:
            figure.suptitle(title, fontsize=9)
    return figure


def _extent(size: str) -> list[int]:
    return [int(n) for n in size.split("x")]
