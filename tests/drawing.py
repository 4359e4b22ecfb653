"""Blank pictures: drawing those of a run takes longer than the run.

Figures are still made, all of them; what is left out is rendering them to a PNG. Films are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from matplotlib.figure import Figure
from PIL import Image

_SAVE = Figure.savefig


def _save_blank(figure: Figure, file: Any, **options: Any) -> None:
    if not isinstance(file, (str, Path)):
        return _SAVE(figure, file, **options)
    kind = options.get("format") or Path(file).suffix[1:]  # a temporary name has none
    if kind != "png":
        return _SAVE(figure, file, **options)
    Image.new("RGB", (1, 1)).save(file, format="png")


@contextmanager
def blank() -> Iterator[None]:
    """Saves one dot in place of each picture."""
    with patch.object(Figure, "savefig", _save_blank):
        yield


@contextmanager
def drawn() -> Iterator[None]:
    """Draws, inside `blank`."""
    with patch.object(Figure, "savefig", _SAVE):
        yield
