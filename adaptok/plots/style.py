"""How all pictures look, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's palette: distinguishable with every common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(linestyle=("-", "--", ":")) * cycler(color=COLOURS),
    "axes.grid": False,
    "lines.linewidth": 1.4,
    "figure.constrained_layout.use": True,
}


def style() -> Any:
    """The look of a figure that is made inside."""
    return plt.rc_context(STYLE)  # type: ignore[arg-type]


def save(figure: Figure, path: str | Path, *, dpi: int = 200, small: bool = False) -> Path:
    """Writes the figure, makes its folder and frees its memory.

    Args:
        small: keep 256 colours only, which makes a third of the file; for PNG.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    if small:
        with Image.open(path) as image:
            reduced = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
        reduced.save(path, optimize=True)
    return path
