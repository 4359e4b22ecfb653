"""The report as one HTML file that needs nothing else: styles, scripts and plotly.js are inside."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import NamedTuple

from plotly.offline import get_plotlyjs

from adaptok.report import formats
from adaptok.report.curves import learning_panels, rollout_panels, spectrum_panels
from adaptok.report.figures import cost_note, cost_panels, transfer_panel
from adaptok.report.gallery import pictures_of
from adaptok.report.html import (
    breakable,
    legend_html,
    link_to,
    panels_html,
    pictures_html,
    sheet_html,
)
from adaptok.report.markdown import environment_lines
from adaptok.report.notes import Contents, Section, not_finished
from adaptok.report.records import Problem, Run
from adaptok.report.sheets import (
    Cell,
    Column,
    Sheet,
    fields_sheet,
    results_sheet,
    rollout_sheet,
    verdict_sheet,
)
from adaptok.report.theme import DARK, Look, looks
from adaptok.report.transfer import transfers

ASSETS = Path(__file__).with_name("assets")


def page(contents: Contents, out: str | Path, csv: str = "") -> str:
    """The HTML of a report.

    Args:
        contents: what it shows.
        out: folder that the page will be in, which links to runs start from.
        csv: text of the tidy table, for a button that saves it.
    """
    target = Path(out)
    problems: list[Problem] = []
    blocks = [
        _blocks(section, f"set{number}", target, problems)
        for number, section in enumerate(contents.sections)
    ]
    body = [_summary(contents)]
    for number, (section, own) in enumerate(zip(contents.sections, blocks, strict=True)):
        body.append(_section(section, f"set{number}", own))
    body += [_runs(contents, target), _left_out(contents, problems)]
    parts = {
        "style": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "script": (ASSETS / "page.js").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "dark": json.dumps(DARK),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "csv": base64.b64encode(csv.encode()).decode(),
        "contents": _table_of_contents(contents, blocks),
        "body": "\n".join(body),
    }
    template = (ASSETS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


class Block(NamedTuple):
    """A part of a section."""

    name: str
    title: str
    html: str


def _table_of_contents(contents: Contents, blocks: Sequence[Sequence[Block]]) -> str:
    items = ['<li><a href="#summary">Summary</a></li>']
    for section, own in zip(contents.sections, blocks, strict=True):
        inner = "".join(f'<li><a href="#{b.name}">{escape(b.title)}</a></li>' for b in own)
        first = own[0].name.partition("-")[0] if own else "summary"
        title = breakable(section.table.title)
        items.append(f'<li><a href="#{first}">{title}</a><ul>{inner}</ul></li>')
    items += ['<li><a href="#runs">Runs</a></li>', '<li><a href="#left">Left out</a></li>']
    return f"<ul>{''.join(items)}</ul>"


def _blocks(section: Section, name: str, out: Path, problems: list[Problem]) -> list[Block]:
    """The parts of a data set that there is something for."""
    rows, looked = section.rows, looks(section.groups)
    matrices = [transfer_panel(matrix) for matrix in transfers(rows)]
    panels = {
        "cost": (
            f"{'Error' if section.table.measure.lower else 'Accuracy'} and cost",
            cost_panels(rows, looked) if rows else [],
        ),
        "transfer": ("Budget transfer", matrices),
        "learning": ("Learning curves", learning_panels(section.groups, looked)),
        "rollout": ("Rollouts", rollout_panels(rows, looked)),
        "spectra": ("Spectra", spectrum_panels(rows, looked)),
    }
    blocks = [Block(f"{name}-results", "Results", _tables(section, looked))] if rows else []
    for key, (title, own) in panels.items():
        if own:
            note = cost_note(rows) if key == "cost" else ""
            html = panels_html(own, f"{name}-{key}-plot", note)
            html += _rollout_table(section, looked) if key == "rollout" else ""
            blocks.append(Block(f"{name}-{key}", title, html))
    pictures = pictures_of(section.groups, problems)
    if pictures:
        html = pictures_html(pictures, out)
        blocks.append(Block(f"{name}-cells", "Cells and fields", html))
    return blocks


def _summary(contents: Contents) -> str:
    tested = contents.with_results
    seeds = sorted({run.seed for run in tested if run.seed is not None})
    cards = {
        "runs tested": f"{len(tested)} of {len(contents.read.runs)}",
        "models": str(len({(g.table, g.label) for g in contents.groups if g.runs})),
        "data sets": str(len({run.data for run in tested})),
        "seeds": ", ".join(map(str, seeds)) or "unknown",
    }
    boxes = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{name}</span></div>'
        for name, value in cards.items()
    )
    lines = "".join(f"<li>{escape(line)}</li>" for line in environment_lines(contents))
    found = [(s.table.title, verdict) for s in contents.sections for verdict in s.verdicts]
    table = "<h3>Which comparisons count</h3>" + sheet_html(verdict_sheet(found)) if found else ""
    environment = f'<ul class="environment">{lines}</ul>' if lines else ""
    how = (ASSETS / "reading.html").read_text(encoding="utf-8")
    return (
        f'<section id="summary"><h2>Summary</h2><div class="cards">{boxes}</div>{environment}'
        f"{_warnings(contents.warnings)}{table}{how}</section>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    return "".join(f'<p class="careful"><b>Careful:</b> {escape(text)}.</p>' for text in warnings)


def _section(section: Section, name: str, blocks: Sequence[Block]) -> str:
    """A data set."""
    parts = "".join(
        f'<section class="part" id="{b.name}"><h3>{escape(b.title)}</h3>{b.html}</section>'
        for b in blocks
    )
    measure = section.table.measure
    return (
        f'<section class="set" id="{name}"><h2>{breakable(section.table.title)}</h2>'
        f'<p class="direction">{escape(measure.title)}: {escape(measure.direction)}</p>'
        f"{_warnings(section.warnings)}{legend_html(looks(section.groups))}{parts}</section>"
    )


def _tables(section: Section, looked: Mapping[str, Look]) -> str:
    fields = fields_sheet(section.rows)
    text = sheet_html(results_sheet(section.rows), looked)
    if fields is not None:
        text += f"<details><summary>By field</summary>{sheet_html(fields, looked)}</details>"
    return text


def _rollout_table(section: Section, looked: Mapping[str, Look]) -> str:
    sheet = rollout_sheet(section.rows)
    if sheet is None:
        return ""
    return f"<details><summary>As a table</summary>{sheet_html(sheet, looked)}</details>"


def _runs(contents: Contents, out: Path) -> str:
    """Every run with a link to its folder."""
    label_of = {
        id(run): group.label for group in contents.groups for run in (*group.runs, *group.pending)
    }
    titles = (
        "run",
        "data",
        "model",
        "seed",
        "status",
        "error",
        "tokens",
        "steps",
        "training",
        "device",
        "hardware",
        "date",
    )
    rows = [_run_row(run, label_of.get(id(run), "repeated"), out) for run in contents.read.runs]
    sheet = Sheet(
        "Links open the run folders, where they are still at their place.",
        [Column(title) for title in titles],
        rows,
    )
    return f'<section id="runs"><h2>Runs</h2>{sheet_html(sheet)}</section>'


def _run_row(run: Run, label: str, out: Path) -> list[Cell]:
    home, about = run.home, run.environment
    error = home.get(run.measure.key) if home else None
    tokens = home.get("tokens") if home else None
    steps = run.values.get("training_steps") or run.config.get("trainer.max_steps")
    training = run.values.get("training_seconds")
    if training is None and isinstance(steps, (int, float)) and steps > 0:
        step = run.values.get("seconds_per_training_step")
        training = step * steps if step else None
    diverged = home is not None and error is None
    return [
        Cell(run.name, run.name, link=link_to(run, out)),
        Cell(run.data, run.data),
        Cell(label, label),
        Cell("" if run.seed is None else str(run.seed), run.seed),
        Cell(run.status, run.status, hint=run.note),
        Cell("diverged" if diverged else formats.error(error), error),
        Cell(formats.count(tokens), tokens),
        Cell("" if steps is None else f"{steps:.0f}", steps),
        Cell(formats.seconds(training), training),
        Cell(about.get("device", ""), about.get("device", "")),
        Cell(about.get("hardware", ""), about.get("hardware", "")),
        Cell(about.get("when", "")[:16].replace("T", " "), about.get("when", "")),
    ]


def _left_out(contents: Contents, problems: Sequence[Problem]) -> str:
    left = [*not_finished(contents.read), *problems]
    rows = [[Cell(str(folder), str(folder)), Cell(what, what)] for folder, what in left]
    sheet = Sheet(
        "What is not in the means above, or only in part.", [Column("folder"), Column("why")], rows
    )
    text = sheet_html(sheet) if rows else "<p>Every folder was read and every run is finished.</p>"
    return f'<section id="left"><h2>Not finished, diverged or left out</h2>{text}</section>'
