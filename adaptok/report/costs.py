"""Figures of one data set: error against cost, with Pareto fronts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from adaptok.report import formats
from adaptok.report.panels import (
    GREY,
    Axis,
    Panel,
    drawn,
    log_ticks,
    new_figure,
    powers_of_two,
    reference_line,
    rounded,
    span,
)
from adaptok.report.records import Measure, Number
from adaptok.report.summaries import Spread, Summary, pareto_front
from adaptok.report.theme import Look, faint


class Cost(NamedTuple):
    """A number that a model costs, on the horizontal axis."""

    key: str
    title: str
    axis: str
    caption: str
    text: Callable[[Number], str]


COSTS = (
    Cost(
        "tokens",
        "Error against tokens",
        "tokens per sample",
        "Mean number of tokens of a sample, over all its frames.",
        formats.count,
    ),
    Cost(
        "flops",
        "Error against FLOPs",
        "FLOPs per sample and forward pass",
        "Matrix products, convolutions and attention, counted; a multiply-add is 2.",
        formats.quantity,
    ),
    Cost(
        "seconds_per_step",
        "Error against time",
        "time of a forward pass of a batch",
        "Wall-clock time as measured in the test; comparable on equal hardware only.",
        formats.seconds,
    ),
)
CLASSIFIER_COST = Cost(
    "images_per_second",
    "Accuracy against speed",
    "images per second",
    "As measured in the test, comparable on equal hardware only; best is the upper right.",
    formats.quantity,
)


class Point(NamedTuple):
    """A summary in the plane."""

    row: Summary
    x: float
    y: Spread


def cost_panels(rows: Sequence[Summary], looked: Mapping[str, Look]) -> list[Panel]:
    """A panel per cost that was measured, each with the Pareto front of all models."""
    if not rows:
        return []
    measure = rows[0].measure
    costs = COSTS if measure.lower else (*COSTS[:1], CLASSIFIER_COST)
    panels = []
    for cost in costs:
        points = _points(rows, cost.key)
        if points:
            title = cost.title if measure.lower else cost.title.replace("Error", "Accuracy")
            figure = _cost_figure(points, cost, measure, looked)
            panels.append(Panel(title, figure, cost.caption))
    return panels


def _points(rows: Sequence[Summary], key: str) -> list[Point]:
    points = []
    for row in rows:
        x, y = row.spread(key), row.error
        if x is not None and x.mean > 0 and y is not None and not row.is_reference:
            points.append(Point(row, x.mean, y))
    return points


def cost_note(measure: Measure) -> str:
    """What all panels of `cost_panels` show."""
    corner = "lower left" if measure.lower else "upper left"
    return (
        "Large marks: mean over seeds with the sample standard deviation; faint ones: single runs; "
        "lines join the settings of a model. The grey steps are the Pareto front; the best place "
        f"is the {corner}."
    )


def _cost_figure(
    points: Sequence[Point], cost: Cost, measure: Measure, looked: Mapping[str, Look]
) -> go.Figure:
    errors: list[Number] = [p.y.mean for p in points]
    mean = points[0].row.reference_of(measure.key)
    reference = mean.mean if mean and measure.lower else None
    log = measure.lower and span([*errors, reference]) > 2
    figure = new_figure(
        Axis(cost.axis, log=True), Axis(f"{measure.title} ({measure.direction})", log)
    )
    _draw_front(figure, points, measure, cost)
    for label in dict.fromkeys(point.row.group.label for point in points):
        own = sorted((p for p in points if p.row.group.label == label), key=lambda p: p.x)
        _draw_group(figure, own, looked[label], cost)
    reference_line(figure, reference, measure.reference)
    if cost.key == "tokens":
        figure.update_xaxes(**powers_of_two([p.x for p in points]))
    else:
        figure.update_xaxes(**log_ticks(drawn(figure, "x"), cost.text))
    if log:
        figure.update_yaxes(**log_ticks([*drawn(figure, "y"), reference], "{:g}".format))
    return figure


def _draw_front(figure: go.Figure, points: Sequence[Point], measure: Measure, cost: Cost) -> None:
    """The front of the points without diverged runs; higher accuracy and speed are turned round."""
    valid = [p for p in points if p.row.diverged == 0]
    x_sign = -1 if cost is CLASSIFIER_COST else 1
    y_sign = 1 if measure.lower else -1
    front = pareto_front([(x_sign * p.x, y_sign * p.y.mean) for p in valid])
    if len(front) < 2:
        return
    figure.add_scatter(
        x=rounded(valid[i].x for i in front),
        y=rounded(valid[i].y.mean for i in front),
        mode="lines",
        line={"color": faint(GREY, 0.45), "width": 6, "shape": "hv"},
        hoverinfo="skip",
        name="Pareto front",
    )


def _draw_group(figure: go.Figure, points: Sequence[Point], look: Look, cost: Cost) -> None:
    label = points[0].row.group.label
    singles = [
        (x, y, f"{run.name}<br>seed {run.seed}, {result.label}")
        for point in points
        for run, result in point.row.pairs
        if (x := result.get(cost.key)) and (y := result.get(point.row.measure.key)) is not None
    ]
    if any(point.y.n > 1 for point in points):
        figure.add_scatter(
            x=rounded(x for x, _, _ in singles),
            y=rounded(y for _, y, _ in singles),
            text=[text for _, _, text in singles],
            mode="markers",
            marker={"color": faint(look.colour, 0.35), "size": 6, "symbol": look.symbol},
            hovertemplate="%{text}<br><b>%{y:.4f}</b><extra></extra>",
            name=label,
            meta=label,
        )
    figure.add_scatter(
        x=rounded(p.x for p in points),
        y=rounded(p.y.mean for p in points),
        error_y={"array": [p.y.std or 0 for p in points], "thickness": 1.2, "width": 3},
        text=[_hover(p, cost) for p in points],
        mode="lines+markers" if len(points) > 1 else "markers",
        line={"color": look.colour, "width": 1.2, "dash": look.dash},
        marker={"color": look.colour, "size": 11, "symbol": look.symbol},
        hovertemplate="%{text}<extra></extra>",
        name=label,
        meta=label,
    )


def _hover(point: Point, cost: Cost) -> str:
    row = point.row
    seeds = ", ".join(str(run.seed) for run, _ in row.pairs)
    return (
        f"<b>{row.group.label}</b><br>{row.setting}<br>{row.measure.title} "
        f"{formats.error_spread(point.y)} (seeds {seeds})<br>"
        f"{cost.axis}: {cost.text(point.x)}"
    )
