"""Figures of one comparison: learning curves, rollouts and spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from adaptok.report import figures
from adaptok.report.colors import REFERENCE, Look, faint
from adaptok.report.grouping import Group
from adaptok.report.runs import BANDS, Number
from adaptok.report.summaries import Summary, mean_curve, rollouts, spread

LONGEST = 300  # points of a learning curve


def learning_panels(groups: Sequence[Group], looked: Mapping[str, Look]) -> list[figures.Panel]:
    """Draws training loss and validation metric of every run, unfinished ones included."""
    measure = groups[0].comparison.measure
    validated = ("val/vrmse", "validation VRMSE") if measure.lower else ("val/error", "error rate")
    runs = [run for group in groups for run in (*group.runs, *group.pending)]
    # Not that of the test, which is of other samples than the curves; older runs have none.
    logged = [[row["val/persistence"] for row in r.curve if "val/persistence" in row] for r in runs]
    reference = spread(values[-1] for values in logged if values)
    panels = []
    for key, title in (("train/loss", "training loss"), validated):
        frame = _learning_frame(groups, key)
        if frame.empty:
            continue
        figure = figures.new_figure("training step", f"{title} (lower is better)", log="y")
        hover = "<b>%{fullData.name}</b><br>%{text}<br>step %{x}: %{y:.4g}"
        figures.add_lines(
            figure, frame, looked, hover, width=1.3, line_group="run", custom_data=["text", "done"]
        )
        for trace in figures.traces(figure):
            text, done = trace.customdata[0]
            trace.update(text=text, customdata=None, line={} if done else {"dash": "dot"})
            if len(trace.x) > figures.MARKED:
                trace.update(opacity=0.75)
        known = reference.mean if reference and key == "val/vrmse" else None
        if figures.span(frame["y"]) < 1.5:
            figure.update_yaxes(type="linear")
        else:
            figure.update_yaxes(**figures.log_ticks([*frame["y"], known]))
        figures.reference_line(figure, known, "persistence (validation)")
        panels.append(figures.Panel(title[0].upper() + title[1:], figure))
    return panels


def _learning_frame(groups: Sequence[Group], key: str) -> pd.DataFrame:
    """A row per logged step; leaves out evaluations of runs that are listed themselves."""
    frames = [pd.DataFrame(columns=["y"])]
    for group in groups:
        runs = [*group.runs, *group.pending]
        folders = {run.folder.resolve() for run in runs}
        for run in runs:
            if run.source is not None and run.source.resolve() in folders:
                continue
            logged = [(row["step"], row[key]) for row in run.curve if key in row]
            frame = pd.DataFrame(logged[:: max(1, len(logged) // LONGEST)], columns=["x", "y"])
            text = f"{run.name}<br>seed {run.seed}, {run.status}"
            about = {"model": group.label, "run": run.name, "text": text}
            frames.append(frame.assign(**about, done=bool(run.results)))
    found = [frame for frame in frames if len(frame)]
    return pd.concat(found) if found else frames[0]


def rollout_panels(rows: Sequence[Summary], looked: Mapping[str, Look]) -> list[figures.Panel]:
    """Draws VRMSE against the rollout step, with persistence."""
    home, reference = rollouts(rows)
    if not home:
        return []
    figure = figures.new_figure("rollout step", "VRMSE (lower is better)")
    hover = "<b>%{fullData.name}</b><br>step %{x}: VRMSE %{y:.4g}"
    own = [row for row in home if not row.is_reference]
    for row in own:
        _draw_band(figure, row, looked[row.label])
    curves = {"persistence": reference, **{row.label: row.curve("rollout") for row in own}}
    frame = pd.concat([figures.points(label, curve) for label, curve in curves.items()])
    figures.add_lines(figure, frame, {**looked, "persistence": REFERENCE}, hover)
    if figures.span(frame["y"]) > 20:
        figure.update_yaxes(type="log", **figures.log_ticks(figures.drawn(figure, "y")))
    return [figures.Panel("Error against the rollout step", figure), *_flicker_panels(own, looked)]


def _flicker_panels(rows: Sequence[Summary], looked: Mapping[str, Look]) -> list[figures.Panel]:
    """Draws which share of the cells is new in each step."""
    frames = [figures.points(row.label, row.curve("flicker")) for row in rows]
    share = "share of new cells (lower: steadier)"
    figure = _figure(frames, looked, "rollout step", share, "step %{x}: share")
    if figure is None:
        return []
    caption = "Share of cells that are new in each step, mean over trajectories."
    return [figures.Panel("Flicker of the cells", figure, caption)]


def _draw_band(figure: go.Figure, row: Summary, look: Look) -> None:
    """Fills one standard deviation around the mean rollout, where no run diverged."""
    lists = row.lists("rollout")
    if len(lists) < 2:
        return
    frame = pd.DataFrame(list(zip(*lists, strict=False)), dtype=float)
    frame = frame[frame.notna().all(axis=1)]
    mean, std = frame.mean(axis=1), frame.std(axis=1)
    steps = list(frame.index + 1)
    figure.add_scatter(
        x=[*steps, *reversed(steps)],
        y=[*(mean + std), *(mean - std).clip(lower=1e-12)[::-1]],
        fill="toself",
        fillcolor=faint(look.color, 0.15),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=row.label,
        legendgroup=row.label,
    )


def spectrum_panels(rows: Sequence[Summary], looked: Mapping[str, Look]) -> list[figures.Panel]:
    """Draws where in the spectrum the errors are, and patch artifacts."""
    home = [row for row in rows if row.home and not row.is_reference]
    step, wave = "rollout step", "wavenumber (cycles per grid point)"
    error = "squared error / energy (lower is better)"
    power = "power of the residual (lower is better)"
    at_wave = "%{x:.3g} cycles per grid point:"
    panels = {}
    for i, band in enumerate(BANDS):
        curves = [mean_curve([[s[i] for s in b] for b in row.lists("bands")]) for row in home]
        frames = [figures.points(r.label, c) for r, c in zip(home, curves, strict=True)]
        title = f"{band.capitalize()} wavenumbers"
        panels[title] = _figure(frames, looked, step, error, "step %{x}: error", log="y")
    frames = [_residual_power(row) for row in home]
    panels["Spectrum of the residual"] = _figure(frames, looked, wave, power, at_wave, log="xy")
    found = [figures.Panel(title, figure) for title, figure in panels.items() if figure is not None]
    return found + _artifact_panels(home, looked)


def _artifact_panels(home: Sequence[Summary], looked: Mapping[str, Look]) -> list[figures.Panel]:
    """Draws the rise at the harmonics of patches, a panel per period: those of patches of another
    size are other wavenumbers.
    """
    rolled = [row for row in home if any(row.curve("rollout"))]
    without = [row.label for row in rolled if not any(row.curve("harmonics"))]
    absent = f" Not shown, without 4 or more whole patches along an axis: {'; '.join(without)}."
    periods: dict[str, list[Summary]] = {}
    for row in home:
        if any(row.curve("harmonics")):
            known = {" x ".join(f"{n:g}" for n in period) for period in row.lists("period")}
            periods.setdefault(", ".join(sorted(known)) or "unknown", []).append(row)
    panels = []
    for period, rows in periods.items():
        frames = [figures.points(row.label, row.curve("harmonics")) for row in rows]
        rise = "rise at the harmonics (1 is best)"
        figure = _figure(frames, looked, "rollout step", rise, "step %{x}: ratio")
        if figure is not None:
            figures.reference_line(figure, 1.0, "no artifacts")
            caption = (
                "Power of the residual at the harmonics of the patches over that beside them; 1: a "
                "residual without patch artifacts."
            ) + (absent if without else "")
            panels.append(figures.Panel(f"Patch artifacts, period {period}", figure, caption))
    return panels


def _figure(
    frames: Sequence[pd.DataFrame],
    looked: Mapping[str, Look],
    x: str,
    y: str,
    hover: str,
    *,
    log: str = "",
) -> go.Figure | None:
    """Draws a line per model; None if nothing was measured."""
    frames = [frame for frame in frames if len(frame.dropna())]
    if not frames:
        return None
    figure, frame = figures.new_figure(x, y, log=log), pd.concat(frames)
    hover = f"<b>%{{fullData.name}}</b><br>{hover} %{{y:.4g}}"
    figures.add_lines(figure, frame, looked, hover, mode="lines" if "x" in log else "")
    if "x" in log:
        figure.update_xaxes(**figures.log_ticks(frame["x"]))
    if "y" in log:
        text = figures.power_of_ten if "x" in log else "{:g}".format
        figure.update_yaxes(**figures.log_ticks(frame["y"], text))
    return figure


def _residual_power(row: Summary) -> pd.DataFrame:
    """Power by wavenumber at the last step; beyond 0.5 there are corners only."""
    pairs = [(r.curves.get("wavenumber"), r.curves.get("power")) for _, r in row.pairs]
    known = [(waves, power[-1]) for waves, power in pairs if waves and power]
    power: list[Number] = mean_curve([power for _, power in known])
    frame = figures.points(row.label, power, known[0][0][: len(power)] if known else ())
    return frame.query("0 < x <= 0.5")
