"""Parts of the page: tables, figures, legends. All text that comes from runs is escaped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from adaptok.report.gallery import Picture
from adaptok.report.panels import Panel
from adaptok.report.records import Run
from adaptok.report.sheet import Cell, Column, Sheet
from adaptok.report.theme import Look

# Marks of plotly, drawn for the legend in a box of 12 x 12.
SHAPES = {
    "circle": '<circle cx="6" cy="6" r="4.2"/>',
    "square": '<rect x="2" y="2" width="8" height="8"/>',
    "diamond": '<path d="M6 1l5 5-5 5-5-5z"/>',
    "triangle-up": '<path d="M6 1.5l5 8.5H1z"/>',
    "cross": '<path d="M4.3 1h3.4v3.3H11v3.4H7.7V11H4.3V7.7H1V4.3h3.3z"/>',
    "x": '<path d="M3 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
    "star": '<path d="M6 .8l1.6 3.5 3.8.4-2.8 2.6.8 3.8L6 9.2l-3.4 1.9.8-3.8L.6 4.7l3.8-.4z"/>',
    "hexagon": '<path d="M3.5 1.7h5L11 6l-2.5 4.3h-5L1 6z"/>',
}
FILTER = '<input type="search" class="filter" placeholder="filter rows" aria-label="filter rows">'
FILTERED = 12  # tables with more rows can be filtered
MANY = 14  # models; a longer legend scrolls
STATES = {"counts": "good", "no result": "bad", "failed": "bad", "diverged": "bad"}
DASHES = {
    "solid": "",
    "dash": "6 3",
    "dashdot": "6 2 2 2",
    "longdash": "11 3",
    "longdashdot": "11 2 2 2",
}


def sheet_html(sheet: Sheet, looked: Mapping[str, Look] | None = None) -> str:
    """A sortable table with its caption."""
    numeric = {
        number
        for number in range(len(sheet.columns))
        if any(isinstance(row[number].value, (int, float)) for row in sheet.rows)
    }
    head = "".join(_head(c, n in numeric) for n, c in enumerate(sheet.columns))
    body = "".join(
        f"<tr>{''.join(_cell(cell, n, n in numeric, looked) for n, cell in enumerate(row))}</tr>\n"
        for row in sheet.rows
    )
    caption = f'<p class="caption">{escape(sheet.caption)}</p>'
    table = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    search = FILTER if len(sheet.rows) > FILTERED else ""
    return f'<div class="sheet">{caption}{search}<div class="scroll">{table}</div></div>'


def _head(column: Column, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    hint = f' title="{escape(column.hint)}"' if column.hint else ""
    return (
        f'<th scope="col" aria-sort="none"{kind}{hint}>'
        f'<button type="button">{escape(column.title)}</button></th>'
    )


def _cell(cell: Cell, number: int, numeric: bool, looked: Mapping[str, Look] | None) -> str:
    classes = [f"rank{cell.rank}"] if cell.rank else []
    classes += ["weak"] if cell.weak else []
    classes += ["number"] if numeric else []
    classes += [STATES[cell.text]] if cell.text in STATES else []
    classes += ["prose"] if len(cell.text) > 60 else []
    attributes = f' class="{" ".join(classes)}"' if classes else ""
    if cell.value is not None:
        attributes += f' data-value="{escape(str(cell.value))}"'
    if cell.hint:
        attributes += f' title="{escape(cell.hint)}"'
    text = escape(cell.text)
    if cell.link:
        text = f'<a href="{escape(cell.link)}">{text}</a>'
    if looked and number == 0 and cell.text in looked:
        text = key_html(looked[cell.text]) + text
    tag = "th" if number == 0 else "td"
    scope = ' scope="row"' if number == 0 else ""
    return f"<{tag}{scope}{attributes}>{text}</{tag}>"


def key_html(look: Look) -> str:
    """The mark of a group: a line with its symbol."""
    dash = f' stroke-dasharray="{DASHES[look.dash]}"' if DASHES[look.dash] else ""
    return (
        f'<svg class="key" style="--light:{look.colour};--dark:{look.dark}" '
        'width="28" height="12" aria-hidden="true">'
        f'<path d="M0 6h28" stroke="currentColor" stroke-width="1.6"{dash}/>'
        f'<g transform="translate(8 0)" fill="currentColor">{SHAPES[look.symbol]}</g></svg>'
    )


def legend_html(looked: Mapping[str, Look]) -> str:
    """Buttons that show and hide a group in all figures of a section."""
    buttons = "".join(
        f'<button type="button" class="chip" aria-pressed="true" data-label="{escape(label)}">'
        f"{key_html(look)}{escape(label)}</button>"
        for label, look in looked.items()
    )
    hint = "Click a model to hide it in all plots below, double-click to see it alone."
    many = " many" if len(looked) > MANY else ""
    return f'<div class="legend{many}" title="{hint}">{buttons}</div>'


def breakable(text: str) -> str:
    """Escaped, with places to break a long name."""
    return escape(text).replace("_", "_<wbr>")


def panels_html(panels: Sequence[Panel], prefix: str, note: str = "") -> str:
    """Figures in a grid below what they have in common; each is drawn when it comes into view."""
    above = f'<p class="caption">{escape(note)}</p>' if note else ""
    parts = []
    for number, panel in enumerate(panels):
        name = f"{prefix}-{number}"
        height = panel.figure.to_dict()["layout"]["height"]
        parts.append(
            f'<figure class="panel"><h4>{escape(panel.title)}</h4>'
            f'<div class="plot" id="{name}" style="height:{height}px" role="img" '
            f'aria-label="{escape(panel.title)}"></div>'
            f'<script type="application/json" data-for="{name}">{as_json(panel)}</script>'
            f"<figcaption>{escape(panel.caption)}</figcaption></figure>"
        )
    return f'{above}<div class="panels">{"".join(parts)}</div>'


def as_json(panel: Panel) -> str:
    """A figure for a script element, which "</" would end."""
    content = json.loads(str(panel.figure.to_json()))
    slim = {"data": content["data"], "layout": content["layout"]}
    return json.dumps(slim, separators=(",", ":")).replace("</", "<\\/")


def pictures_html(pictures: Sequence[Picture], out: Path) -> str:
    """Pictures with the run that each is from; a click enlarges."""
    parts = [
        f'<figure class="picture{" wide" if p.width > 2.6 * p.height else ""}">'
        f'<button type="button" class="zoom" title="enlarge">'
        f'<img src="{p.uri}" width="{p.width}" height="{p.height}" loading="lazy" '
        f'alt="{escape(f"{p.label}: {p.caption}")}"></button>'
        f"<figcaption><b>{escape(p.label)}</b>, {escape(p.caption)}; run "
        f'<a href="{escape(link_to(p.run, out))}">{escape(p.run.name)}</a></figcaption></figure>'
        for p in pictures
    ]
    return f'<div class="pictures">{"".join(parts)}</div>'


def link_to(run: Run, out: Path) -> str:
    """The run folder as seen from the page."""
    path = os.path.relpath(run.folder.resolve(), out.resolve())
    return quote(Path(path).as_posix()) + "/"
