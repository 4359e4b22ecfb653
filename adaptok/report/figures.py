"""What the figures of a report share: lines by model, axes, ticks, reference lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from adaptok.report.colors import GRAY, Look
from adaptok.report.runs import Number

HEIGHT = 340
MARKED = 30  # points; longer lines have no markers
# Leading digits of the ticks of logarithmic axes, fewest first.
DIGITS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(1 + i / 10 for i in range(90)))


class Panel(NamedTuple):
    """A figure with its title; the template knows the captions of most titles."""

    title: str
    figure: go.Figure
    caption: str = ""


def new_figure(x: str, y: str, *, log: str = "", height: int = HEIGHT) -> go.Figure:
    """Makes an empty figure; the page's template, which knows light from dark, adds the look.

    Args:
        x: title of the axis, with unit.
        y: likewise.
        log: the logarithmic axes: "x", "y" or "xy".
        height: in pixels.
    """
    axes = {
        f"{name}axis": {"title": {"text": title}, "type": "log" if name in log else "linear"}
        for name, title in (("x", x), ("y", y))
    }
    return go.Figure(layout={"template": "none", "height": height, **axes})


def add_lines(
    figure: go.Figure,
    frame: pd.DataFrame,
    looked: Mapping[str, Look],
    hover: str,
    *,
    width: float = 1.8,
    size: float = 5,
    mode: str = "",
    **options: Any,
) -> None:
    """Draws a line per model; all lines of a model form a legend group.

    Args:
        figure: the figure to add to.
        frame: a row per point; columns "model", "x", "y" and those that the options name.
        looked: looks by model.
        hover: text at a point, in plotly's notation.
        width: line width in pixels.
        size: marker size in pixels.
        mode: "lines" or "markers"; by default lines, and markers if there are few points.
        options: further arguments of `plotly.express.line`.
    """
    lines = px.line(
        frame,
        x="x",
        y="y",
        color="model",
        symbol="model",
        line_dash="model",
        color_discrete_map={label: look.color for label, look in looked.items()},
        symbol_map={label: look.symbol for label, look in looked.items()},
        line_dash_map={label: look.dash for label, look in looked.items()},
        render_mode="svg",
        **options,
    )
    lines.update_traces(hovertemplate=hover + "<extra></extra>")
    lines.update_traces(line={"width": width}, marker={"size": size})
    for trace in traces(lines):
        few = "lines+markers" if len(trace.x) <= MARKED else "lines"
        figure.add_trace(trace.update(mode=mode or few))


def traces(figure: go.Figure) -> list[Any]:
    """Lists the traces of a figure."""
    return list(figure.data)


def points(label: str, values: Iterable[Number], x: Iterable[float] | None = None) -> pd.DataFrame:
    """Makes rows for `add_lines`; x counts from 1 by default."""
    y = pd.Series(list(values), dtype="float64")
    return pd.DataFrame({"model": label, "x": range(1, len(y) + 1) if x is None else x, "y": y})


def reference_line(figure: go.Figure, value: Number, text: str) -> None:
    """Draws a dashed horizontal line over the whole width, with its name at the right end."""
    log = figure.layout.yaxis.type == "log"  # type: ignore[union-attr]
    if value is None or (log and value <= 0):
        return
    line = {"color": GRAY, "width": 1.3, "dash": "dash"}
    figure.add_shape(
        type="line", xref="paper", x0=0, x1=1, y0=value, y1=value, line=line, layer="below"
    )
    figure.add_annotation(
        xref="paper",
        x=1,
        y=math.log10(value) if log else value,
        text=text,
        showarrow=False,
        xanchor="right",
        yanchor="bottom",
        font={"size": 11, "color": GRAY},
    )


def span(values: Iterable[Number]) -> float:
    """Divides the largest by the smallest of the positive, finite numbers; 1 without any."""
    known = [v for v in values if v is not None and 0 < v < math.inf]
    return max(known) / min(known) if known else 1.0


def powers_of_two(values: Iterable[float]) -> dict[str, Any]:
    """Chooses the ticks of an axis of tokens."""
    logs = [math.log2(v) for v in values]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return _ticks([2**k for k in range(low, high + 1, max(1, (high - low) // 6))], str)


def log_ticks(values: Iterable[Number], text: Callable[[float], str] = "{:g}".format) -> dict:
    """Chooses a handful of round ticks for a logarithmic axis; plotly's own are too many.

    Args:
        values: what is drawn.
        text: writes a tick.
    """
    known = [v for v in values if v is not None and 0 < v < math.inf]
    if not known:
        return {}
    low, high = min(known) / 1.15, max(known) * 1.15
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in DIGITS:
        ticks = [t for p in powers for d in digits if low <= (t := d * 10.0**p) <= high]
        if len(ticks) >= 3:
            break
    return _ticks(ticks[:: math.ceil(len(ticks) / 7)] if len(ticks) > 8 else ticks, text)


def cost_ticks(values: Iterable[Number], text: Callable[[float], str] | None = None) -> dict:
    """Chooses scale and ticks of an axis of costs, so that it never has a single tick.

    Args:
        values: what is drawn.
        text: writes a tick; by default they are powers of two.
    """
    known = [v for v in values if v is not None and 0 < v < math.inf]
    if span(known) < 2:
        low, high = min(known), max(known)
        middle, reach = (low + high) / 2, max((high - low) * 0.6, 0.1 * high)
        shown = {"type": "linear", "range": [middle - reach, middle + reach]}
        if text is None:
            return shown | {"nticks": 5}
        marks = [middle - 0.8 * reach, middle, middle + 0.8 * reach]
        return shown | _ticks(marks, text)
    if text is not None:
        return log_ticks(known, text)
    powers = powers_of_two(known)
    inside = [v for v in powers["tickvals"] if min(known) / 1.1 <= v <= 1.1 * max(known)]
    return powers if len(inside) > 1 else log_ticks(known)


def _ticks(values: list[Any], text: Callable[[Any], str]) -> dict[str, Any]:
    return {"tickmode": "array", "tickvals": values, "ticktext": [text(v) for v in values]}


def power_of_ten(value: float) -> str:
    """Writes a tick such as 3·10⁻⁴ in plotly's markup."""
    digits, _, exponent = f"{value:.0e}".partition("e")
    power = f"10<sup>{int(exponent)}</sup>"
    return power if digits == "1" else f"{digits}·{power}"


def drawn(figure: go.Figure, axis: str) -> list[Number]:
    """Lists all coordinates of the figure's traces along "x" or "y"."""
    return [float(v) for trace in traces(figure) for v in trace[axis]]
