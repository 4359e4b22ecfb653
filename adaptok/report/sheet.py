"""A table before it becomes Markdown or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """Text, what it is sorted by, and the place among the best two."""

    text: str
    value: float | str | None = None
    rank: int | None = None
    hint: str = ""
    link: str = ""
    weak: bool = False


class Column(NamedTuple):
    """Title, and a sentence about it."""

    title: str
    hint: str = ""


class Sheet(NamedTuple):
    """A table with a caption; rows have a cell per column."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
