"""The page of the reference benchmark, one HTML file that needs nothing else, or Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from adaptok.evaluation.standings import (
    MEASURES,
    TRACKS,
    Folder,
    Row,
    Standing,
    missing,
    short_commit,
    standings,
)
from adaptok.report.formats import MISSING
from adaptok.utils.atomic import replacing
from adaptok.utils.tables import table

TEMPLATES = FileSystemLoader(Path(__file__).with_name("assets"))
# Columns of each track: title, where the value comes from, its name there, and a factor.
Column = tuple[str, Callable[[Standing, str], float | None], str, float]
TOKENS: Column = ("tokens", Standing.cost, "tokens", 1)
COSTS: tuple[Column, ...] = (
    TOKENS,
    ("MFLOP", Standing.cost, "flops", 1e-6),
    ("training, ms", Standing.cost, "training", 1e3),
    ("inference, ms", Standing.cost, "inference", 1e3),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "T0": (
        ("change, means", Standing.mean, "change_0", 1),
        ("change, planes", Standing.mean, "change_1", 1),
        ("field, means", Standing.mean, "field_0", 1),
        ("field, planes", Standing.mean, "field_1", 1),
        ("cells, ms", Standing.cost, "cells", 1e3),
        TOKENS,
    ),
    "T1": (
        ("VRMSE", Standing.mean, "vrmse", 1),
        ("worst decile", Standing.mean, "worst_decile", 1),
        ("steps 6:12", Standing.window, "6:12", 1),
        ("steps 13:30", Standing.window, "13:30", 1),
        ("a quarter of the tokens", Standing.mean, "transfer", 1),
        *COSTS,
    ),
    "T2": (
        ("error", Standing.mean, "error", 1),
        ("dense loss", Standing.mean, "dense_loss", 1),
        *COSTS,
    ),
}
ABOUT = {
    "T0": "Error of the best polynomial of degree 0 (means) or 1 (planes) on each cell, relative "
    "to the norm, for the change until the next frame and for the field. Nothing is trained.",
    "T1": "One-step VRMSE on the test split, mean over samples, fields and seeds, and of rollouts "
    "over these steps; the last column of errors is the ratio of the error at a quarter of the "
    "tokens. Seconds are those of a batch, tokenizer included, on the machine of the row.",
    "T2": "Share of wrong answers; loss of dense features, 1 - cosine with those that the same "
    "weights give with all patches. Seconds: inference per image, training per batch.",
}


def write_leaderboard(found: Folder, quoted: Sequence[Row], path: Path) -> Path:
    """Writes the page; text that comes from rows is escaped by the template or set as text.

    Args:
        found: what was read, with what is left out.
        quoted: published rows, shown with sets that were measured under the same name or, without
            any, on their own.
        path: of the page; one that ends in .md becomes Markdown, without quoted rows.
    """
    text = markdown(found) if path.suffix == ".md" else _page(found, quoted)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _page(found: Folder, quoted: Sequence[Row]) -> str:
    measured = list(found.rows.values())
    rows = standings([*measured, *quoted])
    gaps: dict[tuple[str, str], list[str]] = {}
    for track, data, method in missing(measured):
        gaps.setdefault((track, data), []).append(method)
    environment = Environment(
        loader=TEMPLATES, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("leaderboard.html").render(
        tracks={name: TRACKS[name] for name in TRACKS if any(_of(rows, name))},
        missing=[(*place, ", ".join(names)) for place, names in gaps.items()],
        bad=found.bad,
        others=found.others,
        content=_for_script(
            {
                "rows": [_shown(one) for one in rows],
                "columns": {
                    name: [[title, key] for title, _, key, _ in columns]
                    for name, columns in COLUMNS.items()
                },
                "measures": {
                    name: next(t for t, _, key, _ in COLUMNS[name] if key == measure)
                    for name, measure in MEASURES.items()
                },
                "about": ABOUT,
            }
        ),
        plotly=Markup(get_plotlyjs()),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def markdown(found: Folder) -> str:
    """Writes what was measured as Markdown, a table per track and set, and what is missing."""
    measured = [row for row in found.rows.values() if row.measured]
    rows, parts = standings(measured), ["# Leaderboard\n"]
    if measured:
        machines = _plain(", ".join(sorted({row.hardware for row in measured})))
        days = sorted({f"{row.moment:%Y-%m-%d}" for row in measured})
        commits = _plain(", ".join(sorted({short_commit(one.commit) for one in rows})))
        parts.append(
            "Rows of the reference benchmark, made by `adaptok leaderboard FOLDER out=FILE.md`. "
            f"Machine: {machines}; {days[0]} to {days[-1]}; commit {commits}. Differences of a few "
            "percent mean nothing in rows of one seed.\n"
        )
    for track in [name for name in TRACKS if _of(rows, name)]:
        parts.append(f"## {track}: {TRACKS[track]}\n\n{ABOUT[track]}\n")
        for data in dict.fromkeys(one.first.set for one in _of(rows, track)):
            own = [one for one in _of(rows, track) if one.first.set == data]
            parts += [f"**{_plain(data)}**\n", _table(track, own)]
    gaps = [f"{track} {_plain(data)}: {method}" for track, data, method in missing(measured)]
    parts.append(
        "Mandatory and not measured at any budget, of the sets above: "
        f"{', '.join(gaps) or 'none'}.\n"
    )
    return "\n".join(parts)


def _table(track: str, rows: Sequence[Standing]) -> str:
    titles = [title for title, *_ in COLUMNS[track]]
    shown = [_shown(one) for one in rows]
    body = []
    for one in shown:
        values = [_number(one["values"][title]) for title in titles]
        if one["spread"] is not None:
            place = [name for _, _, name, _ in COLUMNS[track]].index(MEASURES[track])
            values[place] += f" ± {_number(one['spread'])}"
        marks = _plain("; ".join(one["marks"]))
        body.append([f"`{_plain(one['method'])}`", one["budget"], *values, marks])
    return table(["method", "budget", *titles, "marks"], body)


def _plain(text: str) -> str:
    """Writes what Markdown or HTML could read as more than text by its number."""
    return re.sub(r"[^\w .,:;=()+-]", lambda found: f"&#{ord(found[0])};", text)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4g}"


def _of(rows: Sequence[Standing], track: str) -> list[Standing]:
    return [one for one in rows if one.first.track == track]


def _shown(one: Standing) -> dict[str, Any]:
    """What the page shows of a row."""
    row = one.first
    kind, value = row.budget["kind"], row.budget["value"]
    values = {}
    for title, source, name, factor in COLUMNS[row.track]:
        known = source(one, name)
        values[title] = None if known is None else known * factor
    said = "as it is" if kind == "none" else f"equal {kind}" + (f", {value:g}" if value else "")
    about = {"track": row.track, "set": row.set, "method": row.method, "budget": said}
    about |= {"kind": kind, "measured": row.measured, "values": values, "spread": one.spread}
    about |= {"seeds": len({r.seed for r in one.rows if r.seed is not None})}
    about |= {
        "marks": list(one.marks),
        "commit": short_commit(one.commit),
        "hardware": row.hardware,
    }
    return about | {"source": row.source, "first": (row.rollout or {}).get("first")}


def _for_script(content: Any) -> Markup:
    """Writes JSON for a script element, which "</" and "<!--" would end or change."""
    return Markup(json.dumps(content, allow_nan=False).replace("<", "\\u003c"))
