"""Figures of one comparison: error against cost with Pareto fronts, and budget transfer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

from adaptok.report import figures, formats
from adaptok.report.colors import GRAY, Look, faint
from adaptok.report.runs import Measure, Number
from adaptok.report.summaries import Spread, Summary, Transfer, pareto_front
from adaptok.utils.palette import OKABE_ITO


class CostAxis(NamedTuple):
    """What a model costs, on the horizontal axis."""

    key: str
    against: str
    axis: str
    text: Callable[[Number], str]


COSTS = (
    CostAxis("tokens", "tokens", "tokens per sample", formats.count),
    CostAxis("flops", "FLOPs", "FLOPs per sample and forward pass", formats.quantity),
    CostAxis("seconds_per_step", "time", "time of a forward pass of a batch", formats.seconds),
)
SPEED = CostAxis("images_per_second", "speed", "images per second", formats.quantity)


def cost_panels(rows: Sequence[Summary], looked: Mapping[str, Look]) -> list[figures.Panel]:
    """Draws a panel per measured cost, each with the Pareto front of all models."""
    if not rows:
        return []
    measure = rows[0].measure
    panels = []
    for cost in COSTS if measure.lower else (COSTS[0], SPEED):
        frame = _cost_frame(rows, cost)
        if len(frame):
            title = f"{'Error' if measure.lower else 'Accuracy'} against {cost.against}"
            panels.append(figures.Panel(title, _cost_figure(frame, rows, cost, looked)))
    return panels


def _cost_frame(rows: Sequence[Summary], cost: CostAxis) -> pd.DataFrame:
    """A row per summary with a cost and an error, by cost."""
    records = []
    for i, row in enumerate(rows):
        x, y = row.spread(cost.key), row.error
        if x is None or x.mean <= 0 or y is None or row.is_reference:
            continue
        seeds = ", ".join(str(run.seed) for run, _ in row.pairs)
        text = (
            f"{row.setting}<br>{row.measure.title} {formats.error_spread(y)} (seeds {seeds})<br>"
            f"{cost.axis}: {cost.text(x.mean)}"
        )
        records.append((row.label, x.mean, y.mean, y.std or 0.0, text, row.diverged, i))
    names = ["model", "x", "y", "std", "text", "diverged", "place"]
    return pd.DataFrame(records, columns=names)


def _cost_figure(
    frame: pd.DataFrame, rows: Sequence[Summary], cost: CostAxis, looked: Mapping[str, Look]
) -> go.Figure:
    shown = [rows[place] for place in frame["place"]]
    measure, mean = shown[0].measure, shown[0].reference_of(shown[0].measure.key)
    reference = mean.mean if mean and measure.lower else None
    log = measure.lower and figures.span([*frame["y"], reference]) > 2
    title = f"{measure.title} ({measure.direction})"
    figure = figures.new_figure(cost.axis, title, log="xy" if log else "x")
    _draw_front(figure, frame, measure, cost)
    several = {row.label for row in shown if (error := row.error) and error.n > 1}
    singles = [
        (row.label, x, y, f"{run.name}<br>seed {run.seed}, {result.label}")
        for row in shown
        for run, result in row.pairs
        if row.label in several and (x := result.get(cost.key))
        if (y := result.get(measure.key)) is not None
    ]
    each = pd.DataFrame(singles, columns=["model", "x", "y", "text"])
    if len(each):
        hover = "%{customdata[0]}<br><b>%{y:.4f}</b>"
        faded = {k: look._replace(color=faint(look.color, 0.35)) for k, look in looked.items()}
        figures.add_lines(figure, each, faded, hover, size=6, mode="markers", custom_data=["text"])
    hover = "<b>%{fullData.name}</b><br>%{customdata[0]}"
    options: dict[str, Any] = {"width": 1.2, "size": 11, "error_y": "std", "custom_data": ["text"]}
    options["category_orders"] = {"model": list(dict.fromkeys(frame["model"]))}
    figures.add_lines(figure, frame.sort_values("x", kind="stable"), looked, hover, **options)
    figure.update_traces(error_y={"thickness": 1.2, "width": 3})
    figures.reference_line(figure, reference, measure.reference)
    text = None if cost.key == "tokens" else cost.text
    figure.update_xaxes(**figures.cost_ticks(figures.drawn(figure, "x"), text))
    if log:
        figure.update_yaxes(**figures.log_ticks([*figures.drawn(figure, "y"), reference]))
    return figure


def _draw_front(figure: go.Figure, frame: pd.DataFrame, measure: Measure, cost: CostAxis) -> None:
    """Draws the front of the points without diverged runs; flips signs if higher is better."""
    valid = frame[frame["diverged"] == 0]
    x = valid["x"] * (-1 if cost is SPEED else 1)
    y = valid["y"] * (1 if measure.lower else -1)
    front = valid.iloc[pareto_front(list(zip(x, y, strict=True)))]
    if len(front) > 1:
        figure.add_scatter(
            x=front["x"],
            y=front["y"],
            mode="lines",
            line={"color": faint(GRAY, 0.45), "width": 6, "shape": "hv"},
            hoverinfo="skip",
            name="Pareto front",
        )


def transfer_panels(matrices: Sequence[Transfer]) -> list[figures.Panel]:
    """Draws budget in training by budget in the test, with the error in each cell."""
    errors = [v.mean for m in matrices for row in m.cells for v in row if v and v.mean > 0]
    return [_transfer_panel(m, min(errors), max(errors)) for m in matrices if errors]


def _transfer_panel(matrix: Transfer, lowest: float, highest: float) -> figures.Panel:
    """Colors follow the logarithm of the error; ticks of the color bar are errors."""
    height = max(220, 46 * len(matrix.trained) + 120)
    axes = "tokens per sample in the test", "tokens per sample in training"
    figure = figures.new_figure(*axes, height=height)
    low, high = math.log10(lowest), math.log10(highest)
    ticks = [low + (high - low) * i / 4 for i in range(5)] if high > low else [low]
    figure.add_heatmap(
        z=[[math.log10(v.mean) if v and v.mean > 0 else None for v in r] for r in matrix.cells],
        x=[str(b) for b in matrix.tested],
        y=[str(b).replace(", ", "<br>") for b in matrix.trained],
        customdata=[[formats.error_spread(v) for v in row] for row in matrix.cells],
        hovertemplate="trained at %{y}, tested at %{x}<br>VRMSE %{customdata}<extra></extra>",
        colorscale="Cividis",
        xgap=2,
        ygap=2,
        zmin=low,
        zmax=high,
        colorbar={
            "tickvals": ticks,
            "ticktext": [f"{10**t:.2g}" for t in ticks],
            "thickness": 12,
            "outlinewidth": 0,
            "title": {"text": "VRMSE", "side": "top"},
        },
    )
    figure.update_xaxes(type="category", showline=False, ticks="")
    figure.update_yaxes(type="category", showline=False, ticks="", autorange="reversed")
    for i, row in enumerate(matrix.cells):
        for j, value in enumerate(row):
            if text := _transfer_text(matrix, value, matrix.diverged[i][j]):
                shade = _position(value, low, high)
                # cividis is dark up to its middle; without a value the ground shows
                color = GRAY if shade is None else "#ffffff" if shade < 0.5 else "#000000"
                font = {"color": color, "size": 12}
                figure.add_annotation(x=j, y=i, text=text, showarrow=False, font=font)
    for i, trained in enumerate(matrix.trained):
        if trained in matrix.tested:
            j = list(matrix.tested).index(int(trained))
            box = {"x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5}
            line = {"color": OKABE_ITO["vermilion"], "width": 2.5}
            figure.add_shape(type="rect", **box, line=line)
    reference = formats.error(matrix.reference.mean if matrix.reference else None)
    return figures.Panel(f"Budget transfer of {matrix.label}", figure, f"Persistence: {reference}.")


def _position(value: Spread | None, low: float, high: float) -> float | None:
    """Where a cell lies on the color scale, from 0 to 1."""
    if value is None or value.mean <= 0:
        return None
    return (math.log10(value.mean) - low) / (high - low) if high > low else 0.5


def _transfer_text(matrix: Transfer, value: Spread | None, bad: int) -> str:
    if value is None:
        return "diverged" if bad else ""
    more = " †" if matrix.beaten(value) else ""
    return f"{value.mean:.3g}{more}" + (f" ({bad} div.)" if bad else "")
