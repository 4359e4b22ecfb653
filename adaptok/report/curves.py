"""Figures of one data set: rollouts and spectra."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go

from adaptok.report.panels import (
    Axis,
    Panel,
    drawn,
    log_ticks,
    new_figure,
    power_of_ten,
    reference_line,
    rounded,
    span,
)
from adaptok.report.parsing import BANDS
from adaptok.report.records import Number
from adaptok.report.summaries import Summary, spread
from adaptok.report.theme import REFERENCE, Look, faint


def rollout_panels(rows: Sequence[Summary], looked: Mapping[str, Look]) -> list[Panel]:
    """VRMSE against the rollout step, with persistence."""
    home = [row for row in rows if row.home and any(row.curve("rollout"))]
    if not home:
        return []
    figure = new_figure(Axis("rollout step"), Axis("VRMSE (lower is better)"))
    reference = next((r.reference_rollout for row in home for r, _ in row.pairs), ())
    if reference:
        _line(figure, "persistence", reference, REFERENCE, "VRMSE")
    for row in home:
        if not row.is_reference:
            _band(figure, row, "rollout", looked[row.group.label])
            label = row.group.label
            _line(figure, label, row.curve("rollout"), looked[label], "VRMSE")
    values = [v for row in home for v in row.curve("rollout")]
    if span([*values, *reference]) > 20:
        figure.update_yaxes(type="log", **log_ticks(drawn(figure, "y"), "{:g}".format))
    caption = (
        "Errors of predictions that are fed back as input, mean over fields, trajectories and "
        "seeds; the band is one sample standard deviation over seeds. 1 is the error of predicting "
        "the mean; a line that ends has diverged."
    )
    return [Panel("Error against the rollout step", figure, caption)]


def _line(figure: go.Figure, label: str, values: Sequence[Number], look: Look, unit: str) -> None:
    figure.add_scatter(
        x=list(range(1, len(values) + 1)),
        y=rounded(values),
        mode="lines+markers" if len(values) <= 30 else "lines",
        line={"color": look.colour, "width": 1.8, "dash": look.dash},
        marker={"size": 5, "symbol": look.symbol, "color": look.colour},
        hovertemplate=f"<b>{label}</b><br>step %{{x}}: {unit} %{{y:.4g}}<extra></extra>",
        name=label,
        meta=label,
    )


def _band(figure: go.Figure, row: Summary, name: str, look: Look) -> None:
    lists = [result.curves[name] for _, result in row.pairs if name in result.curves]
    if len(lists) < 2:
        return
    spreads = [spread(step) for step in zip(*lists, strict=False)]
    known = [(i + 1, s) for i, s in enumerate(spreads) if s is not None and s.n == len(lists)]
    upper = [s.mean + (s.std or 0) for _, s in known]
    lower = [max(s.mean - (s.std or 0), 1e-12) for _, s in known]
    steps = [i for i, _ in known]
    figure.add_scatter(
        x=[*steps, *reversed(steps)],
        y=rounded([*upper, *reversed(lower)]),
        fill="toself",
        fillcolor=faint(look.colour, 0.15),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=row.group.label,
        meta=row.group.label,
    )


def spectrum_panels(rows: Sequence[Summary], looked: Mapping[str, Look]) -> list[Panel]:
    """Where in the spectrum the errors are, and patch artifacts."""
    home = [row for row in rows if row.home and not row.is_reference]
    panels = [_bands_panel(home, looked, band) for band in range(len(BANDS))]
    panels += [_residual_panel(home, looked), _harmonics_panel(home, looked)]
    return [panel for panel in panels if panel is not None]


def _bands_panel(rows: Sequence[Summary], looked: Mapping[str, Look], band: int) -> Panel | None:
    axis = Axis("squared error / energy (lower is better)", log=True)
    figure = new_figure(Axis("rollout step"), axis)

    def values(row: Summary) -> list[Number]:
        lists = [
            [step[band] for step in r.curves["bands"]] for _, r in row.pairs if "bands" in r.curves
        ]
        return [
            s.mean if (s := spread(step)) and s.n == len(lists) else None
            for step in zip(*lists, strict=False)
        ]

    if not _draw(figure, rows, looked, values, "error"):
        return None
    caption = (
        f"Squared error over energy in the {BANDS[band]} one of three logarithmic bands of "
        "wavenumbers (BSNMSE). At 1 and above nothing of that scale is predicted."
    )
    return Panel(f"{BANDS[band].capitalize()} wavenumbers", figure, caption)


def _draw(
    figure: go.Figure,
    rows: Sequence[Summary],
    looked: Mapping[str, Look],
    values: Callable[[Summary], list[Number]],
    unit: str,
) -> bool:
    anything = False
    for row in rows:
        own = values(row)
        if any(v is not None for v in own):
            _line(figure, row.group.label, own, looked[row.group.label], unit)
            anything = True
    if anything and figure.layout.yaxis.type == "log":  # type: ignore[union-attr]
        figure.update_yaxes(**log_ticks(drawn(figure, "y"), "{:g}".format))
    return anything


def _residual_panel(rows: Sequence[Summary], looked: Mapping[str, Look]) -> Panel | None:
    figure = new_figure(
        Axis("wavenumber (cycles per grid point)", log=True),
        Axis("power of the residual (lower is better)", log=True),
    )
    for row in rows:
        lists = [
            (r.curves["wavenumber"], r.curves["power"][-1])
            for _, r in row.pairs
            if r.curves.get("power") and "wavenumber" in r.curves
        ]
        if not lists:
            continue
        power = [
            s.mean if (s := spread(p)) else None for p in zip(*(p for _, p in lists), strict=False)
        ]
        shown = [(w, p) for w, p in zip(lists[0][0], power, strict=False) if w and 0 < w <= 0.5]
        look = looked[row.group.label]
        figure.add_scatter(
            x=rounded(w for w, _ in shown),
            y=rounded(p for _, p in shown),
            mode="lines",
            line={"color": look.colour, "width": 1.6, "dash": look.dash},
            hovertemplate=f"<b>{row.group.label}</b><br>%{{x:.3g}} cycles per grid point: "
            "%{y:.3g}<extra></extra>",
            name=row.group.label,
            meta=row.group.label,
        )
    if not figure.data:
        return None
    figure.update_xaxes(**log_ticks(drawn(figure, "x"), "{:g}".format))
    figure.update_yaxes(**log_ticks(drawn(figure, "y"), power_of_ten))
    caption = (
        "Power of prediction − truth at the last rollout step, in units of each field's variance, "
        "summed over directions. Peaks are patterns with the period of a patch."
    )
    return Panel("Spectrum of the residual", figure, caption)


def _harmonics_panel(rows: Sequence[Summary], looked: Mapping[str, Look]) -> Panel | None:
    axis = Axis("rise at the harmonics (1 is best)")
    figure = new_figure(Axis("rollout step"), axis)
    if not _draw(figure, rows, looked, lambda row: row.curve("harmonics"), "ratio"):
        return None
    reference_line(figure, 1.0, "no artifacts")
    caption = (
        "Power of the residual at the harmonics of the coarsest patch over that beside them; 1: a "
        "residual without patch artifacts."
    )
    return Panel("Patch artifacts", figure, caption)
