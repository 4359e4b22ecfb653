"""Figures of one data set: budget transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from adaptok.report import formats
from adaptok.report.panels import Axis, Panel, new_figure
from adaptok.report.transfer import Transfer

TRANSFER_NOTE = (
    "VRMSE (lower is better, darker; equal colours in all panels), mean over seeds. Rows: tokens "
    "per sample in training; columns: in the test; framed: the same. A model that transfers has an "
    "even row. † not better than persistence."
)


def transfer_panels(matrices: Sequence[Transfer]) -> list[Panel]:
    """Budget in training by budget in the test, with the error in each cell."""
    errors = [v.mean for m in matrices for row in m.cells for v in row if v and v.mean > 0]
    return [_transfer_panel(matrix, (min(errors), max(errors))) for matrix in matrices if errors]


def _transfer_panel(matrix: Transfer, limits: tuple[float, float]) -> Panel:
    means = [[v.mean if v else None for v in row] for row in matrix.cells]
    texts = [
        [_transfer_text(matrix, i, j) for j in range(len(matrix.tested))]
        for i in range(len(matrix.trained))
    ]
    figure = new_figure(
        Axis("tokens per sample in the test"),
        Axis("tokens per sample in training"),
        height=max(220, 46 * len(matrix.trained) + 120),
    )
    figure.add_heatmap(
        z=[[None if v is None or v <= 0 else math.log10(v) for v in row] for row in means],
        x=[str(b) for b in matrix.tested],
        y=[str(b).replace(", ", "<br>") for b in matrix.trained],
        text=texts,
        texttemplate="%{text}",
        customdata=[[formats.error_spread(v) for v in row] for row in matrix.cells],
        hovertemplate="trained at %{y}, tested at %{x}<br>VRMSE %{customdata}<extra></extra>",
        colorscale="Cividis",
        xgap=2,
        ygap=2,
        zmin=math.log10(limits[0]),
        zmax=math.log10(limits[1]),
        colorbar=_colour_bar(limits),
    )
    figure.update_xaxes(type="category", showline=False, ticks="")
    figure.update_yaxes(type="category", showline=False, ticks="", autorange="reversed")
    _outline_home(figure, matrix)
    reference = formats.error(matrix.reference.mean if matrix.reference else None)
    return Panel(f"Budget transfer of {matrix.label}", figure, f"Persistence: {reference}.")


def _transfer_text(matrix: Transfer, row: int, column: int) -> str:
    value, bad = matrix.cells[row][column], matrix.diverged[row][column]
    if value is None:
        return "diverged" if bad else ""
    beaten = matrix.reference is not None and value.mean >= matrix.reference.mean
    return f"{value.mean:.3g}" + (" †" if beaten else "") + (f" ({bad} div.)" if bad else "")


def _outline_home(figure: go.Figure, matrix: Transfer) -> None:
    for i, trained in enumerate(matrix.trained):
        if trained in matrix.tested:
            j = list(matrix.tested).index(int(trained))
            box = {"x0": j - 0.5, "x1": j + 0.5, "y0": i - 0.5, "y1": i + 0.5}
            figure.add_shape(type="rect", **box, line={"color": "#D55E00", "width": 2.5})


def _colour_bar(limits: tuple[float, float]) -> dict[str, Any]:
    """Ticks in VRMSE on colours that follow its logarithm."""
    low, high = map(math.log10, limits)
    ticks = [low + (high - low) * i / 4 for i in range(5)] if high > low else [low]
    texts = [f"{10**t:.2g}" for t in ticks]
    return {
        "tickvals": ticks,
        "ticktext": texts,
        "thickness": 12,
        "outlinewidth": 0,
        "title": {"text": "VRMSE", "side": "top"},
    }
