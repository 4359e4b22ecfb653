"""Cells: the boxes of the field that tokens stand for, and groups of them."""

from adaptok.cells.boxes import box_points, cells_from_boxes, owners
from adaptok.cells.cells import Cells, nested, register_pytree
from adaptok.cells.groups import (
    GridLayout,
    Groups,
    inverse_permutation,
    product,
)
from adaptok.cells.lengths import Count, Lengths, repeated
from adaptok.cells.order import curve_keys, sorted_rows

__all__ = [
    "Cells",
    "Count",
    "GridLayout",
    "Groups",
    "Lengths",
    "box_points",
    "cells_from_boxes",
    "curve_keys",
    "inverse_permutation",
    "nested",
    "owners",
    "product",
    "register_pytree",
    "repeated",
    "sorted_rows",
]
