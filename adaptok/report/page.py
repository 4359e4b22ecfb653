"""The report as one HTML file that needs nothing else: styles, scripts and plotly.js are inside."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from adaptok.report import tables
from adaptok.report.colors import dark_colors, looks
from adaptok.report.contents import ReportContents, Section, not_finished
from adaptok.report.curve_figures import learning_panels, rollout_panels, spectrum_panels
from adaptok.report.error_figures import cost_panels, transfer_panels
from adaptok.report.figures import Panel
from adaptok.report.gallery import pictures_of
from adaptok.report.runs import LeftOut
from adaptok.report.summaries import transfers

TEMPLATES = FileSystemLoader(Path(__file__).with_name("assets"))


def page(contents: ReportContents, out: str | Path, csv: str = "") -> str:
    """Renders the HTML of a report; text that comes from runs is escaped by the template.

    Args:
        contents: what it shows.
        out: folder that the page will be in; links to runs start from it.
        csv: text of the tidy table, for a button that saves it.
    """
    problems: list[LeftOut] = []
    sections = [_section(s, f"set{i}", problems) for i, s in enumerate(contents.sections)]
    labels = {id(run): g.label for g in contents.groups for run in (*g.runs, *g.pending)}
    groups = {(g.comparison, g.label) for g in contents.groups if g.runs}
    used = [look for section in sections for look in section["looks"].values()]
    left = [*not_finished(contents.read), *problems]
    environment = Environment(
        loader=TEMPLATES, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": _figure_json, "breakable": _breakable}
    return environment.get_template("page.html").render(
        contents=contents,
        link=lambda run: tables.link_to(run, Path(out)),
        verdicts=tables.verdict_sheet(contents.verdicts),
        sections=sections,
        cards={
            "runs tested": f"{len(contents.tested)} of {len(contents.read.runs)}",
            **_counted(len(groups), "model"),
            **_counted(len({run.data for run in contents.tested}), "data set"),
            "of the tested runs": contents.seeds_named,
        },
        runs=tables.runs_sheet(contents.read.runs, labels, Path(out)),
        left=tables.left_out_sheet(left),
        plotly=Markup(get_plotlyjs()),
        dark=dark_colors(used),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        csv=base64.b64encode(csv.encode()).decode(),
    )


def _counted(number: int, noun: str) -> dict[str, int]:
    return {noun if number == 1 else f"{noun}s": number}


def _section(section: Section, name: str, problems: list[LeftOut]) -> dict[str, Any]:
    """Collects what the template shows of a comparison; leaves out parts without content."""
    looked, rows, measure = looks(section.groups), section.rows, section.comparison.measure
    parts: list[dict[str, Any]] = []
    if rows:
        fields = tables.fields_sheet(rows)
        sheet = tables.results_sheet(rows)
        parts.append({"name": "results", "sheet": sheet, "more": ("By field", fields)})
    panels = {
        "cost": cost_panels(rows, looked),
        "transfer": transfer_panels(transfers(rows)),
        "learning": learning_panels(section.groups, looked),
        "rollout": rollout_panels(rows, looked),
        "spectra": spectrum_panels(rows, looked),
    }
    for key, own in panels.items():
        if own:
            steps = tables.rollout_sheet(rows) if key == "rollout" else None
            parts.append({"name": key, "panels": own, "more": ("As a table", steps)})
    if pictures := pictures_of(section.groups, problems):
        parts.append({"name": "cells", "pictures": pictures})
    about = {"name": name, "title": section.comparison.title, "measure": measure}
    return about | {"warnings": section.warnings, "looks": looked, "parts": parts}


def _figure_json(panel: Panel) -> Markup:
    """Writes a figure for a script element, which "</" would end."""
    return Markup(str(panel.figure.to_json()).replace("</", "<\\/"))


def _breakable(text: str) -> Markup:
    """Adds places to break a long name."""
    return Markup("_<wbr>").join(text.split("_"))
