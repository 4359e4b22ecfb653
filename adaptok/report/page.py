"""The report as one HTML file that needs nothing else: styles, scripts and plotly.js are inside."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from adaptok.report import formats
from adaptok.report.html import breakable, link_to, sheet_html
from adaptok.report.markdown import environment_lines
from adaptok.report.notes import Contents, not_finished
from adaptok.report.records import Problem, Run
from adaptok.report.sections import Block, blocks_of, section_html, warnings_html
from adaptok.report.sheet import Cell, Column, Sheet
from adaptok.report.sheets import verdict_sheet
from adaptok.report.theme import DARK, looks

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
        blocks_of(section, f"set{number}", target, problems)
        for number, section in enumerate(contents.sections)
    ]
    body = [_summary(contents)]
    for number, (section, own) in enumerate(zip(contents.sections, blocks, strict=True)):
        body.append(section_html(section, f"set{number}", own))
    body += [_runs(contents, target), _left_out(contents, problems)]
    parts = {
        "style": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "script": (ASSETS / "page.js").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "dark": json.dumps(_dark(contents)),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "csv": base64.b64encode(csv.encode()).decode(),
        "contents": _table_of_contents(contents, blocks),
        "body": "\n".join(body),
    }
    template = (ASSETS / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _dark(contents: Contents) -> dict[str, str]:
    """Every colour that figures have, with that of the dark page."""
    used = [look for section in contents.sections for look in looks(section.groups).values()]
    return DARK | {look.colour: look.dark for look in used}


def _table_of_contents(contents: Contents, blocks: Sequence[Sequence[Block]]) -> str:
    items = ['<li><a href="#summary">Summary</a></li>']
    for section, own in zip(contents.sections, blocks, strict=True):
        inner = "".join(f'<li><a href="#{b.name}">{escape(b.title)}</a></li>' for b in own)
        first = own[0].name.partition("-")[0] if own else "summary"
        title = breakable(section.table.title)
        items.append(f'<li><a href="#{first}">{title}</a><ul>{inner}</ul></li>')
    items += ['<li><a href="#runs">Runs</a></li>', '<li><a href="#left">Left out</a></li>']
    return f"<ul>{''.join(items)}</ul>"


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
        f"{warnings_html(contents.warnings)}{table}{how}</section>"
    )


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
    rows = [_run_row(run, label_of[id(run)], out) for run in contents.read.runs]
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
