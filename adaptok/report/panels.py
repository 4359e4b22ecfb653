"""What the figures of a report share: a titled panel with a caption, axes, reference lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from adaptok.report.records import Number
from adaptok.report.theme import COLOURS

HEIGHT = 340
# Leading digits of the ticks of logarithmic axes, fewest first.
DIGITS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(1 + i / 10 for i in range(90)))
GREY = COLOURS["persistence"]


class Panel(NamedTuple):
    """A figure, its title, and what there is to see in it."""

    title: str
    figure: go.Figure
    caption: str


class Axis(NamedTuple):
    """Title with unit, and whether it is logarithmic."""

    title: str
    log: bool = False


def new_figure(x: Axis, y: Axis, *, height: int = HEIGHT) -> go.Figure:
    """An empty figure; colours of text and lines are the page's, which knows light from dark."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 62, "r": 14, "t": 22, "b": 50},
        showlegend=False,
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis=_axis(x),
        yaxis=_axis(y),
    )
    return figure


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "title": {"text": axis.title, "standoff": 8},
        "type": "log" if axis.log else "linear",
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "zeroline": False,
        "automargin": True,
    }


def reference_line(figure: go.Figure, value: Number, text: str) -> None:
    """A dashed horizontal line over the whole width, with its name at the right end."""
    if value is None:
        return
    log = figure.layout.yaxis.type == "log"  # type: ignore[union-attr]
    if log and value <= 0:
        return
    figure.add_shape(
        type="line",
        xref="paper",
        x0=0,
        x1=1,
        y0=value,
        y1=value,
        line={"color": GREY, "width": 1.3, "dash": "dash"},
        layer="below",
    )
    figure.add_annotation(
        xref="paper",
        x=1,
        y=math.log10(value) if log else value,
        text=text,
        showarrow=False,
        xanchor="right",
        yanchor="bottom",
        font={"size": 11, "color": GREY},
    )


def span(values: Iterable[Number]) -> float:
    """Largest over smallest of the positive numbers, 1 without any."""
    known = [v for v in values if v is not None and v > 0]
    return max(known) / min(known) if known else 1.0


def powers_of_two(values: Sequence[float]) -> dict[str, Any]:
    """Ticks of an axis of tokens."""
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
    every = max(1, (high - low) // 6)
    ticks = [2**k for k in range(low, high + 1, every)]
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [str(t) for t in ticks]}


def log_ticks(values: Iterable[Number], text: Callable[[float], str]) -> dict[str, Any]:
    """A handful of round ticks for a logarithmic axis; plotly's own are too many.

    Args:
        values: what is drawn.
        text: of a tick.
    """
    known = [v for v in values if v is not None and v > 0]
    if not known:
        return {}
    low, high = min(known) / 1.15, max(known) * 1.15
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in DIGITS:
        found = [d * 10.0**p for p in powers for d in digits]
        ticks = [t for t in found if low <= t <= high]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: math.ceil(len(ticks) / 7)] if len(ticks) > 8 else ticks
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [text(t) for t in ticks]}


def power_of_ten(value: float) -> str:
    """A tick such as 3·10⁻⁴, with the mark-up of plotly."""
    digits, _, exponent = f"{value:.0e}".partition("e")
    power = f"10<sup>{int(exponent)}</sup>"
    return power if digits == "1" else f"{digits}·{power}"


def drawn(figure: go.Figure, axis: str) -> list[Number]:
    """All coordinates of the figure's traces along "x" or "y"."""
    return [v for trace in figure.data for v in trace[axis] or ()]  # type: ignore[union-attr]


def rounded(values: Iterable[Number]) -> list[Number]:
    """Five digits: all that a picture shows, and a smaller page."""
    return [None if v is None else float(f"{v:.5g}") for v in values]
