"""Figures of one data set: learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from adaptok.report.grouping import Group
from adaptok.report.panels import Axis, Panel, log_ticks, new_figure, reference_line, rounded, span
from adaptok.report.records import Run
from adaptok.report.summaries import spread
from adaptok.report.theme import Look, faint

POINTS = 300  # of a learning curve


def learning_panels(groups: Sequence[Group], looked: Mapping[str, Look]) -> list[Panel]:
    """Training loss and the validation metric of every run, also of those that go on."""
    measure = groups[0].table.measure
    validated = ("val/vrmse", "validation VRMSE") if measure.lower else ("val/error", "error rate")
    reference = spread(run.reference for group in groups for run in group.runs)
    panels = []
    for key, title in (("train/loss", "training loss"), validated):
        figure = new_figure(Axis("training step"), Axis(f"{title} (lower is better)", log=True))
        values = [
            value
            for group in groups
            for run in _trained(group)
            for value in _draw_curve(figure, group, run, key, looked[group.label])
        ]
        if not values:
            continue
        known = reference.mean if reference and key == "val/vrmse" else None
        if span(values) < 1.5:
            figure.update_yaxes(type="linear")
        else:
            figure.update_yaxes(**log_ticks([*values, known], "{:g}".format))
        reference_line(figure, known, "persistence (test)")
        caption = "A line per run; dotted: not finished. Flat at the end: trained long enough."
        if key == "train/loss":
            caption = "A line per run, each in the units of its own loss; dotted: not finished."
        panels.append(Panel(title[0].upper() + title[1:], figure, caption))
    return panels


def _trained(group: Group) -> list[Run]:
    """Without evaluations of runs that are there themselves."""
    runs = [*group.runs, *group.pending]
    folders = {run.folder.resolve() for run in runs}
    return [r for r in runs if r.source is None or r.source.resolve() not in folders]


def _draw_curve(figure: go.Figure, group: Group, run: Run, key: str, look: Look) -> list[float]:
    points = [(row["step"] + 1, row[key]) for row in run.curve if key in row]
    points = points[:: max(1, len(points) // POINTS)]
    if not points:
        return []
    sparse = len(points) < 30
    figure.add_scatter(
        x=[x for x, _ in points],
        y=rounded(y for _, y in points),
        mode="lines+markers" if sparse else "lines",
        line={
            "color": look.colour if sparse else faint(look.colour, 0.75),
            "width": 1.3,
            "dash": look.dash if run.results else "dot",
        },
        marker={"size": 5, "symbol": look.symbol, "color": look.colour},
        hovertemplate=f"<b>{group.label}</b><br>{run.name}<br>seed {run.seed}, {run.status}"
        "<br>step %{x}: %{y:.4g}<extra></extra>",
        name=group.label,
        meta=group.label,
    )
    return [y for _, y in points if y > 0]
