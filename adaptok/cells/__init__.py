"""Cells: the boxes of the field that tokens stand for, and groups of them."""

from adaptok.cells.amr import (
    Boxes,
    Patches,
    boxes_of,
    load_boxes,
    read_patches,
    save_boxes,
    yt_grids,
)
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
    "Boxes",
    "Cells",
    "Count",
    "GridLayout",
    "Groups",
    "Lengths",
    "Patches",
    "box_points",
    "boxes_of",
    "cells_from_boxes",
    "curve_keys",
    "inverse_permutation",
    "load_boxes",
    "nested",
    "owners",
    "product",
    "read_patches",
    "register_pytree",
    "repeated",
    "save_boxes",
    "sorted_rows",
    "yt_grids",
]
