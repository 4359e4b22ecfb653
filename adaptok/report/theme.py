"""Colours, symbols and dashes: a colour per tokenizer, the same in every report.

The first six are Okabe and Ito's, the others Tol's: distinguishable with every common colour
blindness. Runs of one tokenizer that differ otherwise share its hue and differ in lightness, symbol
and dash, so that colour alone never tells them apart.
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
DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot")  # dots: not finished


class Look(NamedTuple):
    """How a group is drawn; `dark` is its colour on a dark background."""

    colour: str
    dark: str
    symbol: str
    dash: str


def colour_of(kind: str) -> str:
    """Colour of a tokenizer or baseline; of an unknown one, always the same for its name."""
    return COLOURS.get(kind) or OTHERS[zlib.crc32(kind.encode()) % len(OTHERS)]


REFERENCE = Look(COLOURS["persistence"], DARK[COLOURS["persistence"]], "circle", "dash")


def looks(groups: Sequence[Group]) -> dict[str, Look]:
    """Looks by label, for the groups of one table."""
    chosen: dict[str, Look] = {}
    for kind in dict.fromkeys(group.kind for group in groups):
        own = [group.label for group in groups if group.kind == kind]
        base = colour_of(kind)
        light, dark = _shades(base, len(own)), _shades(DARK[base], len(own))
        for i, label in enumerate(own):
            look = Look(light[i], dark[i], SYMBOLS[i % len(SYMBOLS)], DASHES[i % len(DASHES)])
            chosen[label] = REFERENCE if kind == "persistence" else look
    return {group.label: chosen[group.label] for group in groups}


def _shades(colour: str, count: int) -> list[str]:
    """Darker to lighter shades of a colour, of which a light one has more room to be darker."""
    if count == 1:
        return [colour]
    luminance = sum(w * c / 255 for w, c in zip((0.3, 0.59, 0.11), _rgb(colour), strict=True))
    low, high = (-0.5, 0.1) if luminance > 0.55 else (-0.3, 0.45)
    return [_mixed(colour, low + (high - low) * i / (count - 1)) for i in range(count)]


def _mixed(colour: str, amount: float) -> str:
    """A colour with black (-1) or white (1)."""
    goal = 255 if amount > 0 else 0
    return "#" + "".join(f"{round(c + (goal - c) * abs(amount)):02X}" for c in _rgb(colour))


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def faint(colour: str, alpha: float) -> str:
    """A hexadecimal colour with transparency, as plotly reads it."""
    red, green, blue = _rgb(colour)
    return f"rgba({red},{green},{blue},{alpha})"
