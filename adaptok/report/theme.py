"""Colours, symbols and dashes: a colour per tokenizer, the same in every report.

The first six are Okabe and Ito's, the others Tol's: distinguishable with every common colour
blindness. Runs of one tokenizer that differ otherwise share its colour and differ in symbol and
dash, so that colour alone never tells them apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from adaptok.report.grouping import Group

COLOURS = {
    "uniform": "#0072B2",
    "iap": "#D55E00",
    "apt": "#009E73",
    "matey": "#CC79A7",
    "ckm": "#E69F00",
    "csm": "#56B4E9",
    "composed": "#999933",
    "fno": "#332288",
    "unet": "#882255",
    "random": "#661100",
    "resize": "#44AA99",
    "persistence": "#777777",
}
OTHERS = ("#AA4499", "#117733", "#6699CC", "#AA7744", "#555555")
# The same hues on a dark background.
DARK = {
    "#0072B2": "#3D93DB",
    "#D55E00": "#FF8A47",
    "#009E73": "#2FCB9B",
    "#CC79A7": "#E7A1C8",
    "#E69F00": "#FFC24A",
    "#56B4E9": "#A6E1FF",
    "#999933": "#CFCF68",
    "#332288": "#A99CF5",
    "#882255": "#E283AC",
    "#661100": "#D08A70",
    "#44AA99": "#6FD6C4",
    "#777777": "#A3A3A3",
    "#AA4499": "#DB8CD0",
    "#117733": "#5FC582",
    "#6699CC": "#94BDE6",
    "#AA7744": "#D6A873",
    "#555555": "#BBBBBB",
}
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")


class Look(NamedTuple):
    """How a group is drawn."""

    colour: str
    symbol: str
    dash: str


def colour_of(kind: str) -> str:
    """Colour of a tokenizer or baseline; of an unknown one, always the same for its name."""
    return COLOURS.get(kind) or OTHERS[zlib.crc32(kind.encode()) % len(OTHERS)]


def looks(groups: Sequence[Group]) -> dict[str, Look]:
    """Looks by label, for the groups of one table."""
    chosen: dict[str, Look] = {}
    count: dict[str, int] = {}
    for group in groups:
        number = count.get(group.kind, 0)
        count[group.kind] = number + 1
        dash = "dash" if group.kind == "persistence" else DASHES[number % len(DASHES)]
        symbol = SYMBOLS[number % len(SYMBOLS)]
        chosen[group.label] = Look(colour_of(group.kind), symbol, dash)
    return chosen


def faint(colour: str, alpha: float) -> str:
    """A hexadecimal colour with transparency, as plotly reads it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
