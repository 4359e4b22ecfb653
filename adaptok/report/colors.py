"""Colors, symbols and dashes: a color per tokenizer, the same in every report.

The first six are Okabe and Ito's, the others Tol's: distinguishable with every common color
blindness. Runs of one tokenizer that differ otherwise share its hue and differ in lightness, symbol
and dash, so that color alone never tells them apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

from plotly.colors import hex_to_rgb

from adaptok.report.grouping import Group
from adaptok.utils.palette import OKABE_ITO

# On a light and on a dark background.
COLORS = {
    "uniform": (OKABE_ITO["blue"], "#3D93DB"),
    "iap": (OKABE_ITO["vermilion"], "#FF8A47"),
    "apt": (OKABE_ITO["green"], "#2FCB9B"),
    "matey": (OKABE_ITO["purple"], "#E7A1C8"),
    "ckm": (OKABE_ITO["orange"], "#FFC24A"),
    "csm": (OKABE_ITO["sky"], "#A6E1FF"),
    "composed": ("#999933", "#CFCF68"),
    "fno": ("#332288", "#A99CF5"),
    "unet": ("#882255", "#E283AC"),
    "random": ("#661100", "#D08A70"),
    "resize": ("#44AA99", "#6FD6C4"),
    "persistence": ("#777777", "#A3A3A3"),
}
OTHERS = (
    ("#AA4499", "#DB8CD0"),
    ("#117733", "#5FC582"),
    ("#6699CC", "#94BDE6"),
    ("#AA7744", "#D6A873"),
    ("#555555", "#BBBBBB"),
)
GRAY = COLORS["persistence"][0]
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dashdot", "longdash", "longdashdot")  # dots: not finished


class Look(NamedTuple):
    """How a group is drawn; `dark` is its color on a dark background."""

    color: str
    dark: str
    symbol: str
    dash: str


REFERENCE = Look(*COLORS["persistence"], "circle", "dash")


def looks(groups: Sequence[Group]) -> dict[str, Look]:
    """Chooses a look for every label among the groups of one comparison."""
    chosen: dict[str, Look] = {}
    for kind in dict.fromkeys(group.kind for group in groups):
        own = [group.label for group in groups if group.kind == kind]
        # An unknown kind always gets the same color for its name.
        base = COLORS.get(kind) or OTHERS[zlib.crc32(kind.encode()) % len(OTHERS)]
        pairs = zip(*(_shades(color, len(own)) for color in base), strict=True)
        for i, (label, (light, dark)) in enumerate(zip(own, pairs, strict=True)):
            look = Look(light, dark, SYMBOLS[i % len(SYMBOLS)], DASHES[i % len(DASHES)])
            chosen[label] = REFERENCE if kind == "persistence" else look
    return {group.label: chosen[group.label] for group in groups}


def dark_colors(used: Sequence[Look]) -> dict[str, str]:
    """Maps every color of a figure to its counterpart on a dark background."""
    return dict([*COLORS.values(), *OTHERS]) | {look.color: look.dark for look in used}


def _shades(color: str, count: int) -> list[str]:
    """Makes darker to lighter shades of a color; light colors leave more room for darker ones."""
    if count == 1:
        return [color]
    rgb = hex_to_rgb(color)
    luminance = sum(w * c / 255 for w, c in zip((0.3, 0.59, 0.11), rgb, strict=True))
    low, high = (-0.5, 0.1) if luminance > 0.55 else (-0.3, 0.45)
    shades = []
    for i in range(count):
        amount = low + (high - low) * i / (count - 1)
        goal = 255 if amount > 0 else 0  # mixes the color with black (-1) or white (1)
        mixed = (round(c + (goal - c) * abs(amount)) for c in rgb)
        shades.append("#" + "".join(f"{c:02X}" for c in mixed))
    return shades


def faint(color: str, alpha: float) -> str:
    """Adds transparency to a hexadecimal color, in plotly's notation."""
    return f"rgba({','.join(map(str, hex_to_rgb(color)))},{alpha})"
