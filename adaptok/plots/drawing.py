"""Draws one plane of a field and the cells over it; all pictures of fields use these functions.

A field has x to the right and y up; in 1D it is a line; in 3D a plane through it is shown, the
earlier one of its two axes to the right. An image has its first row on top. Ticks count points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from adaptok.cells import Cells
from adaptok.plots.style import COLORS

LETTERS = "xyz"


class Cut(NamedTuple):
    """A plane of a 3D field: where its `axis` has the grid point `index`."""

    axis: int
    index: int

    def __str__(self) -> str:
        return f"{LETTERS[self.axis]} = {self.index}"

    def of(self, values: np.ndarray) -> np.ndarray:
        """Takes the plane out of ``(..., *space)``."""
        return values.take(self.index, self.axis - 3)


def cuts_of(score: np.ndarray) -> list[Cut]:
    """Finds the plane of the largest score along each axis, the largest of all first.

    Args:
        score: at each grid point, ``(*space)`` in 3D; of equal planes the middle one is taken.
    """
    if not np.isfinite(score).all():
        score = np.zeros_like(score)
    cuts = []
    for axis in range(3):
        means = score.mean(tuple(i for i in range(3) if i != axis))
        best = np.flatnonzero(means >= means.max() * (1 - 1e-6))
        cut = Cut(axis, int(best[len(best) // 2]))
        cuts.append((-float(means[cut.index]), cut))
    return [cut for _, cut in sorted(cuts)]


def deviation(values: np.ndarray) -> np.ndarray:
    """Scores a field that nothing else scores: the distance from the median, ``(*space)``.

    Args:
        values: ``(*space)``, or channels of it, each divided by its spread.
    """
    channels = values.reshape(-1, *values.shape[-3:])
    axes = (1, 2, 3)
    far = np.abs(channels - np.median(channels, axes, keepdims=True))
    return (far / np.maximum(far.max(axes, keepdims=True), np.finfo(far.dtype).tiny)).sum(0)


def cut_of(values: np.ndarray) -> Cut | None:
    """Finds the plane in which ``(..., *space)`` of 3 axes deviates most; None in 1D and 2D.

    Args:
        values: with a leading axis of channels.
    """
    return cuts_of(deviation(values))[0] if values.ndim == 4 else None


def draw_values(
    ax: Axes,
    values: np.ndarray,
    *,
    limits: tuple[float, float],
    cmap: str,
    cut: Cut | None = None,
    image: bool = False,
) -> Any:
    """Draws one plane, or a line in 1D; returns the image for a color bar, None in 1D.

    Args:
        values: of 1 or 2 axes.
        cut: where a plane of a 3D field lies; names the axes.
        image: ``(height, width)``, the first row on top.
    """
    ends = [*values.shape[::-1]] if image else [*values.shape]
    ax.set(xticks=[0, ends[0] // 2, ends[0]])
    if values.ndim == 1:
        ax.plot(np.arange(len(values)) + 0.5, values, color=COLORS[0], linewidth=1)
        ax.set(xlim=(0, len(values)), ylim=_wider(limits))
        return None
    for spine in ax.spines.values():
        spine.set(visible=True, linewidth=0.4, color="0.6")
    pixels = values if image else values.T
    drawn = ax.imshow(
        pixels,
        cmap=cmap,
        vmin=limits[0],
        vmax=limits[1],
        origin="lower",
        extent=(0, ends[0], 0, ends[1]),
        interpolation="nearest",
    )
    high = (ends[1], 0) if image else (0, ends[1])
    # Fixed, so that cells beyond the border (of a shifted grid) do not shrink the picture.
    ax.set(yticks=[0, ends[1] // 2, ends[1]], xlim=(0, ends[0]), ylim=high)
    ax.tick_params(labelsize=6, length=2, width=0.5, pad=1.5)
    return drawn


def draw_behind(ax: Axes, values: np.ndarray) -> None:
    """Draws the truth of a 1D field, dashed, behind what was predicted."""
    x = np.arange(len(values)) + 0.5
    ax.plot(x, values, color="0.45", linestyle="--", linewidth=0.8, zorder=1)


def _wider(limits: tuple[float, float]) -> tuple[float, float]:
    margin = 0.04 * (limits[1] - limits[0])
    return limits[0] - margin, limits[1] + margin


def name_axes(axes: np.ndarray, ndim: int, cut: Cut | None = None) -> None:
    """Names the axes at the left and lower edge of a grid of panels; inner ones lose their ticks.

    Args:
        axes: (rows, columns), in which a field of `ndim` axes, or the plane `cut`, is drawn.
    """
    letters = [c for i, c in enumerate(LETTERS[:ndim]) if cut is None or i != cut.axis]
    for column in axes.T:
        drawn = [ax for ax in column if ax.axison and ax.has_data()]
        for ax in drawn[:-1]:
            ax.tick_params(labelbottom=False)
        if drawn:
            drawn[-1].set_xlabel(letters[0], labelpad=1)
    for row in axes:
        drawn = [ax for ax in row if ax.axison and ax.has_data()]
        for ax in drawn[1:]:
            ax.tick_params(labelleft=False)
        if drawn and len(letters) > 1:
            name = drawn[0].get_ylabel()
            drawn[0].set_ylabel(f"{name}\n{letters[1]}" if name else letters[1], labelpad=1)


def draw_cells(
    ax: Axes,
    cells: Cells,
    *,
    sample: int = 0,
    frame: int = 0,
    cut: tuple[int, int] | None = None,
    color: str = "black",
    linewidth: float | None = None,
    image: bool = False,
) -> int:
    """Outlines the cells of one sample and frame; returns their number.

    Args:
        cut: (space axis, grid index) of the plane through a 3D tiling.
        linewidth: in points; by default it decreases with the number of cells.
        image: as in `draw_values`.
    """
    origin, size = boxes_of(cells, sample, frame)
    axes = list(range(origin.shape[1]))
    if cut is not None:
        axis, index = cut
        inside = (origin[:, axis] <= index) & (index < origin[:, axis] + size[:, axis])
        origin, size = origin[inside], size[inside]
        axes.remove(axis)
    if image:
        axes.reverse()
    origin, size = origin[:, axes], size[:, axes]
    if linewidth is None:
        linewidth = float(np.clip(8 / np.sqrt(len(origin) + 1), 0.15, 0.6))
    if origin.shape[1] == 1:
        edges = np.unique(np.concatenate([origin, origin + size]))
        ax.vlines(edges, *ax.get_ylim(), color=color, linewidth=linewidth, alpha=0.5)
        return len(origin)
    corners = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 0]])
    outlines = origin[:, None, :] + corners * size[:, None, :]
    ax.add_collection(LineCollection(list(outlines), colors=color, linewidths=linewidth))
    return len(origin)


def boxes_of(cells: Cells, sample: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Origin and size in space of one sample's cells that hold a frame, (n, d) each."""
    rows = slice(cells.cu_seqlens[sample].item(), cells.cu_seqlens[sample + 1].item())
    origin, size = cells.origin[rows].cpu().numpy(), cells.size[rows].cpu().numpy()
    inside = (origin[:, 0] <= frame) & (frame < origin[:, 0] + size[:, 0])
    return origin[inside][:, 1:], size[inside][:, 1:]


def color_scale(values: np.ndarray) -> tuple[tuple[float, float], str]:
    """Chooses limits and color map: diverging around 0 if the values have both signs."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low < 0 < high and min(-low, high) > 0.1 * max(-low, high):
        # Symmetric, and robust to a few extreme points.
        top = float(np.nanquantile(np.abs(values), 0.999)) or max(-low, high)
        return (-top, top), "RdBu_r"
    return (low, high if high > low else low + 1), "viridis"


def color_of_cells(cmap: str, ndim: int) -> str:
    """Chooses a color of outlines that is seen on a color map, and on white in 1D."""
    return "black" if cmap == "RdBu_r" or ndim == 1 else "white"


def color_bar(figure: Figure, image: Any, axes: Axes | Sequence[Axes]) -> None:
    """Draws a color bar at the right of one or several axes, without an offset above it."""
    bar = figure.colorbar(image, ax=axes, shrink=0.85, aspect=25, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=6, length=2, width=0.5, pad=1.5)
    bar.locator = MaxNLocator(4)
    bar.formatter = FuncFormatter(lambda value, _: f"{value:.3g}")
    bar.update_ticks()
