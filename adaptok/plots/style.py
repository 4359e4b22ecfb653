"""Look of all pictures, and writing them. No figure belongs to pyplot, so none has to be closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from PIL import Image

from adaptok.utils.atomic import replacing
from adaptok.utils.palette import OKABE_ITO

COLORS = tuple(OKABE_ITO.values())
STYLE = Path(__file__).with_name("adaptok.mplstyle")
CYCLE = cycler(linestyle=("-", "--", ":")) * cycler(color=COLORS)


def style() -> Any:
    """Context in which figures get the look of this package."""
    return context([STYLE, {"axes.prop_cycle": CYCLE}])


def subplots(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, np.ndarray]:
    """Makes a figure of `size` in inches with a grid of axes, (rows, columns)."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend_beside(figure: Figure, ax: Axes) -> None:
    """Puts the legend of some axes to the right of the figure, which it makes wider, so that no
    curve is covered.
    """
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        figure.set_figwidth(figure.get_figwidth() + 0.6 + 0.07 * longest)
        figure.legend(handles, labels, loc="outside right upper")


def save(figure: Figure, path: str | Path, *, dpi: int = 200, small: bool = False) -> Path:
    """Writes the figure and makes its folder.

    Args:
        small: reduce a PNG to 256 colors, a third of the size.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=path.suffix[1:])
        if small:
            with Image.open(temporary) as image:
                reduced = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
            reduced.save(temporary, format="png", optimize=True)
    return path
